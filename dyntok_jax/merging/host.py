"""The merges of Algorithm 1 by an incremental heap, on the host.

For input pipelines, and the oracle of the device merger. Only what a merge changes is recounted:
a heap holds (count, first occurrence) of every pair; entries that are out of date are put right
when they come up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush, heapreplace

import numpy as np

from dyntok_jax.types import Merge

Pair = tuple[int, int]


def merge_host(
    tokens: Sequence[str],
    units: np.ndarray,
    max_merges: int,
    target_saving: int,
    allowed: Callable[[str, str], bool] | None = None,
    trace: bool = True,
) -> tuple[np.ndarray, list[Merge]]:
    """Merges the most frequent pair until a limit is reached or no pair is left.

    Ties go to the pair whose first occurrence comes first.

    Args:
        tokens: N byte-spelled tokens in reading order.
        units: (N,) number of each token's unit; merges stay inside one.
        max_merges: largest number of merges.
        target_saving: saving in tokens at which to stop.
        allowed: tells whether a pair may merge; None allows all.
        trace: whether the merges are wanted: spelling them takes memory by a unit's length squared.

    Returns:
        (N,) bool, whether a token of the result begins there; and the merges in order, or none.
    """
    state = _State(tokens, units, allowed)
    merges: list[Merge] | None = [] if trace else None
    done = saved = 0
    while done < max_merges and saved < target_saving:
        chosen = state.most_frequent()
        if chosen is None:
            break
        pair, count = chosen
        # A rule for pairs leaves gaps inside units, which the closed form does not know.
        if count == 1 and allowed is None:
            folded = state.fold_units(min(max_merges - done, target_saving - saved), merges)
            done, saved = done + folded, saved + folded
            continue
        if merges is not None:
            merges.append(Merge(state.names[pair[0]], state.names[pair[1]], count))
        done += 1
        saved += state.apply(pair)
    return np.asarray(state.alive, bool), merges or []


class _State:
    """A linked list over the positions, and for each pair its count and occurrences."""

    def __init__(
        self,
        tokens: Sequence[str],
        units: np.ndarray,
        allowed: Callable[[str, str], bool] | None,
    ):
        self.ids: dict[str, int] = {}
        self.token = [self.ids.setdefault(token, len(self.ids)) for token in tokens]
        self.names = list(self.ids)
        self.allowed = allowed
        size = len(tokens)
        self.alive = [True] * size
        joined = (units[1:] == units[:-1]).tolist() if size else []
        # -1 ends a unit.
        self.following = [i + 1 if join else -1 for i, join in enumerate(joined)] + [-1] * (
            size > 0
        )
        self.preceding = [-1] * (size > 0) + [i if join else -1 for i, join in enumerate(joined)]
        self.folded = 0  # all units before this position are one token
        self.counts: dict[Pair, int] = {}
        self.places: dict[Pair, list[int]] = {}
        for i, join in enumerate(joined):
            if join:
                self._add((self.token[i], self.token[i + 1]), i)
        self.heap = [(-count, self.places[pair][0], pair) for pair, count in self.counts.items()]
        heapify(self.heap)

    def most_frequent(self) -> tuple[Pair, int] | None:
        """The next pair to merge and its count; None where no pair is left."""
        heap = self.heap
        while heap:
            negative, first, pair = heap[0]
            count = self.counts.get(pair, 0)
            if not count:
                heappop(heap)
                continue
            place = self._first_place(pair)
            if count == -negative and place == first:
                return pair, count
            heapreplace(heap, (-count, place, pair))
        return None

    def apply(self, pair: Pair) -> int:
        """Merges a pair wherever it stands, left to right; returns the tokens saved."""
        left, right = pair
        token, following, preceding, alive = (
            self.token, self.following, self.preceding, self.alive,
        )  # fmt: skip
        new = self._id(self.names[left] + self.names[right])
        places = sorted(self.places.pop(pair))
        del self.counts[pair]
        grown: set[Pair] = set()
        saved = 0
        for i in places:
            j = following[i]
            if j < 0 or token[i] != left or token[j] != right or not alive[i]:
                continue
            before, after = preceding[i], following[j]
            if before >= 0:
                self._remove((token[before], left))
                self._grow((token[before], new), before, grown)
            if after >= 0:
                self._remove((right, token[after]))
                self._grow((new, token[after]), i, grown)
                preceding[after] = i
            token[i] = new
            following[i] = after
            alive[j] = False
            saved += 1
        for changed in grown:
            if changed in self.counts:
                entry = (-self.counts[changed], self._first_place(changed), changed)
                heappush(self.heap, entry)
        return saved

    def fold_units(self, room: int, merges: list[Merge] | None) -> int:
        """Merges on while every pair stands once: unit after unit, each from its left end.

        The next merge is always the first pair of the first unit that holds one, unless the pair
        of the folded prefix and its next token stands once more further on.

        Args:
            room: merges to do at most.
            merges: where to note them, or None.

        Returns:
            How many merges were done; at least one.
        """
        token, following, names = self.token, self.following, self.names
        # No longer prefix can be a token that stands somewhere else.
        longest = max(len(names[left]) for left, _ in self.counts)
        done = 0
        for head in range(self.folded, len(token)):
            self.folded = head
            i = following[head]
            if i < 0 or not self.alive[head]:
                continue
            parts, prefix = [names[token[head]]], names[token[head]]
            self._remove((token[head], token[i]))
            while i >= 0 and done < room:
                known = self.ids.get(prefix) if len(parts) > 1 and len(prefix) <= longest else None
                if known is not None and (known, token[i]) in self.counts:
                    break
                right, after = names[token[i]], following[i]
                if merges is not None:
                    merges.append(Merge(prefix, right, 1))
                if after >= 0:
                    self._remove((token[i], token[after]))
                parts.append(right)
                if merges is not None or len(prefix) <= longest:
                    prefix += right
                self.alive[i] = False
                i, done = after, done + 1
            following[head] = i
            if i >= 0:
                token[head] = self._id("".join(parts))
                self.preceding[i] = head
                pair = (token[head], token[i])
                self._add(pair, head)
                heappush(self.heap, (-self.counts[pair], self._first_place(pair), pair))
                break
        return done

    def _id(self, name: str) -> int:
        """A token is its bytes: equal spelling is the same token, however it came about."""
        found = self.ids.setdefault(name, len(self.names))
        if found == len(self.names):
            self.names.append(name)
        return found

    def _add(self, pair: Pair, place: int) -> bool:
        if self.allowed and not self.allowed(self.names[pair[0]], self.names[pair[1]]):
            return False
        self.counts[pair] = self.counts.get(pair, 0) + 1
        heappush(self.places.setdefault(pair, []), place)
        return True

    def _grow(self, pair: Pair, place: int, grown: set[Pair]) -> None:
        if self._add(pair, place):
            grown.add(pair)

    def _remove(self, pair: Pair) -> None:
        count = self.counts.get(pair, 0)
        if count > 1:
            self.counts[pair] = count - 1
        elif count == 1:
            del self.counts[pair]
            del self.places[pair]

    def _first_place(self, pair: Pair) -> int:
        """The pair's first occurrence; forgets the places where it no longer stands."""
        left, right = pair
        places = self.places[pair]
        while True:
            i = places[0]
            j = self.following[i]
            if j >= 0 and self.alive[i] and self.token[i] == left and self.token[j] == right:
                return i
            heappop(places)
