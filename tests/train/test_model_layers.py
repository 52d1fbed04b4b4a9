"""Hypernetworks that read the model's own states of a token's pieces."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from distill_parts import write_run
from safetensors.numpy import load_file

from dyntok_jax.cli import rows
from dyntok_jax.config import ComputeConfig, MeshConfig, read_config
from dyntok_jax.dynamic_model import load
from dyntok_jax.embed.piece_states import piece_reader, piece_states
from dyntok_jax.embed.providers import row_provider
from dyntok_jax.embed.zett import load_hypernet, save_hypernet
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary
from dyntok_jax.models.weights import first_layers, load_model, model_module
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import DyntokError
from train import transfer, vocabulary
from train.config import HypernetRun
from train.distill import Distillation
from train.hypernet import main, make_task


@pytest.fixture(params=["encoder", "decoder"])
def folder(request):
    """A tiny model of each kind."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def config(folder, tmp_path):
    """A run's config, by which one layer of the model is read."""
    path = write_run(tmp_path / "of", folder, {"hidden": 1.0})
    return changed(path, model_layers=1)


def changed(path, **shape):
    run = yaml.safe_load(path.read_text("utf-8"))
    run["hypernet"] |= shape
    path.write_text(json.dumps(run), "utf-8")
    return path


def task_of(config) -> Distillation:
    task = make_task(read_config(HypernetRun, config, []))
    assert isinstance(task, Distillation)
    return task


