"""Distillation of output rows: what they are scored against, and by whose states."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from dyntok_jax.config import read_config
from dyntok_jax.large_vocabulary.vocabulary import write_vocabulary
from dyntok_jax.merging.batch import DynamicTokens
from dyntok_jax.sharding import apply
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.text.surface_forms import pieces
from dyntok_jax.types import DyntokError
from train.config import HypernetRun, HypernetShape
from train.data import DataConfig
from train.distill_config import DistillConfig
from train.distill_losses import scored_positions
from train.hypernet import make_task
from train.loop import TrainingConfig
from train.preparation import _with_its_words
from train.text_sources import TextSource

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "In 1999 there were 24 lighthouses on this coast; today only 7 of them are lit.",
    "Der Großvater erzählte den Kindern jeden Abend Geschichten über ferne Länder.",
] * 4
NEW, DRAWN = 90, 12


@pytest.fixture
def vocabulary(decoder, tmp_path):
    """A large vocabulary: pairs of the decoder's tokens."""
    tokenizer = BaseTokenizer.from_folder(decoder)
    known = set(tokenizer.spelled().values())
    own = [token for _, token in sorted(tokenizer.spelled().items()) if token.isalpha()]
    pairs = [a + b for a, b in zip(own, own[7:], strict=False) if a + b not in known]
    folder = tmp_path / "vocabulary"
    write_vocabulary(folder, tokenizer, list(dict.fromkeys(pairs))[:NEW], "tiny", {})
    return folder


@pytest.fixture
def make(decoder, tmp_path):
    """Makes a task of the decoder."""
    path = tmp_path / "xx.txt"
    path.write_text("\n".join(TEXTS), "utf-8")
    source = TextSource("xx", files=str(path))

    def run(separate_output=True, model=decoder, objective: Any = "distill", **distill):
        sizes = {"sequences": 8, "max_length": 32, "merge_rates": (100.0, 100.0)}
        return make_task(
            HypernetRun(
                str(model),
                DataConfig((source,), texts=16, workers=0),
                TrainingConfig(tmp_path / "run", steps=1),
                objective=objective,
                hypernet=HypernetShape(16, 16, 1, 2, 6, separate_output=separate_output),
                distill=DistillConfig(**sizes | distill),
            )
        )

    return run


def shift(batch):
    """What is added to the scores of all rows."""
    return np.concatenate([batch.short_shift, batch.long_shift])


def test_drawn_tokens_stand_for_all_of_the_vocabulary(make, vocabulary):
    task = make(output=1.0, vocabulary=vocabulary, drawn=DRAWN)
    plain = next(make(output=1.0).batches(None)).batch
    batch = next(task.batches(None)).batch
    for name in ("base_ids", "mask", "own", "last"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(plain, name))
    forms = np.concatenate([np.pad(batch.short, ((0, 0), (0, 3)), constant_values=-1), batch.long])
    pad_id = task.hypernet_config.pad_id
    is_padding = forms[:, 0] == pad_id
    np.testing.assert_array_equal(np.isneginf(shift(batch)), is_padding)
    used = np.unique(batch.ids[batch.mask])
    used = used[used >= len(batch.own)] - len(batch.own)
    assert (shift(batch)[used] == 0).all()
    rest = np.setdiff1d(np.flatnonzero(~is_padding), used)
    assert 0 < len(rest) <= DRAWN
    np.testing.assert_allclose(shift(batch)[rest], math.log(NEW / DRAWN), rtol=1e-6)
    again = next(make(output=1.0, vocabulary=vocabulary, drawn=DRAWN).batches(None)).batch
    for name, part in batch._asdict().items():
        np.testing.assert_array_equal(getattr(again, name), part)


