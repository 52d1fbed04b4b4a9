"""The compiled programs of generation: prefill, and steps over the cache.

A step reads the token chosen last, searches for the best next ones and chooses. Where the search
runs on the devices, a loop of steps is one program; otherwise the host searches between them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from dyntok_jax.large_vocabulary.index import Candidates
from dyntok_jax.models.decoder import Decoder
from dyntok_jax.models.decoder_step import UnrolledDecoder, emptied, layer_caches, settled
from dyntok_jax.models.heads import step_logits
from dyntok_jax.models.kv_cache import KeyValues
from dyntok_jax.models.layers import constrain
from dyntok_jax.models.products import precision
from dyntok_jax.sampling import Plan, Sampling, choose
from dyntok_jax.sharding import apply, axis_rules, gathered

NO_TOKEN = -1
"""Stands where a sequence has ended."""


class State(NamedTuple):
    """Sequences that are being generated.

    Attributes:
        cache: keys and values of every layer.
        length: (B,) tokens in the cache; in a loop of steps with those beside it.
        token: (B,) the token chosen last, not yet in the cache.
        active: (B,) whether the sequence goes on.
        seen: (B, V) tokens that stand in it; (B, 0) where no rule asks.
        keys: (B,) random keys of the sequences.
        count: tokens chosen so far.
    """

    cache: tuple[KeyValues, ...]
    length: Int[Array, " B"]
    token: Int[Array, " B"]
    active: Bool[Array, " B"]
    seen: Bool[Array, "B V"]
    keys: Key[Array, " B"]
    count: Int[Array, ""]


class Codebook(NamedTuple):
    """Tokens beside the vocabulary, with ids behind it, of each sequence its own.

    Attributes:
        input, output: (B, C, D) rows.
        used: (B, C) whether there is a token.
        bias: (B, C) added to their logits, or None.
    """

    input: Float[Array, "B C D"]
    output: Float[Array, "B C D"]
    used: Bool[Array, "B C"]
    bias: Float[Array, "B C"] | None = None


class WholeVocabulary(NamedTuple):
    """All tokens of the vocabulary, and of the codebook, as candidates, by id.

    Attributes:
        rows: (V, D) output rows.
        codebook: or None.
    """

    rows: Float[Array, "V D"]
    codebook: Codebook | None = None

    def search(self, hidden: Float[Array, "B D"], k: int) -> Candidates:
        """Every token's logits; ``k`` is not used."""
        del k
        scores = step_logits(hidden, self.rows)
        if self.codebook is not None:
            extra = jnp.einsum(
                "bd,bcd->bc",
                hidden,
                self.codebook.output.astype(hidden.dtype),
                precision=precision(hidden.dtype),
                preferred_element_type=jnp.float32,
            )
            if self.codebook.bias is not None:
                extra = extra + self.codebook.bias
            extra = jnp.where(self.codebook.used, extra, -jnp.inf)
            scores = jnp.concatenate([scores, extra], axis=1)
        ids = jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)
        return Candidates(ids, scores)


class Rules(NamedTuple):
    """What every choice needs to know.

    Attributes:
        sampling: numbers of the rules.
        ends: (E,) ids of tokens that end a sequence.
    """

    sampling: Sampling
    ends: Int[Array, " E"]


@partial(jax.jit, static_argnames=("module", "mesh", "room"))
def prefill(
    params: Any,
    table: Float[Array, "U D"],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    module: Decoder,
    mesh: Mesh,
    room: int,
) -> tuple[Float[Array, "B D"], tuple[KeyValues, ...]]:
    """Reads prompts, padded right.

    Args:
        params: of the decoder.
        table, ids, mask: as in ``sharding.forward``.
        module, mesh: the network and its devices.
        room: S, tokens that the cache holds.

    Returns:
        The hidden state of each sequence's last token, and every layer's cache.
    """

    def method(module: Any, rows: Any, ids: Any, mask: Any) -> Any:
        hidden, kept = gathered(module, rows, ids, mask, True)
        last = jnp.maximum(mask.sum(axis=1) - 1, 0)
        hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        return constrain(hidden, "B", None), layer_caches(kept, room)

    return apply(module, params, table, ids, mask, mesh=mesh, method=method)


