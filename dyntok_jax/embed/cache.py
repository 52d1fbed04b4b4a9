"""Least-recently-used rows: an index on the host, fixed tables on the device."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from dyntok_jax.embed.source import RowProvider
from dyntok_jax.types import DyntokError, Rows, Token

logger = logging.getLogger(__name__)

SCATTER_SIZES = (64, 512, 4096)
"""Rows written by one call, padded up to one of these, so that few scatters are compiled."""


class LruSlots:
    """Which token sits in which slot, and which was used longest ago.

    Slots are handed out last in, first out: first 0, 1, …, later the one freed last.

    Attributes:
        order: token -> slot, from the least to the most recently used.
        free: slots without a token; the last is handed out next.
    """

    def __init__(self, capacity: int):
        self.order: OrderedDict[Token, int] = OrderedDict()
        self.free = list(range(capacity - 1, -1, -1))

    def get(self, token: Token) -> int | None:
        """The token's slot, now the most recently used; None where it has none."""
        slot = self.order.get(token)
        if slot is not None:
            self.order.move_to_end(token)
        return slot

    def touch(self, tokens: Iterable[Token]) -> None:
        """Make tokens the most recently used ones, in their order.

        Raises:
            KeyError: a token without a slot; those before it are touched.
        """
        deque(map(self.order.move_to_end, tokens), maxlen=0)

    def evict(self, count: int, keep: Collection[Token]) -> int:
        """Free the slots of the ``count`` least recently used tokens that are not in ``keep``.

        Returns:
            How many were freed; fewer than ``count`` where there are not enough.
        """
        victims: list[Token] = []
        for token in self.order:
            if len(victims) >= count:
                break
            if token not in keep:
                victims.append(token)
        self.free += [self.order.pop(token) for token in victims]
        return len(victims)

    def put(self, tokens: Collection[Token]) -> list[int]:
        """Give tokens slots, as the most recently used; a token that has one keeps it.

        Raises:
            DyntokError: not enough free slots; nothing is changed then.
        """
        needed = sum(token not in self.order for token in tokens)
        if needed > len(self.free):
            raise DyntokError(f"{needed} tokens for {len(self.free)} free slots: evict some first")
        for token in tokens:
            if token not in self.order:
                self.order[token] = self.free.pop()
        self.touch(tokens)
        return [self.order[token] for token in tokens]

    def grow(self, capacity: int) -> None:
        """Add slots up to ``capacity``."""
        size = len(self.order) + len(self.free)
        self.free = list(range(capacity - 1, size - 1, -1)) + self.free


class RowCache:
    """Rows of the tokens used lately, in tables on the device.

    A token keeps its slot until it is evicted, so a batch's slots are ids into :attr:`tables` until
    the next lookup.

    Attributes:
        tables: input (C, D), and output (C, D) and bias (C,) where the provider gives them. A
            lookup that writes replaces them and gives up their memory: read them after it.
        slots: the index.
        hits, misses: tokens looked up that were there, or not.
        evictions: tokens that made room for others.
        growths: how often a batch had more tokens than slots, and the tables grew.
    """

    def __init__(self, provider: RowProvider, capacity: int):
        if capacity < 1:
            raise DyntokError(f"a cache of {capacity} rows: it must hold at least 1")
        self.slots = LruSlots(capacity)
        self.capacity = capacity
        self.hits = self.misses = self.evictions = self.growths = 0
        self._provider = provider
        self.tables = jax.tree.map(
            lambda empty: jnp.zeros((capacity, *empty.shape[1:]), empty.dtype), provider.rows([])
        )

    @property
    def cut(self) -> int:
        """How many tokens were longer than what the provider reads of one."""
        return getattr(self._provider, "truncated", 0)

    @property
    def longest(self) -> int | None:
        """How many base tokens of a merged one the provider reads; None for all."""
        return getattr(self._provider, "longest", None)

    @property
    def unknown(self) -> int:
        """How many rows the provider gave that are the unknown token's."""
        return getattr(self._provider, "unknown", 0)

    def costs(self) -> list[str]:
        """What took time again, or rows that say less than their tokens; nothing of what is 0."""
        counted = {
            "evictions": self.evictions,
            "growths": self.growths,
            "rows of the first pieces only": self.cut,
            "rows of the unknown token": self.unknown,
        }
        return [f"{count} {name}" for name, count in counted.items() if count]

    def emptied(self) -> RowCache:
        """Another cache, without rows, that is as large and asks the same provider."""
        return RowCache(self._provider, self.capacity)

    def lookup(self, tokens: Sequence[Token]) -> Int[np.ndarray, " U"]:
        """Slots (U,) int32 of a batch's unique tokens, fetching the rows of those not there.

        All rows of one batch are there at once: a batch with more tokens than the cache has slots
        makes it grow. Rows are fetched before anything changes, so a provider's error leaves the
        cache as it was.
        """
        order = self.slots.order
        found = list(map(order.get, tokens))
        if None not in found:
            self.hits += len(found)
            self.slots.touch(tokens)
            return np.array(found, np.int32)
        new = list(dict.fromkeys(t for t, s in zip(tokens, found, strict=True) if s is None))
        rows = self._provider.rows(new)
        batch = set(tokens)
        self._make_room(len(new), batch)
        self._write(self.slots.put(new), rows)
        self.slots.touch(t for t, s in zip(tokens, found, strict=True) if s is not None)
        self.hits += len(batch) - len(new)
        self.misses += len(new)
        return np.array([order[token] for token in tokens], np.int32)

    def _make_room(self, count: int, batch: set[Token]) -> None:
        if len(batch) > self.capacity:
            self._grow(len(batch))
        self.evictions += self.slots.evict(count - len(self.slots.free), keep=batch)

    def _grow(self, needed: int) -> None:
        capacity = 1 << (needed - 1).bit_length()
        if not self.growths:
            logger.warning(
                "a batch of %d unique tokens: the cache of %d rows grows to %d "
                "(further growth is counted, not logged)",
                needed,
                self.capacity,
                capacity,
            )
        self.growths += 1
        extra = capacity - self.capacity
        self.tables = jax.tree.map(lambda table: _extended(table, extra), self.tables)
        self.slots.grow(capacity)
        self.capacity = capacity

    def _write(self, slots: list[int], rows: Rows) -> None:
        """Write rows into the tables, a padded chunk at a time."""
        for begin in range(0, len(slots), SCATTER_SIZES[-1]):
            chunk = slots[begin : begin + SCATTER_SIZES[-1]]
            size = next(size for size in SCATTER_SIZES if size >= len(chunk))
            padding = size - len(chunk)
            # A slot past the end of the table: the scatter drops it.
            where = np.array(chunk + [self.capacity] * padding, np.int32)
            part = slice(begin, begin + len(chunk))
            new = jax.tree.map(lambda r, part=part, n=padding: _extended(r[part], n), rows)
            self.tables = _scatter(self.tables, where, new)


def _extended(table, extra: int):
    """The table with zero rows after its own."""
    stack = jnp if isinstance(table, jax.Array) else np
    return stack.concatenate([table, stack.zeros((extra, *table.shape[1:]), table.dtype)])


@partial(jax.jit, donate_argnums=0)
def _scatter(tables: Rows, slots: Int[Array, " M"], rows: Rows) -> Rows:
    return jax.tree.map(lambda table, new: table.at[slots].set(new, mode="drop"), tables, rows)
