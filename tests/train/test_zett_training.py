"""ZeTT's training end to end on tiny random models, and its parts."""

from __future__ import annotations

import itertools
import json
import logging
import pickle
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zett_parts import CONFIG, SAMPLER, SIZE, small_shape, tiny_llama

from dyntok_jax.config import ComputeConfig, MeshConfig
from dyntok_jax.embed.hypernet import Hypernet
from dyntok_jax.sharding import make_mesh
from dyntok_jax.types import DyntokError, Rows
from train.loop import TrainingConfig, train
from train.optim import OptimizerConfig, Phase
from train.text_sources import TextSource
from train.zett import ZettTask
from train.zett_batches import (
    NO_LABEL,
    IdentityBatch,
    LanguageBatch,
    QueuedTexts,
    identity_batch,
    language_batches,
    mask_tokens,
    next_tokens,
)
from train.zett_hypernet import first_parameters
from train.zett_losses import identity_loss, label_loss, overlap_loss, with_own_rows


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


def test_texts_that_are_not_there_are_missed_before_the_first_batch(make_task, data, tmp_path):
    missing = replace(data, sources=(TextSource("en", files=str(tmp_path / "missing.txt")),))
    task = make_task("llama", data=missing)
    with pytest.raises(DyntokError, match=r"missing\.txt.*no such file"):
        task.batches(None)
    only = make_task("llama", replace(CONFIG, identity_only=True), data=missing)
    assert isinstance(next(only.batches(None)).batch, IdentityBatch)
    assert "missing" not in str(only.settings)


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


def test_tokens_that_are_read_in_part_are_counted(task, loaded, data):
    assert loaded[3].cut == 0
    longest = (loaded[3].batch.forms != task.hypernet_config.pad_id).sum(1)
    short = replace(task._preparation, surface_length=2)
    (cut,) = itertools.islice(language_batches(data, short, seed=0), 1)
    np.testing.assert_array_equal(cut.batch.ids, loaded[3].batch.ids)
    assert cut.cut == (longest > 2).sum() > 10


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
    shape = small_shape(tiny_llama(own), own)
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