def read_beside(
    params: Any,
    embeddings: Float[Array, "B T D"],
    cache: tuple[KeyValues, ...],
    length: Int[Array, " B"],
    recent: tuple[KeyValues, ...] | None,
    count: int | Int[Array, ""],
    module: UnrolledDecoder,
    mesh: Mesh,
) -> tuple[Float[Array, "B T D"], tuple[KeyValues, ...]]:
    """Hidden states of the tokens that follow, and the recent tokens with them.

    Args:
        params, module, mesh: as in :func:`several`.
        embeddings: rows of the tokens.
        cache, length, recent, count: as ``decoder_step.UnrolledDecoder`` has them.
    """

    def method(module: Any, rows: Any, ids: Any, mask: Any, *inputs: Any) -> Any:
        del ids, mask
        hidden, recent = module(constrain(rows, "B", "T", None), *inputs)
        return constrain(hidden, "B", "T", None), recent

    inputs = cache, length, recent, count
    return apply(module, params, embeddings, None, None, *inputs, mesh=mesh, method=method)


def read(
    params: Any,
    embeddings: Float[Array, "B T D"],
    cache: tuple[KeyValues, ...],
    length: Int[Array, " B"],
    module: UnrolledDecoder,
    mesh: Mesh,
) -> tuple[Float[Array, "B T D"], tuple[KeyValues, ...]]:
    """Hidden states of the tokens that follow, and the caches with them."""
    hidden, new = read_beside(params, embeddings, cache, length, None, 0, module, mesh)
    with axis_rules(mesh):
        return hidden, settled(cache, new, length)


@partial(jax.jit, static_argnames=("module", "mesh"), donate_argnames=("cache",))
def read_more(
    params: Any,
    table: Float[Array, "U D"],
    ids: Int[Array, "B T"],
    cache: tuple[KeyValues, ...],
    length: Int[Array, " B"],
    *,
    module: UnrolledDecoder,
    mesh: Mesh,
) -> tuple[Float[Array, "B T D"], tuple[KeyValues, ...]]:
    """:func:`read` as a program, of tokens given as ids into a table of rows."""
    return read(params, table[ids], cache, length, module, mesh)