def test_drawn_tokens_of_the_batch_do_not_change_the_others_share(make, vocabulary):
    """Drawing all of them is the whole vocabulary: each token stands for itself."""
    preparation = make(output=1.0, vocabulary=vocabulary, drawn=NEW).preparation
    tokens = list(preparation._further)
    merged = DynamicTokens([*tokens[:3], tokens[0]], np.ones(4, np.int32))
    base = BaseTokens(np.zeros(4, np.int32), ["a"] * 4, np.arange(4))
    batch, cut = preparation.arrays([base], [merged], tokens)
    lengths = np.array([len(pieces(token, preparation._tokenizer)) for token in tokens])
    assert cut == (lengths > preparation.surface_length).sum()
    assert np.isfinite(shift(batch)).sum() == NEW and shift(batch).max() == 0
    batch, _ = preparation.arrays([base], [merged], tokens[: NEW // 2])
    found = shift(batch)[np.isfinite(shift(batch))]
    np.testing.assert_allclose(np.unique(found), [0, math.log(2)], rtol=1e-6)
    assert (found == 0).sum() == 3


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_output_loss_is_a_softmax_over_both_vocabularies(make, vocabulary, share):
    """Against a loop over positions, with the whole teacher's states behind a short student."""
    task = make(
        output=1.0, layers=1, vocabulary=vocabulary, drawn=DRAWN, scored=20,
        prompt_share=(share, share),
    )  # fmt: skip
    batch, key = jax.tree.map(jnp.asarray, next(task.batches(None)).batch), jax.random.key(3)
    params = jax.tree.map(
        lambda x: x + 0.05 * np.random.default_rng(x.size).normal(size=x.shape).astype(x.dtype),
        task.init(key),
    )
    _, parts = jax.jit(task.loss)(params, task.frozen, batch, key)
    predicted = jax.jit(task.predicted)(params, task.frozen, batch)
    own = np.asarray(task.frozen["source"].output, np.float64)
    states = np.asarray(
        apply(
            task.whole,
            task.frozen["whole"],
            task.frozen["source"].input,
            batch.base_ids,
            batch.base_mask,
            mesh=task.mesh,
        ),
        np.float64,
    )
    losses = []
    for row, place in zip(*map(np.asarray, scored_positions(batch.mask, key, 20)), strict=True):
        state = states[row, batch.last[row, place]]
        beyond = np.asarray(predicted.output, np.float64) @ state + shift(batch)
        scores = np.concatenate([own @ state, beyond])
        index = batch.ids[row, place + 1]
        known = index < len(batch.own)
        target = batch.own[index] if known else len(own) + index - len(batch.own)
        # Behind a prompt nothing merges, and so nothing is learned of what would have.
        if place + 1 < batch.prompt_length[row]:
            losses.append(logsumexp(scores) - scores[target])
    assert len(losses) == 20 if share == 1 else 0 < len(losses) < 20
    assert float(parts["output"]) == pytest.approx(np.mean(losses), rel=1e-4)
    assert "divergence" not in parts


def test_behind_a_prompt_nothing_merges(make):
    task = make(output=1.0, prompt_share=(0.4, 0.8))
    batch = next(task.batches(None)).batch
    whole = next(make(output=1.0).batches(None)).batch
    np.testing.assert_array_equal(batch.base_ids, whole.base_ids)
    np.testing.assert_array_equal(whole.prompt_length, whole.mask.sum(1))
    ends = []
    for row, prompt in enumerate(batch.prompt_length):
        end = int((batch.owner[row] < prompt).sum())
        ends.append(end)
        count = int(batch.base_mask[row].sum())
        behind = batch.owner[row, end:count]
        np.testing.assert_array_equal(behind, prompt + np.arange(count - end))
        # The prompt is whole words, merged as they would be in the whole.
        assert whole.owner[row, end] > whole.owner[row, end - 1]
        np.testing.assert_array_equal(batch.owner[row, :end], whole.owner[row, :end])
    # Drawn for each sequence: words alone do not spread the ends so far.
    assert 0.2 * 32 < min(ends) < max(ends) - 7 and max(ends) <= 0.8 * 32


@pytest.mark.parametrize("repeated", [0.5, 1.0])
def test_repeated_sequences_are_a_prompt_and_its_words_in_base_tokens(make, vocabulary, repeated):
    drawing: dict[str, Any] = {"output": 1.0, "vocabulary": vocabulary, "drawn": DRAWN}
    task = make(prompt_share=(0.5, 0.5), repeated_words=repeated, **drawing)
    batch = next(task.batches(None)).batch
    whole = next(make(**drawing).batches(None)).batch
    # The other draws are those of whole sequences.
    assert np.isfinite(shift(batch)).sum() > DRAWN // 2
    stands_for = shift(batch)[np.isfinite(shift(batch)) & (shift(batch) > 0)]
    assert abs(len(stands_for) - (shift(whole)[np.isfinite(shift(whole))] > 0).sum()) < DRAWN // 2
    np.testing.assert_array_equal(batch.base_ids[:, :16], whole.base_ids[:, :16])
    again = (np.sort(batch.base_ids[:, 16:]) == np.sort(whole.base_ids[:, :16])).all(1)
    assert (batch.base_ids[again, 16:] != whole.base_ids[again, :16]).any()
    same = (batch.base_ids == whole.base_ids).all(1)
    assert (again != same).all()
    assert again.all() if repeated == 1 else again.any() and same.any()
    assert (batch.prompt_length < 16).any()
    for row, prompt in enumerate(batch.prompt_length):
        assert (np.diff(batch.owner[row, 15:]) == 1).all() and batch.owner[row, 15] >= prompt - 1


def cut(tokens: list[Any], units: np.ndarray) -> list[str]:
    starts = np.flatnonzero(np.diff(units)) + 1
    return ["".join(map(str, word)) for word in np.split(np.array(tokens, object), starts)]


@pytest.mark.parametrize("opening", [[7], []])
def test_words_come_again_whole_in_another_order_without_the_opening_token(opening):
    words = ["ab", "c", "def", "g", "hi", "k", "lmn", "op"]
    tokens = [*opening, *"".join(words)]
    units = np.repeat(
        np.arange(1 - len(opening), 9), [*map(len, opening and ["7"]), *map(len, words)]
    )
    half, behind = len(tokens), len(tokens) - len(opening)
    base = BaseTokens(
        np.arange(2 * half, dtype=np.int32),
        [*tokens, *"".join(words).upper(), *opening],
        np.r_[units, np.full(half, 9)].astype(np.int32),
    )
    rng, orders, neighbours = np.random.default_rng(0), set(), 0
    for _ in range(200):
        twice = _with_its_words(base, rng)
        assert twice.tokens[:half] == tokens and len(twice.tokens) == half + behind
        assert [base.tokens[i] for i in twice.ids] == twice.tokens
        assert cut(twice.tokens[:half], twice.units[:half]) == [*map(str, opening), *words]
        # What is repeated is in base tokens anyway.
        assert (np.diff(twice.units[half - 1 :]) == 1).all() and twice.units.dtype == np.int32
        again = cut(twice.tokens[half:], base.units[twice.ids[half:]])
        assert sorted(again) == sorted(words)
        assert again[0] == words[0] and again[-1] == words[-1]
        orders.add(tuple(again))
        neighbours += sum(words.index(b) - words.index(a) == 1 for a, b in pairwise(again))
    # Half of the words stay behind the word before them, and a few of the others get there again.
    assert len(orders) > 50 and 0.4 < neighbours / (200 * 7) < 0.7


def test_too_few_words_do_not_come_again():
    for units in ([0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 3, 3], [0, 0, 0, 0, 0, 0], [0, 1]):
        base = BaseTokens(
            np.arange(len(units), dtype=np.int32), [*"abcdef"[: len(units)]], np.array(units)
        )
        assert _with_its_words(base, np.random.default_rng(0)) is base


def test_rounded_products_are_near(make):
    losses, gradients = [], []
    task = make(output=1.0)
    batch = next(task.batches(None)).batch
    params = task.init(jax.random.key(0))
    for products in ("float32", "bfloat16"):
        with jax.default_matmul_precision(products):
            step = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
            (loss, _), gradient = step(params, task.frozen, batch, jax.random.key(0))
        losses.append(float(loss))
        gradients.append(jax.flatten_util.ravel_pytree(gradient)[0])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    cosine = gradients[0] @ gradients[1] / np.prod([np.linalg.norm(g) for g in gradients])
    assert cosine > 0.99


def test_a_run_that_would_learn_nothing_is_refused(make, encoder, decoder):
    for model, losses in ((encoder, ("hidden", "pooled")), (decoder, ("hidden",))):
        with pytest.raises(DyntokError, match=r"distill.hidden.*all have weight 0"):
            make(model=model, separate_output=False, **dict.fromkeys(losses, 0.0))


def test_losses_and_heads_that_are_not_there(make, encoder):
    with pytest.raises(DyntokError, match="an encoder reads no prompts"):
        make(separate_output=False, model=encoder, prompt_share=(0.5, 1.0))
    with pytest.raises(DyntokError, match=r"distill\.prefix: a decoder reads"):
        make(prefix="query: ")
    with pytest.raises(DyntokError, match=r"distill\.shortfall: a decoder makes no vectors"):
        make(shortfall=1.0)
    with pytest.raises(DyntokError, match="leave distill"):
        make(divergence=1.0, layers=1)
    with pytest.raises(DyntokError, match="an encoder predicts no next tokens"):
        make(model=encoder)
    with pytest.raises(DyntokError, match="an encoder predicts no next tokens"):
        make(separate_output=False, model=encoder, output=1.0)
    for wrong in ({"output": 0.0}, {"output": 1.0, "drawn": 0}, {"output": 1.0, "drawn": -3}):
        with pytest.raises(DyntokError, match=r"distill\.vocabulary: tokens of it are drawn"):
            make(vocabulary=Path("any"), **wrong)
    with pytest.raises(DyntokError, match="takes it from the model"):
        make(objective="zett")


def test_a_vocabulary_of_another_model_is_refused(make, folders, tmp_path):
    other = BaseTokenizer.from_folder(folders["unigram"])
    write_vocabulary(tmp_path / "other", other, ["ab"], "other", {})
    task = make(output=1.0, vocabulary=tmp_path / "other")
    with pytest.raises(DyntokError, match="built for other, and this model's own vocabulary"):
        next(task.batches(None))


def test_settings_of_the_file_are_checked(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "{model: m, data: {sources: [{language: en, files: x}]}, training: {out: o, steps: 1}}"
    )
    assert read_config(HypernetRun, path).training.products == "float32"
    with pytest.raises(DyntokError, match=r"bfloat17"):
        read_config(HypernetRun, path, ["training.products=bfloat17"])
    with pytest.raises(DyntokError, match=r"distill\.vocabulary: tokens of it are drawn"):
        read_config(HypernetRun, path, ["distill.vocabulary=any"])
