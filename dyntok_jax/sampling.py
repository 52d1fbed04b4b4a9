"""Choosing the next token among candidates, by the rules and in the order of transformers.

Every function takes candidates in any order and gives the same ones with other logits; a candidate
that is out of the question has -inf. https://huggingface.co/docs/transformers/internal/generation_utils
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Key

from dyntok_jax.large_vocabulary.index import Candidates


class Sampling(NamedTuple):
    """Numbers of the rules; changing them compiles nothing anew.

    Attributes:
        temperature: divides the logits.
        top_p: smallest total probability of the candidates that are kept.
        min_p: smallest probability that is kept, as a share of the largest.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen before.
        eos_bias: added to the logits of tokens that end a sequence.
    """

    temperature: float | Array = 1.0
    top_p: float | Array = 1.0
    min_p: float | Array = 0.0
    repetition_penalty: float | Array = 1.0
    eos_bias: float | Array = 0.0


class Plan(NamedTuple):
    """What of the rules is compiled.

    Attributes:
        greedy: take the best candidate; otherwise draw one.
        top_k: candidates that are kept; 0 for all.
        nucleus: whether there is a ``top_p``.
        penalized: whether there is a ``repetition_penalty``.
    """

    greedy: bool = True
    top_k: int = 0
    nucleus: bool = False
    penalized: bool = False


def penalize_seen(
    candidates: Candidates, seen: Bool[Array, "B V"], penalty: float | Array
) -> Candidates:
    """Makes tokens that occurred before less likely (Keskar et al. 2019, section 4.1).

    Args:
        candidates: of each sequence.
        seen: which tokens of the vocabulary stand in the prompt or were generated.
        penalty: above 1; below, such tokens become more likely.
    """
    before = jnp.take_along_axis(seen, jnp.maximum(candidates.ids, 0), axis=1)
    logits = candidates.logits
    less = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return candidates._replace(logits=jnp.where(before, less, logits))


def bias_ends(candidates: Candidates, ends: Int[Array, " E"], bias: float | Array) -> Candidates:
    """Adds to the logits of the tokens that end a sequence, where these are candidates."""
    is_end = jnp.isin(candidates.ids, ends)
    return candidates._replace(logits=candidates.logits + jnp.where(is_end, bias, 0.0))


def keep_top_k(candidates: Candidates, k: int) -> Candidates:
    """Keeps the ``k`` most likely ones, and those as likely as the last of them."""
    kept = min(k, candidates.logits.shape[1])
    least = lax.top_k(candidates.logits, kept)[0][:, -1:]
    return _at_least(candidates, least)


def keep_top_p(candidates: Candidates, p: float | Array) -> Candidates:
    """Keeps the fewest most likely ones whose probabilities add up to ``p`` (Holtzman 2020).

    Of several as likely as the last that is kept, the first ones in their order.
    """
    descending = -jnp.sort(-candidates.logits, axis=1)
    probabilities = jax.nn.softmax(descending, axis=1)
    before = jnp.cumsum(probabilities, axis=1) - probabilities
    within = (before < p).at[:, 0].set(True)
    least = jnp.where(within, descending, jnp.inf).min(1, keepdims=True)
    logits = candidates.logits
    above, last = logits > least, logits == least
    room = (within.sum(1) - above.sum(1))[:, None]
    kept = above | (last & (jnp.cumsum(last, axis=1) <= room))
    return candidates._replace(logits=jnp.where(kept, logits, -jnp.inf))


def keep_min_p(candidates: Candidates, p: float | Array) -> Candidates:
    """Keeps those at least ``p`` times as likely as the best one (Nguyen et al. 2024)."""
    best = candidates.logits.max(axis=1, keepdims=True)
    return _at_least(candidates, best + jnp.log(jnp.asarray(p, jnp.float32)))


def _at_least(candidates: Candidates, least: Array) -> Candidates:
    logits = candidates.logits
    return candidates._replace(logits=jnp.where(logits >= least, logits, -jnp.inf))


def choose(
    candidates: Candidates,
    seen: Bool[Array, "B V"],
    ends: Int[Array, " E"],
    keys: Key[Array, " B"],
    sampling: Sampling,
    plan: Plan,
) -> Int[Array, " B"]:
    """Which of its candidates each sequence takes, as a place among them.

    Args:
        candidates: of each sequence, in any order.
        seen: as in ``penalize_seen``; used with ``plan.penalized`` only.
        ends: ids of tokens that end a sequence.
        keys: of the draws, one a sequence; not used by a greedy plan.
        sampling: numbers of the rules.
        plan: which rules there are.
    """
    candidates = bias_ends(candidates, ends, sampling.eos_bias)
    if plan.penalized:
        candidates = penalize_seen(candidates, seen, sampling.repetition_penalty)
    if plan.greedy:
        return _best(candidates)
    logits = candidates.logits / sampling.temperature
    candidates = candidates._replace(logits=logits)
    if plan.top_k:
        candidates = keep_top_k(candidates, plan.top_k)
    if plan.nucleus:
        candidates = keep_top_p(candidates, sampling.top_p)
    candidates = keep_min_p(candidates, sampling.min_p)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    return _best(candidates._replace(logits=candidates.logits + noise))


def _best(candidates: Candidates) -> Int[Array, " B"]:
    """Place of the largest, the first of several; XLA's argmax is slower on CPUs."""
    scores = candidates.logits
    places = jnp.arange(scores.shape[1], dtype=jnp.int32)
    largest = scores == scores.max(axis=1, keepdims=True)
    return jnp.where(largest, places, len(places) - 1).min(axis=1)