def stirred(task):
    """Parameters by which states make a difference."""
    params = dict(task.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    for name in ("states_up", "head"):  # both begin at zero
        values = 0.3 * rng.standard_normal(params[name]["kernel"].shape).astype(np.float32)
        params[name] = params[name] | {"kernel": jnp.asarray(values)}
    return params


def test_states_are_those_of_each_token_as_a_text_of_its_own(folder):
    model, tokenizer = load_model(folder), BaseTokenizer.from_folder(folder)
    module, params, opening, closing = piece_reader(model, 1, tokenizer)
    assert len(opening) <= 1 and len(closing) == (model.kind == "encoder")
    forms = np.array([[7, 9, 8, 0], [11, 0, 0, 0], [9, 9, 10, 12]], np.int32)
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
    rows = jnp.asarray(np.asarray(model.source.input, np.float32))
    ends = np.array(opening, np.int32), np.array(closing, np.int32)
    inputs = {"params": params}, rows, forms, mask, *ends
    found: Any = module.apply(*inputs, method=piece_states)
    first = first_layers(model, 1)
    key = "layers" if model.kind == "decoder" else "stack"
    jax.tree.map(
        lambda one, all_: np.testing.assert_array_equal(one, all_[:1]),
        *(found.params[key] for found in (first, model)),
    )
    whole = model_module(first.architecture)
    assert whole.config.layers == 1 < model.config.layers
    for form, real, states in zip(forms, mask, found, strict=True):
        ids = [*opening, *form[real], *closing]
        alone: Any = whole.apply(
            {"params": first.params}, rows[np.array([ids])], jnp.ones((1, len(ids)), bool)
        )
        expected = alone[0, len(opening) : len(opening) + real.sum()]
        np.testing.assert_allclose(states[real], expected, atol=1e-5)


def test_before_the_first_step_states_make_no_difference(config):
    task, plain = task_of(config), task_of(changed(config, model_layers=0))
    batch = next(task.batches(None)).batch
    found = jax.jit(task.predicted)(task.init(jax.random.key(0)), task.frozen, batch)
    expected = jax.jit(plain.predicted)(plain.init(jax.random.key(0)), plain.frozen, batch)
    np.testing.assert_allclose(found.input, expected.input, atol=1e-6)
    params = stirred(task)
    other = jax.jit(task.predicted)(params, task.frozen, batch).input
    still = params | {"states_up": task.init(jax.random.key(0))["states_up"]}
    unread = jax.jit(task.predicted)(still, task.frozen, batch).input
    assert np.abs(other - unread).max() > 1e-3


def test_the_same_rows_are_predicted_in_training_and_by_every_command(config, folder, tmp_path):
    task = task_of(config)
    batch = next(task.batches(None)).batch
    params = stirred(task)
    expected = np.asarray(jax.jit(task.predicted)(params, task.frozen, batch).input)
    save_hypernet(tmp_path / "rows", task.hypernet_config, task.hypernet_params(params))
    shape, read = load_hypernet(tmp_path / "rows")
    assert shape == task.hypernet_config and shape.model_layers == 1
    np.testing.assert_array_equal(read["states_up"]["kernel"], params["states_up"]["kernel"])
    model = load(str(folder), str(tmp_path / "rows"))
    spelled = {i: s for s, i in model.tokenizer.special_ids.items()} | model.tokenizer.spelled()
    forms = [form[form != shape.pad_id] for form in (*batch.short, *batch.long)]
    tokens = {
        "".join(spelled[i] for i in form): row
        for form, row in zip(forms, expected, strict=True)
        if len(form) and model.tokenizer.unk_id not in form  # whose text is not known
    }
    assert len(tokens) > 10
    heads = 2 if model.kind == "encoder" else 1  # the decoder has one for keys and values
    for mesh in (MeshConfig(data=1), MeshConfig(data=2, model=heads)):
        model = load(str(folder), str(tmp_path / "rows"), ComputeConfig(mesh=mesh))
        found = model.cache._provider.rows([*tokens])
        np.testing.assert_allclose(found.input, np.stack([*tokens.values()]), atol=1e-5)
    lines = "".join(json.dumps({"token": token}) + "\n" for token in tokens)
    (tmp_path / "tokens.jsonl").write_text(lines, "utf-8")
    paths = {"--hypernet": tmp_path / "rows", "--model": folder, "--out": tmp_path / "found"}
    arguments = [str(part) for pair in paths.items() for part in pair]
    run = CliRunner().invoke(rows.command, [str(tmp_path / "tokens.jsonl"), *arguments])
    assert run.exit_code == 0, run.output
    written = load_file(tmp_path / "found")["input"]
    np.testing.assert_allclose(written, np.stack([*tokens.values()]), atol=1e-5)
    # As any vocabulary's are, whatever stands in a chunk with a token.
    name, row = next(iter(tokens.items()))
    np.testing.assert_allclose(model.cache._provider.rows([name]).input[0], row, atol=1e-5)


def test_a_run_starts_from_a_hypernetwork_that_reads_no_layers(config, tmp_path):
    layered = config.read_text("utf-8")
    main(["--config", str(changed(config, model_layers=0))])
    first = tmp_path / "first"
    (tmp_path / "of" / "run").rename(first)
    config.write_text(layered, "utf-8")
    overrides = [f"hypernet.start={first / 'hypernet'}"]
    task = make_task(read_config(HypernetRun, config, overrides))
    assert isinstance(task, Distillation)
    before = task.init(jax.random.key(0))
    plain = load_hypernet(first / "hypernet")[1]
    np.testing.assert_array_equal(before["read"]["kernel"], plain["read"]["kernel"])
    main(["--config", str(config), *overrides, "compute.mesh.data=2"])
    shape, params = load_hypernet(tmp_path / "of" / "run" / "hypernet")
    assert shape.model_layers == 1
    assert np.abs(params["states_up"]["kernel"]).max() > 0
    with pytest.raises(DyntokError, match="model_layers is 1 there and 0 here"):
        start = f"hypernet.start={tmp_path / 'of' / 'run' / 'hypernet'}"
        make_task(read_config(HypernetRun, config, [start, "hypernet.model_layers=0"]))


def test_a_chunk_has_room_for_what_stands_around_all_its_pieces(config, folder, tmp_path):
    task = task_of(changed(config, surface_length=2))
    params = task.hypernet_params(stirred(task))
    save_hypernet(tmp_path / "rows", task.hypernet_config, params)
    model = load(str(folder), str(tmp_path / "rows"))
    spelled = [*model.tokenizer.spelled().values()]
    # Pieces that no other token has, as many as a chunk can hold.
    tokenizer = model.tokenizer
    pairs = (a + b for a, b in zip(spelled[:-1:2], spelled[1::2], strict=False))
    tokens = [pair for pair in pairs if len(tokenizer.decompose(pair)) == 2][:64]
    rows = model.cache._provider.rows(tokens).input
    assert len({i for token in tokens for i in tokenizer.decompose(token)}) > 100
    alone = np.stack([model.cache._provider.rows([token]).input[0] for token in tokens[:3]])
    np.testing.assert_allclose(rows[:3], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_layers": -1}, "model_layers is -1, not 0 or more"),
        ({"model_layers": "two"}, "model_layers is 'two', not a whole number"),
        ({"native_tokenizer": False}, "model_layers needs native_tokenizer"),
        ({"hn_n_extra_tokens": 3}, "and no extra tokens"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config, tmp_path, fields, message):
    task = task_of(config)
    params = task.hypernet_params(task.init(jax.random.key(0)))
    save_hypernet(tmp_path / "rows", task.hypernet_config, params)
    path = tmp_path / "rows" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")
    with pytest.raises(DyntokError, match=message):
        load_hypernet(tmp_path / "rows")


def test_more_layers_than_the_model_has_are_refused(config):
    with pytest.raises(DyntokError, match=r"hypernet\.model_layers: 99; the model has"):
        task_of(changed(config, model_layers=99))


def test_rows_alone_do_not_do_for_it(config, folder, tmp_path):
    task = task_of(config)
    params = task.hypernet_params(task.init(jax.random.key(0)))
    save_hypernet(tmp_path / "rows", task.hypernet_config, params)
    model = load(str(folder), "fvt")
    source = replace(model.source, folder=None)
    with pytest.raises(DyntokError, match="reads the model's first 1 layers"):
        row_provider(str(tmp_path / "rows"), lambda _: source, model.tokenizer)


def test_a_model_gets_another_tokenizer_by_it(config, folder, tmp_path):
    task = task_of(config)
    params = task.hypernet_params(stirred(task))
    save_hypernet(tmp_path / "rows", task.hypernet_config, params)
    paths = {"model": folder, "rows": tmp_path / "rows", "tokenizer": folder}
    paths["out"] = tmp_path / "moved"
    transfer.main([f"--{name}={path}" for name, path in paths.items()])
    # The tokenizer is its own, whose tokens keep their rows.
    moved, own = (load_model(path).source.input for path in (tmp_path / "moved", folder))
    np.testing.assert_allclose(moved, own, atol=1e-6)


@pytest.mark.parametrize("folder", ["decoder"], indirect=True)
def test_a_large_vocabulary_gets_rows_by_it(config, folder, tmp_path):
    task = task_of(config)
    params = task.hypernet_params(stirred(task))
    save_hypernet(tmp_path / "rows", task.hypernet_config, params)
    (tmp_path / "a.txt").write_text("old lighthouses and old bridges\n" * 20, "utf-8")
    tokenizer = BaseTokenizer.from_folder(folder)
    run = {"model": str(folder), "out": str(tmp_path / "out"), "size": tokenizer.vocab_size + 5}
    run |= {"sources": [{"language": "en", "files": str(tmp_path / "a.txt")}]}
    run |= {"rows": {"provider": str(tmp_path / "rows")}}
    (tmp_path / "vocabulary.yaml").write_text(json.dumps(run), "utf-8")
    vocabulary.main(["--config", str(tmp_path / "vocabulary.yaml")])
    large = LargeVocabulary.load(tmp_path / "out", tokenizer)
    tokens = large.tokens[large.base_size :]
    expected = load(str(folder), str(tmp_path / "rows")).cache._provider.rows(tokens).input
    np.testing.assert_allclose(large.rows().input[large.base_size :], expected, atol=1e-5)


def test_zett_reads_none(config):
    run = read_config(HypernetRun, config, [])
    with pytest.raises(DyntokError, match=r"hypernet\.model_layers: is for the objective distill"):
        make_task(replace(run, objective="zett"))
