"""Steps that read drafts as well: prompt lookup decoding.

What comes next has often been said before, in the text or its prompt. A step takes as long as its
parameters take to be read, for a few tokens nearly as for one: so it reads, behind the token chosen
last, a draft of what follows, and accepts what it would have chosen itself (Leviathan et al. 2023,
arXiv 2211.17192, with the drafts of https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

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


class History(NamedTuple):
    """Texts so far, where drafts are looked up.

    Attributes:
        tokens: (B, T) of each prompt, unmerged, and behind them those chosen, with room for all
            that will be and a draft more.
        prompt: (B,) how many are the prompt's.
    """

    tokens: Int[Array, "B T"]
    prompt: Int[Array, " B"]

    def draft(self, chosen: Int[Array, ""], size: int) -> Int[Array, "B size"]:
        """What followed each text's last two tokens when they last occurred, or its last one.

        Where fewer tokens have followed they are taken again, as in a text that repeats itself;
        where nothing occurred before, a draft is of any tokens.

        Args:
            chosen: tokens behind each prompt, at least 1.
            size: of the draft.
        """

        def one(tokens: Int[Array, " T"], known: Int[Array, ""]) -> Int[Array, " size"]:
            places = jnp.arange(len(tokens))
            occurs = (tokens == tokens[known - 1]) & (places < known - 1)
            both = (jnp.roll(tokens, 1) == tokens[known - 2]) & (places > 0)
            last = jnp.argmax(jnp.where(occurs, places + len(tokens) * both, -1))
            followed = jnp.maximum(known - 1 - last, 1)
            return tokens[last + 1 + jnp.arange(size) % followed]

        return jax.vmap(one)(self.tokens, self.prompt + chosen)

    def followed_by(self, new: Int[Array, "B N"], chosen: Int[Array, ""]) -> History:
        """With new tokens behind those that were chosen."""
        write = jax.vmap(lax.dynamic_update_slice)
        return self._replace(tokens=write(self.tokens, new, (self.prompt + chosen,)))


class Accepted(NamedTuple):
    """What a step adds.

    Attributes:
        count: tokens of each text, one more than were drafted rightly in all of them; those behind
            are void.
        tokens: (B, N) with one more than a draft; -1 after a text's end.
        active: (B,) whether the text goes on.
    """

    count: Int[Array, ""]
    tokens: Int[Array, "B N"]
    active: Bool[Array, " B"]


def accept(
    drafts: Int[Array, "B size"],
    best: Int[Array, "B N"],
    active: Bool[Array, " B"],
    ends: Int[Array, " E"],
    most: int | Int[Array, ""],
) -> Accepted:
    """Accepts of drafts what would have been chosen.

    Args:
        drafts: read behind the last token.
        best: the choices after the last token and after each of the draft.
        active: whether the text went on.
        ends: ids of tokens that end a text.
        most: tokens to accept.
    """
    places = jnp.arange(best.shape[1])
    is_end = jnp.isin(best, ends)
    over = jnp.cumsum(is_end, axis=1) > is_end
    tokens = jnp.where(active[:, None] & ~over, best, NO_TOKEN)
    right = 1 + jnp.cumprod(drafts == tokens[:, :-1], axis=1).sum(axis=1)
    # A text that ends in the step, or has ended, holds the others up no more.
    goes_on = active & ~(is_end & (places < right[:, None])).any(axis=1)
    count = jnp.minimum(jnp.where(goes_on, right, len(places)).min(), most)
    return Accepted(count, tokens, active & ~(is_end & (places < count)).any(axis=1))


@partial(
    jax.jit,
    static_argnames=("module", "mesh", "plan", "k", "chunk", "size"),
    donate_argnames=("state", "history"),
)
def several(
    params: Any,
    input_rows: Float[Array, "V D"],
    search: Any,
    rules: Rules,
    state: State,
    history: History,
    least: Int[Array, ""],
    most: Int[Array, ""],
    *,
    module: UnrolledDecoder,
    mesh: Mesh,
    plan: Plan,
    k: int,
    chunk: int,
    size: int,
) -> tuple[State, History, Int[Array, "B N"], Int[Array, ""]]:
    """``programs.several`` with drafts: but for rounding the same tokens, in fewer steps.

    Args:
        params, input_rows, search, rules, state, module, mesh, plan, k: as there; the search
            without a codebook, the plan without penalties.
        history: with the last token; is given up.
        least, most: tokens to choose, as long as a text goes on; at least up to ``chunk``.
        chunk: N - size.
        size: of a draft.

    Returns:
        The state, the history, the tokens chosen and how many they are, -1 after a text's end; what
        stands behind them is void.
    """
    cache, length = state.cache, state.length

    def more(carry: tuple[Any, ...]) -> Any:
        done, state, *_ = carry
        return (done < least) & state.active.any()

    def body(carry: tuple[Any, ...]) -> Any:
        done, state, history, recent, tokens = carry
        drafts = history.draft(state.count, size)
        fed = jnp.concatenate([state.token[:, None], drafts], axis=1)
        rows = rows_of(fed.ravel(), input_rows, None).reshape(*fed.shape, -1)
        hidden, recent = read_beside(params, rows, cache, length, recent, done, module, mesh)
        best = _best_of_each(hidden, search, rules, state, plan, k)
        new = accept(drafts, best, state.active, rules.ends, most - done)
        tokens = lax.dynamic_update_slice(tokens, new.tokens, (0, done))
        history = history.followed_by(new.tokens, state.count)
        state = state._replace(
            length=state.length + new.count * state.active,
            token=jnp.take(new.tokens, new.count - 1, axis=1),
            active=new.active,
            count=state.count + new.count,
        )
        return done + new.count, state, history, recent, tokens

    tokens = jnp.full((len(state.token), chunk + size), NO_TOKEN, jnp.int32)
    with axis_rules(mesh):
        recent = emptied(cache, chunk + size)
    begun = jnp.int32(0), state._replace(cache=()), history, recent, tokens
    done, state, history, recent, tokens = lax.while_loop(more, body, begun)
    with axis_rules(mesh):
        return state._replace(cache=settled(cache, recent, length)), history, tokens, done


def _best_of_each(
    hidden: Float[Array, "B N D"], search: Any, rules: Rules, state: State, plan: Plan, k: int
) -> Int[Array, "B N"]:
    """The token that follows each of the tokens read, by the rules and draws of its place."""
    batch, reads, width = hidden.shape
    candidates = searched(search, hidden.reshape(-1, width), k)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    keys = fold(state.keys, state.count + jnp.arange(reads)).ravel()
    seen = jnp.zeros((batch * reads, 0), bool)
    place = choose(candidates, seen, rules.ends, keys, rules.sampling, plan)
    token = jnp.take_along_axis(candidates.ids, place[:, None], axis=1)
    return token.reshape(batch, reads)
