"""Greedy longest-prefix tokenization over a large vocabulary, as the paper uses with its 1 M."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise

import marisa_trie
import numpy as np

from dyntok_jax.text.byte_level import to_bytes
from dyntok_jax.text.layouts import BaseTokens

UNITS_KEPT = 65_536
"""Units whose ids are remembered: most of a text are frequent words."""


class LongestPrefix:
    """Cuts every unit of a text into the longest tokens there are, from its beginning.

    The time is that of reading the bytes, but for tokens that were begun and did not end: a trie
    is followed as far as some token goes on. Units may have any length.
    """

    def __init__(self, ids: Mapping[str, int]):
        """Index a vocabulary.

        Args:
            ids: id of every token, spelled in byte characters.

        Raises:
            DyntokError: a character that stands for no byte.
        """
        # An empty token would stand everywhere.
        ids = {token: i for token, i in ids.items() if token}
        tokens = [to_bytes(token) for token in ids]
        self._longest = max(map(len, tokens), default=0)
        self._trie = marisa_trie.BinaryTrie(tokens)
        self._ids = array("i", bytes(4 * len(self._trie)))
        for token, i in zip(tokens, ids.values(), strict=True):
            self._ids[self._trie[token]] = i
        self.split = lru_cache(UNITS_KEPT)(self._split)

    def _split(self, unit: str) -> tuple[int, ...] | None:
        """Ids of a unit's tokens; None where no token goes on from some place."""
        raw = to_bytes(unit)
        prefixes, place, of, longest = (
            self._trie.prefixes,
            self._trie.key_id,
            self._ids,
            self._longest,
        )
        ids, start, end = [], 0, len(raw)
        while start < end:
            found = prefixes(raw[start : start + longest])
            if not found:
                return None
            token = found[-1]
            ids.append(of[place(token)])
            start += len(token)
        return tuple(ids)

    def tokenize(self, base: BaseTokens) -> list[int]:
        """Ids of a sequence: tokens do not cross its units, and special tokens stay.

        A unit with a byte that no token has keeps its base tokens.

        Args:
            base: the sequence in base tokens, whose ids this vocabulary begins with.
        """
        ids: list[int] = []
        tokens, split = base.tokens, self.split
        begins = np.flatnonzero(np.diff(base.units, prepend=-1)).tolist()
        for begin, end in pairwise([*begins, len(tokens)]):
            first = tokens[begin]
            if isinstance(first, int):
                ids.append(first)
                continue
            unit = first if end - begin == 1 else "".join(tokens[begin:end])  # pyright: ignore
            ids += split(unit) or base.ids[begin:end].tolist()
        return ids
