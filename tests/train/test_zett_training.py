"""ZeTT's training end to end on tiny random models, and its parts."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dyntok_jax.config import ComputeConfig, MeshConfig
from dyntok_jax.embed.hypernet import Hypernet
from dyntok_jax.models.decoder import DecoderConfig
from dyntok_jax.models.encoder import EncoderConfig
from dyntok_jax.models.hf_config import Architecture
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.weights import LoadedModel, head_module, model_module
from dyntok_jax.sharding import make_mesh
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.byte_level import to_bytes
from dyntok_jax.types import DyntokError, Rows
from train.data import DataConfig
from train.loop import TrainingConfig, train
from train.optim import OptimizerConfig, Phase
from train.text_sources import TextSource
from train.unigram import SamplerConfig
from train.zett import ZettTask
from train.zett_batches import (
    NO_LABEL,
    IdentityBatch,
    LanguageBatch,
    LanguagePreparation,
    QueuedTexts,
    identity_batch,
    language_batches,
    mask_tokens,
    next_tokens,
)
from train.zett_config import ZettConfig
from train.zett_hypernet import first_parameters, hypernet_tokenizer, zett_shape
from train.zett_losses import identity_loss, label_loss, overlap_loss, with_own_rows
from train.zett_targets import named, short_names, target_batches

WIDTH = 16
SIZE = 512
SAMPLER = SamplerConfig(mean=500, minimum=480, maximum=SIZE, std=10, texts=24)
CONFIG = ZettConfig(3, 64, sequences=8, length=24, sampler=SAMPLER, evaluation_batches=1)
ONE = ComputeConfig(mesh=MeshConfig(1))
TEXT = (
    "the quick brown fox jumps over the lazy dog and the children walked along the river while "
    "der alte Mann erzählte heute Abend Geschichten über ferne Länder und seine Brüder in 1999 "
    "watoto wanacheza mpira nje ya nyumba ya babu yao asubuhi, (not here); über allem steht."
)


def random_params(module: nn.Module, *inputs):
    """Without a compilation for each of the module's operations, as its own ``init`` would have."""
    random = np.random.default_rng(1)

    def value(path, leaf):
        is_scale = path[-1].key == "scale"
        drawn = random.normal(float(is_scale), 0.06, leaf.shape)
        return drawn.astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, nn.unbox(abstract_params(module, *inputs)))


def tiny_llama(tokenizer: BaseTokenizer) -> LoadedModel:
    rows = tokenizer.vocab_size
    config = DecoderConfig(WIDTH, 2, 2, 1, 8, 32, vocab_size=rows, sliding_window=None)
    architecture = Architecture(config, "llama", None, False, 64)
    random = np.random.default_rng(0)
    source = Rows(*random.normal(0, 0.05, (2, rows, WIDTH)).astype(np.float32))
    params = random_params(model_module(architecture))
    return LoadedModel(architecture, params, None, source, {"model_type": "llama"})


def tiny_xlm_r(tokenizer: BaseTokenizer) -> LoadedModel:
    rows = tokenizer.vocab_size
    config = EncoderConfig(WIDTH, 2, 2, 32, 66, vocab_size=rows)
    architecture = Architecture(config, "xlm-roberta", "masked_lm", True, 64)
    random = np.random.default_rng(0)
    table = random.normal(0, 0.1, (rows, WIDTH)).astype(np.float32)
    bias = random.normal(0, 0.1, rows).astype(np.float32)
    params = random_params(model_module(architecture))
    hidden = jnp.zeros((1, 1, WIDTH))
    module = head_module(architecture)
    assert module is not None
    head = random_params(module, hidden, hidden[0])
    return LoadedModel(architecture, params, head, Rows(table, None, bias), {"model_type": "x"})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    random = np.random.default_rng(0)
    sources = []
    for language in ("de", "en"):
        path = tmp_path_factory.mktemp("text") / f"{language}.txt"
        lines = [" ".join(random.choice(TEXT.split(), 24)) for _ in range(64)]
        path.write_text("\n".join(lines) + "\n", "utf-8")
        sources.append(TextSource(language, files=str(path)))
    return DataConfig(tuple(sources), one_language=True, texts=8, workers=0)


