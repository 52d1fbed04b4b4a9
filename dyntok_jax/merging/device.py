"""The merges of Algorithm 1 on the device: a jitted pair count and scatter in a ``lax`` loop.

Rows of padded tokens go in; one merge is one step of a loop whose state lives on the device. A
token is a span of base tokens, so a state is where tokens begin. Three things make a step cheap:

*   Pairs are numbered by the position of their first occurrence. One scatter-add counts them all,
    and the first maximum of the counts is the winner, ties included.
*   After a merge only pairs beside the new token change. Their left (right) parts are small
    integers, so one scatter-min per side numbers them anew.
*   Once every pair is unique, the rest is known in closed form: each unit is folded from its left
    end. Only where a folded prefix and the token after it spell a pair that stands further on does
    its count rise to two; folding stops there and the loop goes on.

A token is its bytes, also when two merges spell it or a base token does. Bytes are compared by
two polynomial hashes modulo 2^31 - 1; a collision (about 2^-60 a comparison) could change which
pair is counted together, never the text.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32, UInt32

PRIME = 2**31 - 1
_PAIR_FACTOR = 0x2545F491  # makes (a, b) and (b, a) differ


class DeviceTokens(NamedTuple):
    """Padded base tokens of one or more rows (see ``device_tokens``); leading axis B.

    Attributes:
        token: (B, T) number of the token's bytes, below T.
        unit_start: (B, T) first position of its unit.
        unit_end: (B, T) position after its unit; padding is a unit of one token.
        sums: (B, T+1, 2) running sums of the bytes' hashes, at each token's first byte.
        shifts: (B, T+1, 2) the inverse weight of that byte.
        punctuation: (B, T, K) for the span of k+1 tokens from here: 0 no punctuation token, 1 one,
            2 the hyphen; K = 0 where the boundary has no rule for pairs.
    """

    token: Int32[Array, "B T"]
    unit_start: Int32[Array, "B T"]
    unit_end: Int32[Array, "B T"]
    sums: UInt32[Array, "B T+1 2"]
    shifts: UInt32[Array, "B T+1 2"]
    punctuation: Int32[Array, "B T K"]


class DeviceMerges(NamedTuple):
    """Where the tokens of each row begin, and the merges in order (spans of base tokens).

    Attributes:
        begins: (B, T) whether a token begins there.
        number: (B,) number of merges.
        start, middle, end: (B, T) the first pair's span of each merge: left is [start, middle).
        count: (B, T) how often the pair stood there.
    """

    begins: Bool[Array, "B T"]
    number: Int32[Array, " B"]
    start: Int32[Array, "B T"]
    middle: Int32[Array, "B T"]
    end: Int32[Array, "B T"]
    count: Int32[Array, "B T"]


class _State(NamedTuple):
    """One row between two merges; arrays are (T,)."""

    begins: Bool[Array, " T"]
    token: Int32[Array, " T"]
    hashes: UInt32[Array, "T 2"]
    end: Int32[Array, " T"]  # where the token that begins here ends
    before: Int32[Array, " T"]  # where the token before it begins; T at the unit's start
    pair: Int32[Array, " T"]  # first occurrence of the pair that begins here; T where none does
    punctuation: Int32[Array, " T"]
    merges: Int32[Array, ""]
    saved: Int32[Array, ""]
    trace: tuple[Array, ...]


@jax.jit
def merge_device(
    tokens: DeviceTokens, max_merges: Int32[Array, " B"], target_saving: Int32[Array, " B"]
) -> DeviceMerges:
    """Merges each row's most frequent pair until a limit is reached or no pair is left.

    Ties go to the pair whose first occurrence comes first. A batch that shares its merges is one
    row; rows are merged independently of each other.

    Args:
        tokens: padded base tokens.
        max_merges: largest number of merges of each row.
        target_saving: saving in tokens at which each row stops.
    """
    if tokens.token.shape[0] == 1:
        # Not a batch of one: in a batch both branches of a condition run.
        merged = _merge_row(*jax.tree.map(lambda x: x[0], (tokens, max_merges, target_saving)))
        return jax.tree.map(lambda x: x[None], merged)
    return jax.vmap(_merge_row)(tokens, max_merges, target_saving)


def _merge_row(row: DeviceTokens, max_merges: Array, target_saving: Array) -> DeviceMerges:
    def unfinished(carry):
        state, counts = carry
        within = (state.merges < max_merges) & (state.saved < target_saving)
        return within & (counts.max() > 0)

    def step(carry):
        state, counts = carry
        first = jnp.argmax(counts).astype(jnp.int32)
        room = jnp.minimum(max_merges - state.merges, target_saving - state.saved)
        # A rule for pairs leaves gaps inside units, which the closed form does not know.
        one_by_one = (counts[first] > 1) | bool(row.punctuation.shape[1])
        state = lax.cond(
            one_by_one,
            lambda: _merge_once(row, state, first, counts[first]),
            lambda: _fold_units(row, state, room),
        )
        return state, _count(state.pair)

    state = _initial(row)
    state, _ = lax.while_loop(unfinished, step, (state, _count(state.pair)))
    return DeviceMerges(state.begins, state.merges, *state.trace)


def _initial(row: DeviceTokens) -> _State:
    size = row.token.shape[0]
    here = jnp.arange(size, dtype=jnp.int32)
    state = _State(
        begins=jnp.ones(size, bool),
        token=row.token,
        hashes=_span_hashes(row, here, here + 1),
        end=here + 1,
        before=jnp.where(here > row.unit_start, here - 1, size),
        pair=jnp.full(size, size, jnp.int32),
        punctuation=_punctuation(row, here, here + 1),
        merges=jnp.int32(0),
        saved=jnp.int32(0),
        trace=tuple(jnp.zeros(size, jnp.int32) for _ in range(4)),
    )
    joined, following = _pairs(row, state)
    # The only sort of a run: equal pairs become neighbours, the first occurrence in front.
    left, right, place = lax.sort(
        (jnp.where(joined, row.token, size), row.token[following], here), num_keys=3
    )
    new = jnp.ones(size, bool).at[1:].set((left[1:] != left[:-1]) | (right[1:] != right[:-1]))
    first = place[lax.cummax(jnp.where(new, here, 0))]
    pair = jnp.zeros(size, jnp.int32).at[place].set(first)
    return state._replace(pair=jnp.where(joined, pair, size))


def _count(pair: Array) -> Array:
    """(T,) how often each pair stands, at its first occurrence."""
    return jnp.zeros(pair.shape[0], jnp.int32).at[pair].add(1, mode="drop")


def _pairs(row: DeviceTokens, state: _State) -> tuple[Array, Array]:
    """(T,) whether a pair begins here, and where its right part begins."""
    following = jnp.minimum(state.end, row.token.shape[0] - 1)
    joined = state.begins & (state.end < row.unit_end)
    # Punctuation joins only what is punctuation already, but for the hyphen.
    joined &= (state.punctuation > 0) | (state.punctuation[following] != 1)
    return joined, following


def _punctuation(row: DeviceTokens, start: Array, end: Array) -> Array:
    """The mark of a span of base tokens; spans beyond the table hold no punctuation token."""
    longest = row.punctuation.shape[1]
    if not longest:
        return jnp.zeros_like(start)
    length = end - start
    mark = row.punctuation[start, jnp.minimum(length, longest) - 1]
    return jnp.where(length <= longest, mark, 0)


def _merge_once(row: DeviceTokens, state: _State, first: Array, count: Array) -> _State:
    """Merges one pair wherever it stands, left to right."""
    size = row.token.shape[0]
    middle = state.end[first]
    end = state.end[middle]
    merged = lax.cond(
        state.token[first] == state.token[middle],
        lambda: _without_overlaps(state, state.pair == first),
        lambda: state.pair == first,
    )
    hashes = _span_hashes(row, first, end)
    token = _number(row, state, hashes)
    gone = merged.at[state.before].get(mode="fill", fill_value=False)
    state = state._replace(
        begins=state.begins & ~gone,
        token=jnp.where(merged, token, state.token),
        hashes=jnp.where(merged[:, None], hashes, state.hashes),
        end=jnp.where(merged, state.end[jnp.minimum(state.end, size - 1)], state.end),
        before=jnp.where(
            gone.at[state.before].get(mode="fill", fill_value=False),
            state.before.at[state.before].get(mode="fill", fill_value=size),
            state.before,
        ),
        punctuation=jnp.where(merged, _punctuation(row, first, end), state.punctuation),
        merges=state.merges + 1,
        saved=state.saved + merged.sum(dtype=jnp.int32),
        trace=tuple(
            column.at[state.merges].set(value)
            for column, value in zip(state.trace, (first, middle, end, count), strict=True)
        ),
    )
    return _renumber_pairs(row, state, token)


def _without_overlaps(state: _State, merged: Array) -> Array:
    """Of a run of equal tokens, every second pair from the left."""
    rank = jnp.cumsum(state.begins, dtype=jnp.int32)
    inside = merged.at[state.before].get(mode="fill", fill_value=False)
    run = lax.cummax(jnp.where(merged & ~inside, rank, 0))
    return merged & ((rank - run) % 2 == 0)


def _number(row: DeviceTokens, state: _State, hashes: Array) -> Array:
    """The number of the token with these bytes: that of one in some pair, else a new one."""
    paired = (state.end < row.unit_end) | (state.before < row.token.shape[0])
    same = state.begins & paired & (state.hashes == hashes).all(axis=-1)
    found = jnp.argmax(same)
    return jnp.where(same[found], state.token[found], row.token.shape[0] + state.merges)


def _renumber_pairs(row: DeviceTokens, state: _State, token: Array) -> _State:
    """Numbers all pairs by first occurrence, when only those with ``token`` in them are new."""
    size = row.token.shape[0]
    here = jnp.arange(size, dtype=jnp.int32)
    joined, following = _pairs(row, state)
    left, right = state.token, state.token[following]
    is_left, is_right = joined & (left == token), joined & (right == token)

    def first_by(key: Array, member: Array, keys: int) -> Array:
        key = jnp.where(member, key, keys)
        first = jnp.full(keys, size, jnp.int32).at[key].min(here, mode="drop")
        return first.at[key].get(mode="fill", fill_value=size)

    # Numbers of tokens stay below 2 T: T base tokens, and fewer merges than that.
    pair = jnp.where(
        is_left,
        first_by(right, is_left, 2 * size),
        jnp.where(
            is_right,
            first_by(left, is_right, 2 * size),
            first_by(state.pair, joined & ~is_left & ~is_right, size),
        ),
    )
    return state._replace(pair=pair)


def _fold_units(row: DeviceTokens, state: _State, room: Array) -> _State:
    """Merges on while every pair is unique: unit after unit, each from its left end.

    The next merge is always the first pair of the first unit that holds one, unless the pair of
    the folded prefix and its next token stands once more further on.
    """
    size = row.token.shape[0]
    here = jnp.arange(size, dtype=jnp.int32)
    inner = state.begins & (state.before < size)
    rank = jnp.cumsum(inner, dtype=jnp.int32) - 1
    # A unit's first pair stands already and is unique: only a false alarm could stop there, and
    # without any progress the loop would never end.
    grown = inner & (state.before > row.unit_start)
    stop = jnp.min(jnp.where(grown & _stands_further_on(row, state), here, size))
    taken = inner & (here < stop) & (rank < room)
    last_end = jnp.where(taken, row.unit_start, size)
    ends = state.end.at[last_end].max(state.end, mode="drop")
    folded = ends != state.end
    slots = jnp.where(taken, state.merges + rank, size)
    columns = (row.unit_start, here, state.end, jnp.ones_like(here))
    # At most one unit is left half folded, and only its new token is in a pair.
    rest = jnp.min(jnp.where(inner & ~taken, here, size))
    head = row.unit_start.at[rest].get(mode="fill", fill_value=size)
    head_end = ends.at[head].get(mode="fill", fill_value=size)
    token = _number(row, state, _span_hashes(row, head, head_end))
    number = taken.sum(dtype=jnp.int32)
    state = state._replace(
        begins=state.begins & ~taken,
        token=state.token.at[head].set(token, mode="drop"),
        hashes=jnp.where(folded[:, None], _span_hashes(row, here, ends), state.hashes),
        end=ends,
        before=jnp.where(
            taken.at[state.before].get(mode="fill", fill_value=False), row.unit_start, state.before
        ),
        merges=state.merges + number,
        saved=state.saved + number,
        trace=tuple(
            column.at[slots].set(values, mode="drop")
            for column, values in zip(state.trace, columns, strict=True)
        ),
    )
    return _renumber_pairs(row, state, token)


def _stands_further_on(row: DeviceTokens, state: _State) -> Array:
    """(T,) whether the pair (its unit before here, the token here) may stand at or after here.

    Two hash tables of the last place of each pair, by independent hashes: never a miss, and about
    one false alarm in 256, which costs one more step of the loop.
    """
    size = row.token.shape[0]
    here = jnp.arange(size, dtype=jnp.int32)
    joined, following = _pairs(row, state)
    buckets = 16 * size
    factor = jnp.uint32(_PAIR_FACTOR)
    stands = _add(_multiply(state.hashes, factor), state.hashes[following]) % buckets
    unit_before = _span_hashes(row, row.unit_start, here)
    folded = _add(_multiply(unit_before, factor), state.hashes) % buckets
    alarm = jnp.ones(size, bool)
    for column in range(2):
        slot = jnp.where(joined, stands[:, column].astype(jnp.int32), buckets)
        last = jnp.full(buckets, -1, jnp.int32).at[slot].max(here, mode="drop")
        alarm &= last[folded[:, column].astype(jnp.int32)] >= here
    return alarm


def _span_hashes(row: DeviceTokens, start: Array, end: Array) -> Array:
    """(..., 2) hashes of the bytes of the span [start, end) of base tokens.

    A hash is sum_k (b_k + 1) base^k over the bytes b: a difference of two running sums, shifted
    down by the bytes before the span.
    """
    difference = _add(row.sums[end], PRIME - row.sums[start])
    return _multiply(difference, row.shifts[start])


def _add(a: Array, b: Array) -> Array:
    """a + b modulo the prime; both at most the prime."""
    return _reduce(a + b)


def _multiply(a: Array, b: Array) -> Array:
    """a b modulo the prime, in 32-bit words: 2^32 is 2 and 2^31 is 1."""
    a1, a0, b1, b0 = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    middle = a1 * b0 + a0 * b1
    high = _reduce(2 * a1 * b1 + (middle >> 15))
    return _reduce(_reduce(high + ((middle & 0x7FFF) << 16)) + _reduce(a0 * b0))


def _reduce(x: Array) -> Array:
    """x modulo the prime, for any 32-bit word."""
    x = (x & PRIME) + (x >> 31)
    return jnp.where(x >= PRIME, x - PRIME, x)
