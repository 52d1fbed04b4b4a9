"""Rules of sampling against transformers' processors (tests/fixtures/record_generation.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyntok_jax.large_vocabulary.index import Candidates
from dyntok_jax.sampling import (
    Plan,
    Sampling,
    bias_ends,
    choose,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_seen,
)

RECORD: dict[str, Any] = json.loads(
    (Path(__file__).parent / "fixtures" / "generation.json").read_text()
)["rules"]
LOGITS = np.array(RECORD["logits"], np.float32)
SEEN = np.zeros(LOGITS.shape, bool)
for _row, _ids in zip(SEEN, RECORD["seen"], strict=True):
    _row[_ids] = True
ENDS = jnp.array([3, 7])
RULES = {
    "top_k": lambda c: keep_top_k(c, 4),
    "top_p": lambda c: keep_top_p(c, 0.8),
    "min_p": lambda c: keep_min_p(c, 0.1),
    "repetition_penalty": lambda c: penalize_seen(c, jnp.asarray(SEEN), 1.7),
    "eos_bias": lambda c: bias_ends(c, ENDS, 2.5),
}


def shuffled(seed: int = 0) -> Candidates:
    """All tokens as candidates, in another order than by id."""
    order = np.random.default_rng(seed).permutation(LOGITS.shape[1]).astype(np.int32)
    ids = np.broadcast_to(order, LOGITS.shape)
    return Candidates(jnp.asarray(ids), jnp.asarray(LOGITS[:, order]))


def recorded(name: str) -> np.ndarray:
    return np.array(
        [[-np.inf if x is None else x for x in row] for row in RECORD[name]], np.float32
    )


@pytest.mark.parametrize("name", list(RULES))
def test_a_rule_gives_transformers_logits(name):
    candidates = shuffled()
    ours, expected = RULES[name](candidates), recorded(name)
    np.testing.assert_array_equal(ours.ids, candidates.ids)
    by_id = np.empty_like(LOGITS)
    np.put_along_axis(by_id, np.asarray(ours.ids), np.asarray(ours.logits), axis=1)
    np.testing.assert_allclose(by_id, expected, rtol=1e-6)
    assert not np.array_equal(expected, LOGITS)


def test_of_candidates_as_likely_as_each_other_top_p_keeps_the_fewest():
    logits = jnp.log(jnp.array([[1.0, 1.0, 4.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 4.0]]) / 8)
    ids = jnp.broadcast_to(jnp.arange(5), logits.shape)
    for p, kept in ((0.4, 1), (0.6, 2), (0.7, 3), (0.95, 5)):
        found = np.isfinite(keep_top_p(Candidates(ids, logits), p).logits)
        assert found.sum(axis=1).tolist() == [kept, kept]
        assert found[0, 2] and found[1, 4] and (not found[1, 2] or kept > 3)


def test_draws_follow_all_rules_together():
    sampling = Sampling(2.5, 0.8, 0.1, 1.7, 2.5)
    plan = Plan(greedy=False, top_k=4, nucleus=True, penalized=True)
    candidates, draws = shuffled(1), 4000
    keys = jax.random.split(jax.random.key(0), (draws, 2))
    drawn = jax.jit(
        jax.vmap(lambda k: choose(candidates, jnp.asarray(SEEN), ENDS, k, sampling, plan))
    )
    places = np.asarray(drawn(keys))
    for row, logits in enumerate(recorded("all")):
        ids = np.asarray(candidates.ids)[row, places[:, row]]
        found = np.bincount(ids, minlength=len(logits)) / draws
        expected = np.exp(logits - logits.max())
        expected /= expected.sum()
        assert (found[expected == 0] == 0).all() and 1 < (expected > 0).sum() < 5
        np.testing.assert_allclose(found, expected, atol=0.03)


def test_greedy_takes_the_best_after_penalty_and_bias():
    keys, seen = jax.random.split(jax.random.key(0), 2), jnp.asarray(SEEN)
    candidates = shuffled(2)

    def taken(sampling: Sampling, penalized: bool = False) -> list[int]:
        place = choose(candidates, seen, ENDS, keys, sampling, Plan(penalized=penalized))
        return np.take_along_axis(np.asarray(candidates.ids), np.asarray(place)[:, None], 1)[
            :, 0
        ].tolist()

    assert taken(Sampling()) == LOGITS.argmax(axis=1).tolist()
    assert set(taken(Sampling(eos_bias=100.0))) <= {3, 7}
    assert set(taken(Sampling(eos_bias=-np.inf))).isdisjoint({3, 7})
    # Of several best ones the first, and any place where none can be taken.
    tied = Candidates(jnp.arange(3)[None], jnp.array([[1.0, 2.0, 2.0]]))
    none = Candidates(jnp.arange(3)[None], jnp.full((1, 3), -jnp.inf))
    for several in (tied, none):
        place = choose(several, seen[:1], ENDS[:0], keys[:1], Sampling(), Plan())
        assert place.tolist() == [int(np.argmax(several.logits))]
    punished = [ids.tolist() for ids in taken_from(Sampling(repetition_penalty=1e6))]
    assert taken(Sampling(repetition_penalty=1e6), penalized=True) == punished


def taken_from(sampling: Sampling) -> np.ndarray:
    logits = np.where(
        SEEN,
        np.where(
            LOGITS > 0, LOGITS / sampling.repetition_penalty, LOGITS * sampling.repetition_penalty
        ),
        LOGITS,
    )
    return logits.argmax(axis=1)


def test_absent_candidates_are_never_drawn():
    ids = jnp.array([[5, -1, -1], [2, 8, -1]])
    candidates = Candidates(ids, jnp.where(ids < 0, -jnp.inf, 0.0))
    seen = jnp.zeros((2, 9), bool)
    plan, keys = Plan(False, 3, True, True), jax.random.split(jax.random.key(1), (200, 2))
    sampling = Sampling(2.0, 0.99, 0.0, 1.2, 1.0)
    places = jax.vmap(lambda k: choose(candidates, seen, ENDS, k, sampling, plan))(keys)
    assert set(np.asarray(places)[:, 0].tolist()) == {0}
    assert set(np.asarray(places)[:, 1].tolist()) == {0, 1}