@pytest.fixture(scope="module")
def tokenizers(tiny_tokenizers) -> dict[str, BaseTokenizer]:
    unigram = copy.deepcopy(tiny_tokenizers["unigram"].json)
    number = len(unigram["model"]["vocab"])
    unigram["model"]["vocab"].append(["<mask>", 0.0])
    unigram["added_tokens"].append(unigram["added_tokens"][0] | {"id": number, "content": "<mask>"})
    llama = tiny_tokenizers["fallback_bpe"]
    return {
        "llama": BaseTokenizer(llama.json, llama.config),
        "xlm_r": BaseTokenizer(unigram, tiny_tokenizers["unigram"].config),
    }


@pytest.fixture(scope="module")
def make_task(tokenizers, data):
    def make(
        name: str, config: ZettConfig = CONFIG, compute=ONE, held_out=None, data=data, **shape
    ):
        tokenizer = tokenizers[name]
        model = {"llama": tiny_llama, "xlm_r": tiny_xlm_r}[name](tokenizer)
        languages = len(data.sources)
        sizes: dict[str, Any] = {"hidden": 32, "layers": 1, "heads": 2} | shape
        hypernet = zett_shape(model, tokenizer, languages, **sizes)
        return ZettTask(model, tokenizer, hypernet, config, data, compute, 0, held_out)

    return make


@pytest.fixture(scope="module", params=["llama", "xlm_r"])
def task(request, make_task) -> ZettTask:
    return make_task(request.param)


@pytest.fixture(scope="module")
def loaded(task):
    return list(itertools.islice(task.batches(None), 8))


QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiler options: what is compiled here runs a few times only."""


@pytest.fixture(scope="module")
def descend(task):
    """Gradient descent on one batch: parts of the loss at each step, and the last parameters."""
    optimizer, key = optax.adam(3e-3), jax.random.key(0)

    def step(params, state, frozen, batch):
        (_, parts), grads = jax.value_and_grad(task.loss, has_aux=True)(params, frozen, batch, key)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, parts

    step = jax.jit(step, compiler_options=QUICK)

    def run(batch, steps: int):
        params, losses = task.init(key), []
        state = jax.jit(optimizer.init)(params)
        for _ in range(steps):
            params, state, parts = step(params, state, task.frozen, batch)
            losses.append({name: float(value) for name, value in parts.items()})
        return losses, params

    return run


def test_identity_comes_first_then_language(loaded):
    kinds = [type(item.batch) for item in loaded]
    assert kinds == [IdentityBatch] * 3 + [LanguageBatch] * 5
    assert all(item.tokens == item.batch.mask.sum() > 100 for item in loaded[3:])
    assert all(item.dropped > 0 for item in loaded[3:])
    assert len({item.batch.forms.tobytes() for item in loaded[3:]}) == 5
    assert {int(item.batch.language) for item in loaded[3:]} <= {0, 1}


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_goes_on_from_any_position_with_the_same_batches(task, loaded, after):
    position = json.loads(json.dumps(loaded[after].position))
    again = list(itertools.islice(task.batches(position), 7 - after))
    for found, expected in zip(again, loaded[after + 1 :], strict=True):
        jax.tree.map(np.testing.assert_array_equal, found.batch, expected.batch)
        assert type(found.batch) is type(expected.batch)


@pytest.mark.parametrize("words", [5, 40, 41])
def test_sequences_are_of_all_texts_as_far_as_there_is_room(task, words):
    """Of texts of one word each, repeated: the word says whose token it is."""
    prepare = replace(task._preparation, sequences=4, length=12)
    around = len(prepare.prefix) + len(prepare.suffix)
    rank = {i: row for row, i in enumerate(sorted(prepare.specials.values()))}
    count = len(rank)
    texts = [[count + text] * words for text in range(4)]
    ids, mask, dropped = prepare._pack(texts, rank)
    between = prepare.separator in rank
    total, room = 4 * (words + between), 4 * (12 - around)
    assert mask.sum() - around * mask.any(1).sum() == min(total, room)
    assert dropped == max(0, total - room)
    inner = [row[m][len(prepare.prefix) :] for row, m in zip(ids, mask, strict=True)]
    if total > room:
        assert [row[0] for row in inner] == [count + text for text in range(4)]
    else:
        kept = [i for row in inner for i in row if i >= count]
        assert kept == [i for text in texts for i in text]


class EveryOther:
    """A preparation to which every second batch of texts is of no use."""

    sampler, target = SAMPLER, None

    def __call__(self, queued: QueuedTexts) -> tuple[int, int] | None:
        number = queued.position["batch"]
        return (number, 1) if number % 2 else None


def test_batches_without_use_are_logged_and_counted(data, caplog):
    caplog.set_level(logging.INFO, "train.data")
    data, prepare = replace(data, one_language=False), cast(Any, EveryOther())
    found = list(itertools.islice(language_batches(data, prepare, seed=3), 3))
    first = found[0].batch
    assert [item.batch for item in found] == [first, first + 2, first + 4]
    assert [item.position["skipped"] - found[0].position["skipped"] for item in found] == [0, 1, 2]
    assert f"nothing to train on in batch {first + 3} (" in caplog.text
    again = language_batches(data, prepare, seed=3, position=found[1].position)
    assert next(again) == found[2]
    older = {key: found[1].position[key] for key in ("start", "again")}
    assert next(language_batches(data, prepare, seed=3, position=older)).batch == first + 4


def test_texts_that_are_not_there_are_missed_before_the_first_batch(make_task, data, tmp_path):
    missing = replace(data, sources=(TextSource("en", files=str(tmp_path / "missing.txt")),))
    task = make_task("llama", data=missing)
    with pytest.raises(DyntokError, match=r"missing\.txt.*no such file"):
        task.batches(None)
    only = make_task("llama", replace(CONFIG, identity_only=True), data=missing)
    assert isinstance(next(only.batches(None)).batch, IdentityBatch)


def test_identity_rows_are_learnt(task, loaded, descend):
    before = task.evaluate(task.init(jax.random.key(0)))["identity_cosine"]
    losses, params = descend(loaded[0].batch, 60)
    assert losses[-1]["identity_loss"] < 0.5 * losses[0]["identity_loss"]
    assert task.evaluate(params)["identity_cosine"] > before + 0.1


@pytest.mark.slow
def test_language_loss_falls(loaded, descend):
    losses, _ = descend(loaded[3].batch, 40)
    # Without knowledge it is the logarithm of the vocabulary's size.
    assert abs(losses[0]["language_loss"] - np.log(500)) < 1
    assert losses[-1]["language_loss"] < losses[0]["language_loss"] - 0.5
    totals = [part["language_loss"] + 0.5 * part["overlap_loss"] for part in losses]
    assert totals[-1] < totals[0] - 0.5
    assert 0 < losses[0]["overlap"] < 1


def test_no_gradient_reaches_what_is_frozen(task, loaded, descend):
    assert set(task.init(jax.random.key(0))) == {"hypernet"}
    assert not {"rescale", "rescale_source"} & set(task.init(jax.random.key(0))["hypernet"])
    assert {"rescale", "rescale_source"} <= set(task.frozen["rescalers"])
    before = jax.tree.map(np.array, task.frozen)
    descend(loaded[3].batch, 2)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, task.frozen))


def test_special_rows_are_the_models_whatever_is_predicted(task, loaded):
    batch = loaded[3].batch
    specials = sorted(task._tokenizer.special_ids.values())
    assert batch.own[: len(specials)].tolist() == specials
    assert (batch.own[len(specials) :] == NO_LABEL).all()
    rows, _ = jax.jit(task.rows)(task.init(jax.random.key(0)), task.frozen, batch)
    for found, own in zip(rows, task._base.source, strict=True):
        if own is not None:
            np.testing.assert_array_equal(found[: len(specials)], own[specials])
            rest = np.asarray(found[len(specials) :])
            assert not (rest[:, None] == own[None]).all(axis=tuple(range(2, own.ndim + 1))).any()


def test_shared_tokens_are_those_of_the_models_vocabulary(task, loaded):
    batch = loaded[3].batch
    shared = np.flatnonzero(batch.shared != NO_LABEL)
    assert len(shared) > 50
    np.testing.assert_array_equal(batch.forms[shared, 0], batch.shared[shared])
    assert (batch.forms[shared, 1:] == task.hypernet_config.pad_id).all()
    assert 480 <= batch.real.sum() <= SIZE == len(batch.real)
    assert (batch.shared[~batch.real] == NO_LABEL).all()


def test_predictions_start_with_the_mean_and_deviation_of_the_models_rows(task):
    ids = np.arange(0, task.hypernet_config.vocab_size // 8 * 8)
    params = task.init(jax.random.key(0))
    predicted = jax.jit(task.predict)(params, task.frozen, ids[:, None], np.int32(0))
    own = np.asarray(task._base.source.input)
    np.testing.assert_allclose(predicted.input.mean(0), own.mean(0), atol=0.01)
    np.testing.assert_allclose(predicted.input.std(0), own.std(0), rtol=0.1)


def test_the_first_positions_are_those_that_are_published(task):
    table = np.asarray(task.init(jax.random.key(0))["hypernet"]["positions"])
    assert table.std() == pytest.approx(0.02, rel=0.05)


def test_rescalers_are_the_same_on_every_mesh(tokenizers):
    """Also where the devices do not divide the tokens they are fitted to."""
    own = tokenizers["llama"]
    shape = zett_shape(tiny_llama(own), own, hidden=32, layers=1, heads=2)
    source = np.random.default_rng(0).normal(1, 0.05, (own.vocab_size, shape.source_width))
    assert shape.vocab_size % 7
    one, seven = (
        first_parameters(Hypernet(shape), jnp.asarray(source, jnp.float32), mesh, seed=3)
        for mesh in (make_mesh(MeshConfig(), jax.devices()[:count]) for count in (1, 7))
    )
    assert set(one.rescalers) == {"rescale_source", "rescale", "rescale_output"}
    for name, rescale in one.rescalers.items():
        for part, leaf in rescale.items():
            np.testing.assert_allclose(seven.rescalers[name][part], leaf, rtol=2e-5, atol=2e-6)


def test_identity_batches_are_the_same_on_every_mesh():
    one, parts = (identity_batch(100, 60, parts, 3, 5) for parts in (1, 8))
    assert len(set(one.ids)) == 60 and len(parts.ids) == 64
    assert parts.ids.tolist() == [*one.ids, *[NO_LABEL] * 4]
    assert sorted(identity_batch(10, 60, 1, 3, 5).ids) == list(range(10))


@pytest.mark.slow
def test_a_mesh_changes_nothing(make_task):
    compute = ComputeConfig(mesh=MeshConfig(1, 2, 2))
    batch = next(itertools.islice(make_task("llama").batches(None), 3, None)).batch
    found = []
    for task in make_task("llama", compute=compute), make_task("llama"):
        loss = jax.jit(task.loss, compiler_options=QUICK)
        key = jax.random.key(0)
        found.append(loss(task.init(key), task.frozen, batch, key)[0])
    np.testing.assert_allclose(*found, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "xlm_r"])
def test_the_loop_trains_it_and_the_backbone(make_task, data, tmp_path, name):
    config = replace(CONFIG, train_backbone=True, identity_steps=2)
    task = make_task(name, config, held_out=data)
    before = jax.tree.map(np.array, task.init(jax.random.key(0)))
    assert set(before) == {"hypernet", "model"} | ({"head"} if name == "xlm_r" else set())
    optimizer = OptimizerConfig(phases=(Phase(peak=3e-3),))
    settings = TrainingConfig(tmp_path, 32, optimizer=optimizer, evaluate_every=32, log_every=1)
    params = train(task, settings)
    changed = [
        not np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (before, params)), strict=True)
    ]
    assert np.mean(changed) > 0.8
    lines = (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert all(np.isfinite(record["loss"]) for record in records if "loss" in record)
    losses = [r["language_loss"] for r in records if r["kind"] == "train" and "language_loss" in r]
    # Every step has another tokenizer and other texts.
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3, losses
    names = {name for record in records for name in record}
    assert {"identity_loss", "language_loss", "overlap_loss", "identity_cosine"} <= names


@pytest.fixture
def other(folders, tmp_path) -> Path:
    """The folder of another model's tokenizer, with a mask token."""
    content = json.loads((folders["byte_bpe"] / "tokenizer.json").read_text("utf-8"))
    count = len(content["model"]["vocab"])
    content["added_tokens"].append(content["added_tokens"][0] | {"id": count, "content": "<mask>"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    return tmp_path / "other"


@pytest.mark.parametrize("name", ["llama", "xlm_r"])
def test_fixed_tokenizers_give_the_same_batches_each_time(name, tokenizers, data, other):
    own, read = tokenizers[name], BaseTokenizer.from_folder(other)
    prefix = [own.opening_id]
    mask_id = own.special_ids.get("<mask>")
    prepare = LanguagePreparation(
        *(hypernet_tokenizer(own)[0], own.special_ids, prefix, [], own.closing_id, mask_id),
        *(own.vocab_size, own.pad_id or 0, 4, 8, 24, ["de", "en"], SAMPLER),
    )
    names = ["500", str(other)]
    found, again = (target_batches(names, own, prepare, data, 2, seed=3) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, found, again)
    assert list(found) == names and all(len(batches) == 2 for batches in found.values())
    sampled, named = (found[name][0] for name in names)
    np.testing.assert_array_equal(sampled.forms, found["500"][1].forms)
    assert sampled.real.sum() == 500 and named.real.sum() == read.vocab_size
    for batch in (sampled, named):
        specials = batch.own != NO_LABEL
        assert set(batch.own[specials]) <= set(own.special_ids.values())
        assert not specials[np.argmin(specials) :].any()  # they come first
        assert own.closing_id in batch.own[batch.ids[batch.mask]]
        assert (batch.labels != NO_LABEL).sum() > 10
    shared = np.flatnonzero(named.shared != NO_LABEL)
    spelled = own.spelled()
    theirs = set(read.spelled().values())
    assert len(shared) > 100 and all(spelled[int(named.shared[i])] in theirs for i in shared)
    if mask_id is not None:
        with pytest.raises(DyntokError, match=r"fallback_bpe.* has no mask token"):
            bare = other.parent / "fallback_bpe"
            write_json(bare / "tokenizer.json", tokenizers["llama"].tokenizer_json)
            target_batches([str(bare)], own, prepare, data, 1, seed=3)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps(content), "utf-8")


def test_targets_are_named_by_what_tells_them_apart():
    assert short_names(["500", "a/roberta"]) == {"500": "500", "a/roberta": "roberta"}
    alike = ["500", "/out/en/tokenizer", "/out/de/tokenizer"]
    assert list(short_names(alike).values()) == ["500", "en/tokenizer", "de/tokenizer"]
    with pytest.raises(DyntokError, match="named twice"):
        short_names(["out/en", "out/en/"])


def test_evaluations_read_by_fixed_tokenizers(make_task, data, other):
    copied = shutil.copytree(other, other.parent / "copied" / "other")
    config = replace(CONFIG, targets=("500", str(other), str(copied)))
    task = make_task("llama", config, held_out=data)
    figures = task.evaluate(task.init(jax.random.key(0)))
    for target in ("500", f"{other.parent.name}/other", "copied/other"):
        assert abs(figures[f"language_loss_{target}"] - np.log(490)) < 1
    with pytest.raises(DyntokError, match="targets are for held-out texts"):
        make_task("llama", config)


def test_one_tokenizer_may_read_all_texts(make_task, data, other):
    config = replace(CONFIG, tokenizer=str(other), identity_steps=0)
    own = replace(data, sources=data.sources[:1])
    task = make_task("llama", config, data=own)
    # No earlier texts are waited for.
    assert next(task.batches(None)).position["language"]["batch"] == 1
    first, second = (item.batch for item in itertools.islice(task.batches(None), 2))
    read = BaseTokenizer.from_folder(other)
    for name in ("forms", "own", "shared", "real"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.real.sum() == read.vocab_size
    tokens = named(str(other), task._tokenizer, None).tokens
    spelled = "".join(str(tokens[i]) for i in first.ids[0] if not isinstance(tokens[i], int))
    text = Path(data.sources[0].files or "").read_text("utf-8")
    assert len(spelled) > 24 and to_bytes(spelled).decode("utf-8", "ignore").strip() in text
    in_worker = language_batches(replace(own, workers=1), task._preparation, seed=0)
    (again,) = itertools.islice(in_worker, 1)
    jax.tree.map(np.testing.assert_array_equal, again.batch, first)
    with pytest.raises(DyntokError, match="tokenizer reads texts"):
        make_task("llama", replace(config, identity_only=True))


def test_rows_of_one_tokenizer_may_be_kept_near_those_of_the_start(make_task, data, other):
    own = replace(data, sources=data.sources[:1])
    config = replace(CONFIG, tokenizer=str(other), identity_steps=0, overlap_with="start")
    task = make_task("llama", config, data=own, held_out=own)
    params = task.init(jax.random.key(0))
    first = task.evaluate(params)
    assert first["overlap_loss"] == 0
    moved = jax.tree.map(lambda leaf: leaf * 1.1, params)
    assert task.evaluate(moved)["overlap_loss"] > 0
    # All but the special tokens, whose rows are the model's.
    batch = next(task.batches(None)).batch
    wanted = (batch.real & (batch.own == NO_LABEL)).mean()
    np.testing.assert_allclose(first["overlap"], wanted, rtol=1e-6)
    with pytest.raises(DyntokError, match="overlap_with start is of one language's rows"):
        make_task("llama", config, data=data)
    with pytest.raises(DyntokError, match="overlap_with start is of one tokenizer's rows"):
        make_task("llama", replace(CONFIG, overlap_with="start"), data=own)


def test_a_text_may_be_a_sequence_of_its_own(make_task, data, other):
    own = replace(data, sources=data.sources[:1])
    config = replace(CONFIG, tokenizer=str(other), identity_steps=0)
    packed, single = (
        next(make_task("llama", replace(config, packed=packed), data=own).batches(None))
        for packed in (True, False)
    )
    target = named(str(other), make_task("llama", config, data=own)._tokenizer, None)
    lines = Path(own.sources[0].files or "").read_text("utf-8").splitlines()
    # This tokenizer has none of the special tokens that stand around texts.
    texts = [ids[: CONFIG.length] for ids in target.encode(lines)]
    for ids, mask in zip(single.batch.ids, single.batch.mask, strict=True):
        assert ids[mask].tolist() in texts
    assert single.dropped > 0 and packed.batch.mask.sum() >= single.batch.mask.sum()


def test_a_tokenizer_without_the_models_ends_is_warned_of(tokenizers, folders, other, caplog):
    named(str(folders["fallback_bpe"]), tokenizers["llama"], None)
    assert not any("texts stand without" in record.getMessage() for record in caplog.records)
    named(str(other), tokenizers["llama"], None)
    said = caplog.records[-1].getMessage()
    assert f"{other} has no <s>: texts stand without" in said


def test_preparation_goes_to_a_worker_and_back(task, loaded):
    prepare = task._preparation
    assert pickle.loads(pickle.dumps(prepare)) == prepare


def test_residual_starts_from_the_mean_of_the_pieces(make_task):
    task = make_task("llama", residual=True)
    forms = np.array([[5, 9, 12], [7, 7, 8]], np.int32)
    rows = jax.jit(task.predict)(task.init(jax.random.key(0)), task.frozen, forms, np.int32(1))
    own = task._base.source
    np.testing.assert_allclose(rows.input, own.input[forms].mean(1), atol=1e-6)
    np.testing.assert_allclose(rows.output, own.output[forms].mean(1), atol=1e-6)


def test_says_what_does_not_fit(make_task, data):
    with pytest.raises(DyntokError, match=r"length 100: the model reads 4 to 64 tokens"):
        make_task("llama", replace(CONFIG, length=100))
    with pytest.raises(DyntokError, match="3 sequences do not split over data×fsdp = 2 devices"):
        make_task("llama", replace(CONFIG, sequences=3), ComputeConfig(mesh=MeshConfig(2)))
    with pytest.raises(DyntokError, match=r"a table of languages needs data\.one_language: true"):
        make_task("llama", data=replace(data, one_language=False))
    with pytest.raises(DyntokError, match="train_backbone trains on texts"):
        make_task("llama", replace(CONFIG, train_backbone=True, identity_only=True))


def test_held_out_texts_are_of_the_table_of_languages(make_task, data):
    with pytest.raises(DyntokError, match=r"needs held_out\.one_language: true"):
        make_task("llama", held_out=replace(data, one_language=False))
    foreign = replace(data, sources=(replace(data.sources[0], language="fr"),))
    with pytest.raises(DyntokError, match="held_out is of fr, which"):
        make_task("llama", held_out=foreign)
    mixed = replace(data, sources=data.sources + foreign.sources, one_language=False)
    make_task("llama", replace(CONFIG, language_table=False), held_out=mixed)
    make_task("llama", held_out=replace(data, sources=data.sources[:1], one_language=False))


def test_masking_takes_15_percent_and_replaces_most_by_the_mask():
    random = np.random.default_rng(0)
    ids = random.integers(0, 400, (200, 100)).astype(np.int32)
    mask = np.arange(100)[None] < random.integers(50, 100, 200)[:, None]
    found, labels = mask_tokens(ids, mask, 5, 400, 4, random)
    chosen = labels != NO_LABEL
    assert not (chosen & (~mask | (ids < 5))).any()
    np.testing.assert_array_equal(found[~chosen], ids[~chosen])
    np.testing.assert_array_equal(labels[chosen], ids[chosen])
    assert abs(chosen[mask & (ids >= 5)].mean() - 0.15) < 0.01
    assert abs((found == 4)[chosen].mean() - 0.8) < 0.03
    assert abs((found == ids)[chosen].mean() - 0.1) < 0.03


def test_next_tokens_are_the_labels_of_those_before():
    ids = np.array([[3, 4, 5, 0], [6, 0, 0, 0]], np.int32)
    labels = next_tokens(ids, np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool))
    assert labels.tolist() == [[4, 5, -1, -1], [-1] * 4]


def test_losses_by_hand():
    a = Rows(np.array([[1.0, 2.0], [0.0, 0.0]]), np.zeros((2, 2)))
    b = Rows(np.array([[0.0, 2.0], [3.0, 4.0]]), np.array([[0.0, 2.0], [0.0, 0.0]]))
    both = jnp.array([True, True])
    assert identity_loss(a, b, both) == ((1 + 25) / 2 + (4 + 0) / 2) / 2
    assert identity_loss(a._replace(output=None), b._replace(output=None), both) == 13
    assert identity_loss(a, b, jnp.array([False, True])) == (25 + 0) / 2
    shared = jnp.array([False, True])
    one = (a._replace(output=None), b._replace(output=None))
    # The mean length is of all real tokens: of 5 and 2, or of 5 alone.
    assert overlap_loss(*one, shared, both) == 25 / 3.5
    assert overlap_loss(*one, shared, shared) == 25 / 5
    assert overlap_loss(*one, ~shared & False, both) == 0
    scores = jnp.log(jnp.array([[[1.0, 3.0, 99.0], [1.0, 1.0, 1.0]]]))
    real = jnp.array([True, True, False])
    found = label_loss(scores, jnp.array([[1, NO_LABEL]]), real)
    np.testing.assert_allclose(found, -np.log(0.75), rtol=1e-6)
    kept = with_own_rows(a._replace(bias=np.ones(2)), b, shared)
    assert kept.input.tolist() == [[1, 2], [3, 4]] and np.asarray(kept.bias).tolist() == [1, 0]