def chosen(
    state: State, candidates: Candidates, rules: Rules, plan: Plan
) -> tuple[State, Int[Array, " B"]]:
    """The state with each sequence's next token, and its place among the candidates."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.count)
    place = choose(candidates, state.seen, rules.ends, keys, rules.sampling, plan)
    token = jnp.take_along_axis(candidates.ids, place[:, None], axis=1)[:, 0]
    token = jnp.where(state.active, token, NO_TOKEN)
    seen = state.seen
    if plan.penalized:
        # Of a sequence that has ended, the last place: nobody asks any more.
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    active = state.active & ~jnp.isin(token, rules.ends)
    return state._replace(token=token, seen=seen, active=active, count=state.count + 1), place


@partial(jax.jit, static_argnames=("plan", "k"))
def first(
    state: State, hidden: Float[Array, "B D"], search: Any, rules: Rules, *, plan: Plan, k: int
) -> State:
    """Chooses the tokens that follow the prompts; ``search`` runs on the devices."""
    return chosen(state, searched(search, hidden, k), rules, plan)[0]


@partial(
    jax.jit,
    static_argnames=("module", "mesh", "plan", "k", "chunk"),
    donate_argnames=("state",),
)
def several(
    params: Any,
    input_rows: Float[Array, "V D"],
    search: Any,
    rules: Rules,
    state: State,
    steps: Int[Array, ""],
    *,
    module: UnrolledDecoder,
    mesh: Mesh,
    plan: Plan,
    k: int,
    chunk: int,
) -> tuple[State, Int[Array, "B N"]]:
    """Up to ``steps`` steps, or until all sequences have ended.

    Args:
        params: as ``decoder_step.unrolled`` makes them.
        input_rows: rows of the output vocabulary, to read what was chosen.
        search: something with ``search(hidden, k)`` that can be traced; a pytree.
        rules: of the choice.
        state: is given up.
        steps: at most ``chunk``.
        module, mesh: the network and its devices.
        plan: which rules there are.
        k: candidates of the search.
        chunk: N.

    Returns:
        The state, and the tokens chosen; -1 after a sequence's end.
    """

    cache, length = state.cache, state.length

    def more(carry: tuple[Any, ...]) -> Any:
        step, state, _, _ = carry
        return (step < steps) & state.active.any()

    def body(carry: tuple[Any, ...]) -> Any:
        step, state, recent, tokens = carry
        fed = rows_of(state.token, input_rows, getattr(search, "codebook", None))[:, None]
        hidden, recent = read_beside(params, fed, cache, length, recent, step, module, mesh)
        state = state._replace(length=state.length + state.active)
        state, _ = chosen(state, searched(search, hidden[:, 0], k), rules, plan)
        tokens = lax.dynamic_update_slice(tokens, state.token[:, None], (0, step))
        return step + 1, state, recent, tokens

    tokens = jnp.full((len(state.token), chunk), NO_TOKEN, jnp.int32)
    with axis_rules(mesh):
        recent = emptied(cache, chunk)
    begun = jnp.int32(0), state._replace(cache=()), recent, tokens
    _, state, recent, tokens = lax.while_loop(more, body, begun)
    with axis_rules(mesh):
        return state._replace(cache=settled(cache, recent, length)), tokens


@partial(jax.jit, static_argnames=("tokens", "mesh"))
def beside(cache: tuple[KeyValues, ...], tokens: int, mesh: Mesh) -> KeyValues:
    """Of all layers, what :func:`one` writes to before it goes to the cache, for so many tokens.

    They are stacked on a leading L: two arrays that come and go with each step take less time than
    two of each layer.
    """
    with axis_rules(mesh):
        return _stacked(emptied(cache, tokens))


def _stacked(layers: tuple[KeyValues, ...]) -> KeyValues:
    return jax.tree.map(lambda *parts: jnp.stack(parts), *layers)


def _layers(stacked: KeyValues) -> tuple[KeyValues, ...]:
    return tuple(KeyValues(*parts) for parts in zip(*stacked, strict=True))


@partial(jax.jit, static_argnames=("module", "mesh", "plan"), donate_argnames=("state", "recent"))
def one(
    params: Any,
    cache: tuple[KeyValues, ...],
    state: State,
    recent: KeyValues,
    waiting: Int[Array, ""],
    candidates: Candidates,
    candidate_rows: Float[Array, "B K D"],
    rules: Rules,
    *,
    module: UnrolledDecoder,
    mesh: Mesh,
    plan: Plan,
) -> tuple[State, KeyValues, Float[Array, "B D"]]:
    """Chooses among candidates that the host found, and reads what was chosen.

    Args:
        params, rules, module, mesh, plan: as in :func:`several`.
        cache: is only read, and no part of the state: to give its many arrays back takes time.
        state: is given up. Its length is that of the cache.
        recent: tokens that are not in the cache yet (:func:`beside`); are given up.
        waiting: how many these are.
        candidates: of each sequence's last hidden state.
        candidate_rows: their input rows.

    Returns:
        The state, the recent tokens with the new one, and the hidden state of each sequence's new
        last token.
    """
    state, place = chosen(state, candidates, rules, plan)
    fed = jnp.take_along_axis(candidate_rows, place[:, None, None], axis=1)
    inputs = cache, state.length, _layers(recent), waiting
    hidden, layers = read_beside(params, fed, *inputs, module, mesh)
    return state, _stacked(layers), hidden[:, 0].astype(jnp.float32)


@partial(jax.jit, static_argnames=("mesh",), donate_argnames=("state",))
def settle(state: State, recent: KeyValues, waiting: Int[Array, ""], mesh: Mesh) -> State:
    """The state with the tokens in its cache that :func:`one` has left waiting.

    Args:
        state: is given up. Sequences that have ended are longer, too, by what nobody reads.
        recent, waiting, mesh: as in :func:`one`; ``recent`` can be written to again.
    """
    with axis_rules(mesh):
        cache = settled(state.cache, _layers(recent), state.length)
    return state._replace(cache=cache, length=state.length + waiting)


def searched(search: Any, hidden: Float[Array, "B D"], k: int) -> Candidates:
    """The ``k`` best candidates of hidden states, or all, by a search on the devices."""
    if not isinstance(search, WholeVocabulary):
        hidden = hidden.astype(jnp.float32)
    return search.search(hidden, k)


def rows_of(
    token: Int[Array, " B"], rows: Float[Array, "V D"], codebook: Codebook | None
) -> Float[Array, "B D"]:
    """Input rows of tokens; those of sequences that have ended are any."""
    fed = rows[jnp.clip(token, 0, len(rows) - 1)].astype(jnp.float32)
    if codebook is None:
        return fed
    place = jnp.clip(token - len(rows), 0, codebook.input.shape[1] - 1)
    extra = jnp.take_along_axis(codebook.input, place[:, None, None], axis=1)[:, 0]
    return jnp.where((token >= len(rows))[:, None], extra, fed)
