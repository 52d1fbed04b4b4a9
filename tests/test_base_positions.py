"""Dynamic tokens that have the positions of their base tokens, in training and after it."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny_folders import decoder, encoder, folders

from dyntok_jax import classification
from dyntok_jax.classification import classify
from dyntok_jax.config import ComputeConfig
from dyntok_jax.dynamic_model import load
from dyntok_jax.embed.zett import load_hypernet, save_hypernet
from dyntok_jax.encoding import encode
from dyntok_jax.merging.budget import Budget
from dyntok_jax.models.encoder import Encoder
from dyntok_jax.sharding import gathered
from dyntok_jax.text.layouts import text_layout
from dyntok_jax.types import DyntokError
from train.config import HypernetRun, HypernetShape
from train.data import DataConfig
from train.distill import Distillation
from train.distill_config import DistillConfig
from train.hypernet import make_task
from train.loop import TrainingConfig
from train.text_sources import TextSource

__all__ = ["decoder", "encoder", "folders"]

SHAPE = HypernetShape(hidden=16, feed_forward=16, layers=1, heads=2, surface_length=6)
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Habari ya asubuhi? Watoto wanacheza mpira nje ya nyumba ya babu yao.",
]


@pytest.fixture
def run(tmp_path):
    """A run for a model."""
    (tmp_path / "xx.txt").write_text("\n".join(TEXTS * 8), "utf-8")

    def make(folder, **shape) -> HypernetRun:
        return HypernetRun(
            str(folder),
            DataConfig((TextSource("xx", files=str(tmp_path / "xx.txt")),), texts=16, workers=0),
            TrainingConfig(tmp_path / "run", steps=1),
            hypernet=replace(SHAPE, **shape),
            distill=DistillConfig(sequences=8, max_length=32, merge_rates=(100.0, 100.0)),
            compute=ComputeConfig(),
        )

    return make


def test_all_else_stays_where_it_was(run, encoder):
    """A token keeps its position wherever the text before it is merged."""
    task = make_task(run(encoder, base_positions=True))
    own = make_task(run(encoder))
    batch = next(task.batches(None)).batch
    assert batch.mask.sum() < batch.base_mask.sum()
    table = np.asarray(task.frozen["model"]["positions"])

    def student(task, positions):
        # Of a network whose only memory of positions is the given table.
        frozen = task.frozen | {"model": task.frozen["model"] | {"positions": positions}}
        rows = task.predicted(task.init(jax.random.key(0)), frozen, batch)
        return np.asarray(jax.jit(task.states)(rows, frozen, batch).student)

    assert isinstance(task, Distillation) and isinstance(task.network, Encoder)
    offset = task.network.config.position_offset
    row = 0
    counts = np.diff(batch.last[row][batch.mask[row]], prepend=-1)
    middle = batch.last[row][batch.mask[row]] - (counts - 1) // 2
    # Rows of the table put where the plain network looks for them.
    moved = table.copy()
    moved[offset : offset + len(middle)] = table[offset + middle]
    wanted, found = student(own, moved), student(task, table)
    real = batch.mask[row]
    np.testing.assert_allclose(found[row][real], wanted[row][real], rtol=1e-4, atol=1e-5)
    assert np.abs(found[row][real] - student(own, table)[row][real]).max() > 1e-3


def test_decoders_are_refused(run, decoder):
    with pytest.raises(DyntokError, match=r"hypernet\.base_positions: a decoder"):
        make_task(run(decoder, base_positions=True))


def test_goes_on_from_a_hypernetwork_of_other_positions(run, encoder, tmp_path):
    task = make_task(run(encoder))
    params = jax.device_get(task.hypernet_params(task.init(jax.random.key(0))))
    save_hypernet(tmp_path / "first", task.hypernet_config, params)
    later = make_task(run(encoder, base_positions=True, start=tmp_path / "first"))
    assert later.hypernet_config.base_positions
    save_hypernet(tmp_path / "second", later.hypernet_config, params)
    assert load_hypernet(tmp_path / "second")[0].base_positions
    assert not load_hypernet(tmp_path / "first")[0].base_positions


@pytest.fixture
def hypernet(run, encoder, tmp_path):
    """The folder of a hypernetwork for them; its rows are the means of the pieces' rows."""
    task = make_task(run(encoder, base_positions=True))
    params = jax.device_get(task.hypernet_params(task.init(jax.random.key(0))))
    save_hypernet(tmp_path / "hypernet", task.hypernet_config, params)
    return tmp_path / "hypernet"


def moved(model, positions):
    """The model with rows of the position table where those of other positions were."""
    offset = model.module.config.position_offset
    on_mesh = model.params["positions"]
    table = np.array(on_mesh)
    table[offset : offset + len(positions)] = table[offset + np.asarray(positions)]
    changed = jax.device_put(table, on_mesh.sharding)
    return replace(model, params=model.params | {"positions": changed})


def test_models_read_so_by_such_rows(encoder, hypernet):
    model = load(str(encoder), str(hypernet))
    fvt = model.with_rows("fvt")
    assert model.base_positions and not fvt.base_positions
    (base,) = text_layout(model.tokenizer, TEXTS[:1], max_length=40)
    (merged,) = model.merge([base], Budget(reduction=100)).sequences
    middle = merged.starts + merged.counts // 2
    assert len(merged.tokens) < len(base.tokens)
    for pool in ("mean", "first"):
        found = encode(model, TEXTS[:1], pool=pool).vectors
        wanted = encode(moved(fvt, middle), TEXTS[:1], pool=pool).vectors
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert np.abs(found - encode(fvt, TEXTS[:1], pool=pool).vectors).max() > 1e-3
    # Base tokens are where they were.
    np.testing.assert_allclose(
        encode(model, TEXTS, 0).vectors, encode(fvt, TEXTS, 0).vectors, atol=1e-6
    )
    with pytest.raises(ValueError, match="how many does each token stand for"):
        model.batch([merged.tokens])
    with pytest.raises(DyntokError, match=r"41 base tokens in a sequence: .* has 40 positions"):
        model.batch([[0] * 3], [np.array([1, 39, 1])])


def test_decoders_refuse_such_rows(run, decoder, tmp_path):
    task = make_task(run(decoder))
    config = replace(task.hypernet_config, base_positions=True)
    params = jax.device_get(task.hypernet_params(task.init(jax.random.key(0))))
    save_hypernet(tmp_path / "hypernet", config, params)
    with pytest.raises(DyntokError, match="positions of base tokens, which encoders have"):
        load(str(decoder), str(tmp_path / "hypernet"))


def test_classifiers_read_so(encoder, hypernet):
    model = load(str(encoder), str(hypernet))
    own = replace(model, base_positions=False)
    base = text_layout(model.tokenizer, TEXTS, max_length=40)
    merged = model.merge(base, Budget(reduction=100)).sequences
    tokens, counts = [part.tokens for part in merged], [part.counts for part in merged]

    def states(model, i):
        (output,) = model.outputs(tokens[i : i + 1], gathered, 1, counts[i : i + 1])
        return output[1][0]

    for i, part in enumerate(merged):
        wanted = states(moved(own, part.starts + part.counts // 2), i)
        np.testing.assert_allclose(states(model, i), wanted, atol=1e-5)
    classes = {}
    for name, network in (("base", model), ("own", own)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(classification, "best_class", gathered)
            classes[name] = classify(network, tokens, 2, counts)
    for i, found in enumerate(classes["base"]):
        np.testing.assert_allclose(found, states(model, i)[: len(tokens[i])], atol=1e-5)
        assert np.abs(found - classes["own"][i]).max() > 1e-3
