"""Steps that read guessed tokens as well: prompt lookup decoding.

What comes next has often been said before, in the text or its prompt. A step takes as long as its
parameters take to be read, for a few tokens nearly as for one: so it reads, behind the token chosen
last, what followed that token before, and keeps what it would have chosen itself (Leviathan et al.
2023, arXiv 2211.17192, with the guesses of https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from dyntok_jax.generation.programs import (
    NO_TOKEN,
    Rules,
    State,
    read_beside,
    rows_of,
    searched,
)
from dyntok_jax.models.decoder_step import UnrolledDecoder, emptied, settled
from dyntok_jax.sampling import Plan, choose
from dyntok_jax.sharding import axis_rules


def guess(history: Int[Array, "B H"], known: Int[Array, " B"], count: int) -> Int[Array, "B G"]:
    """What followed a text's last two tokens when they last occurred, or its last one.

    Where fewer tokens have followed they are taken again, as in a text that repeats itself; where
    nothing occurred before, the guesses are any.

    Args:
        history: tokens of each text, its prompt's first.
        known: how many there are, at least 1; what is behind them is not read.
        count: G.
    """

    def one(history: Int[Array, " H"], known: Int[Array, ""]) -> Int[Array, " G"]:
        places = jnp.arange(len(history))
        occurs = (history == history[known - 1]) & (places < known - 1)
        both = (jnp.roll(history, 1) == history[known - 2]) & (places > 0)
        last = jnp.argmax(jnp.where(occurs, places + len(history) * both, -1))
        followed = jnp.maximum(known - 1 - last, 1)
        return history[last + 1 + jnp.arange(count) % followed]

    return jax.vmap(one)(history, known)


@partial(
    jax.jit,
    static_argnames=("module", "mesh", "plan", "k", "chunk", "guesses"),
    donate_argnames=("state",),
)
def several(
    params: Any,
    input_rows: Float[Array, "V D"],
    search: Any,
    rules: Rules,
    state: State,
    history: Int[Array, "B H"],
    known: Int[Array, " B"],
    tokens_wanted: tuple[Int[Array, ""], Int[Array, ""]],
    *,
    module: UnrolledDecoder,
    mesh: Mesh,
    plan: Plan,
    k: int,
    chunk: int,
    guesses: int,
) -> tuple[State, Int[Array, "B N"], Int[Array, ""]]:
    """``programs.several`` with guesses: the same tokens, in fewer steps.

    A step of a batch goes on by as many tokens as were guessed right in all its texts.

    Args:
        params, input_rows, search, rules, state, module, mesh, plan, k: as there; the search
            without a codebook, the plan without penalties.
        history, known: as in :func:`guess`, with room for all new tokens and G behind them.
        tokens_wanted: at least, up to ``chunk``, and at most.
        chunk: N - G.
        guesses: G.

    Returns:
        The state, the tokens chosen, and how many they are of each text; -1 after a text's end.
    """
    cache, length = state.cache, state.length
    least, most = tokens_wanted
    reads = jnp.arange(guesses + 1)

    def more(carry: tuple[Any, ...]) -> Any:
        done, state, *_ = carry
        return (done < least) & state.active.any()

    def body(carry: tuple[Any, ...]) -> Any:
        done, state, recent, tokens, history, known = carry
        guessed = guess(history, known, guesses)
        fed = jnp.concatenate([state.token[:, None], guessed], axis=1)
        rows = rows_of(fed.ravel(), input_rows, None).reshape(*fed.shape, -1)
        hidden, recent = read_beside(params, rows, cache, length, recent, done, module, mesh)
        best = _best_of_each(hidden, search, rules, state, plan, k)
        is_end = jnp.isin(best, rules.ends)
        over = jnp.cumsum(is_end, axis=1) > is_end
        best = jnp.where(state.active[:, None] & ~over, best, NO_TOKEN)
        right = 1 + jnp.cumprod(guessed == best[:, :-1], axis=1).sum(axis=1)
        # Texts that end hold the others up no more.
        goes_on = state.active & ~(is_end & (reads < right[:, None])).any(axis=1)
        gained = jnp.minimum(jnp.where(goes_on, right, guesses + 1).min(), most - done)
        ended = (is_end & (reads < gained)).any(axis=1)
        state = state._replace(
            length=state.length + gained * state.active,
            token=jnp.take(best, gained - 1, axis=1),
            active=state.active & ~ended,
            count=state.count + gained,
        )
        tokens = lax.dynamic_update_slice(tokens, best, (0, done))
        history = jax.vmap(lax.dynamic_update_slice)(history, best, (known,))
        return done + gained, state, recent, tokens, history, known + gained

    tokens = jnp.full((len(state.token), chunk + guesses), NO_TOKEN, jnp.int32)
    with axis_rules(mesh):
        recent = emptied(cache, chunk + guesses)
    begun = jnp.int32(0), state._replace(cache=()), recent, tokens, history, known
    done, state, recent, tokens, *_ = lax.while_loop(more, body, begun)
    with axis_rules(mesh):
        return state._replace(cache=settled(cache, recent, length)), tokens, done


def _best_of_each(
    hidden: Float[Array, "B T D"], search: Any, rules: Rules, state: State, plan: Plan, k: int
) -> Int[Array, "B T"]:
    """The token that follows each of the tokens read, by the rules and draws of its place."""
    batch, reads, width = hidden.shape
    candidates = searched(search, hidden.reshape(-1, width), k)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    keys = fold(state.keys, state.count + jnp.arange(reads)).ravel()
    seen = jnp.zeros((batch * reads, 0), bool)
    place = choose(candidates, seen, rules.ends, keys, rules.sampling, plan)
    token = jnp.take_along_axis(candidates.ids, place[:, None], axis=1)
    return token.reshape(batch, reads)
