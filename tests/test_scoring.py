"""Prompts that do not fit, and choices in batches."""

from __future__ import annotations

import copy
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_folders import decoder, folders

from dyntok_jax.dynamic_model import load
from dyntok_jax.scoring import cut_left, right_aligned, score, scores_of_hidden
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.types import DyntokError

__all__ = ["decoder", "folders"]


def test_a_prompt_is_cut_at_its_beginning_behind_what_stands_before_it():
    base = BaseTokens(
        np.array([1, 10, 11, 12, 13], np.int32),
        [1, "a", "b", "c", "d"],
        np.array([0, 1, 1, 2, 2], np.int32),
    )
    cut = cut_left(base, prefix=1, room=3)
    assert cut.tokens == [1, "c", "d"] and cut.ids.tolist() == [1, 12, 13]
    assert cut.units.tolist() == [0, 2, 2] and cut.truncated == 2
    assert cut_left(base, prefix=1, room=5) is base


def test_the_last_word_of_a_prompt_stays_in_base_tokens(decoder):
    model = load(str(decoder), "fvt")
    items = [("The old lighthouses mind the lighthouses", [" here", " there"])]
    whole, ending, none, static = (
        score(model, items, reduction, kept_words=kept)[0]
        for reduction, kept in ((100, 0), (100, 1), (100, 99), (0, 0))
    )
    assert score(model, items, 100)[0] == ending
    assert (
        whole.tokens_dynamic < ending.tokens_dynamic < none.tokens_dynamic == static.tokens_static
    )
    assert none.scores == static.scores
    assert np.abs(np.subtract(ending.scores, whole.scores)).max() > 1e-3
    # The last word is one whatever else merges.
    (sentence,) = score(model, items, 100, boundary=Boundary.SENTENCE)
    assert sentence.tokens_dynamic == ending.tokens_dynamic - whole.tokens_dynamic + 2
    with pytest.raises(DyntokError, match="kept_words -1: valid is a number from 0"):
        score(model, items, 100, kept_words=-1)


def test_a_prompt_that_cannot_be_scored_is_named(decoder):
    model = load(str(decoder), "fvt")
    short, long = ("The", [" a"]), ("The", [" lighthouses"])
    with pytest.raises(DyntokError, match=r"prompt 2: a choice of 5 tokens leaves no room .* in 5"):
        score(model, [short, long], max_length=5)
    without = copy.copy(model.tokenizer)
    without.opening_id = None
    with pytest.raises(DyntokError, match=r"prompt 2: an empty text, .* no opening token"):
        score(dataclasses.replace(model, tokenizer=without), [short, ("", [" a"])])


def test_targets_stand_at_the_end():
    assert right_aligned([[5], [6, 7], []]).tolist() == [
        [-1, -1, -1, 5],
        [-1, -1, 6, 7],
        [-1, -1, -1, -1],
    ]
    assert right_aligned([[5], [6]]).tolist() == [[5], [6]]


def test_log_probabilities_of_the_last_tokens_and_whether_they_are_the_best():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((4, 5, 8)).astype(np.float32)
    rows = rng.standard_normal((30, 8)).astype(np.float32)
    logits = np.asarray(hidden, np.float64) @ rows.T
    best = logits.argmax(-1)
    worse = (best[1, 2:4] + [0, 1]) % 30
    # Of three targets, two behind the best and one worse token, padding alone, and one.
    targets = [best[0, 1:4].tolist(), worse.tolist(), [], best[3, 3:4].tolist()]
    table = right_aligned(targets)
    assert table.shape == (4, 4)
    found = scores_of_hidden(jnp.asarray(hidden), jnp.asarray(table), jnp.asarray(rows))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = [
        sum(log_probs[row, 4 - len(ids) + i, token] for i, token in enumerate(ids))
        for row, ids in enumerate(targets)
    ]
    np.testing.assert_allclose(found.log_probs, wanted, atol=1e-5)
    assert found.greedy.tolist() == [True, False, True, True]
