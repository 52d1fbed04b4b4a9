"""Greedy longest-prefix tokenization over a large vocabulary, as the paper uses with its 1 M."""

from __future__ import annotations

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
        tokens = [to_bytes(token) for token in ids]
        self._longest = max(map(len, tokens), default=0)
        self._trie = marisa_trie.BinaryTrie(tokens)
        self._ids = np.zeros(len(self._trie), np.int32)
        places = np.fromiter(map(self._trie.__getitem__, tokens), np.int64, len(tokens))
        self._ids[places] = np.fromiter(ids.values(), np.int32, len(tokens))
        self.split = lru_cache(UNITS_KEPT)(self._split)

    def _split(self, unit: str) -> tuple[int, ...] | None:
        """Ids of a unit's tokens; None where no token goes on from some place."""
        raw = to_bytes(unit)
        whole = self._trie.get(raw)
        if whole is not None:
            return (int(self._ids[whole]),)
        ids, start = [], 0
        while start < len(raw):
            found = self._trie.prefixes(raw[start : start + self._longest])
            if not found:
                return None
            ids.append(int(self._ids[self._trie[found[-1]]]))
            start += len(found[-1])
        return tuple(ids)

    def tokenize(self, base: BaseTokens) -> list[int]:
        """Ids of a sequence: tokens do not cross its units, and special tokens stay.

        A unit with a byte that no token has keeps its base tokens.

        Args:
            base: the sequence in base tokens, whose ids this vocabulary begins with.
        """
        ids: list[int] = []
        begins = np.flatnonzero(np.diff(base.units, prepend=-1)).tolist()
        for begin, end in pairwise([*begins, len(base.tokens)]):
            first = base.tokens[begin]
            if isinstance(first, int):
                ids += base.ids[begin:end].tolist()
                continue
            unit = first if end - begin == 1 else "".join(map(str, base.tokens[begin:end]))
            found = self.split(unit)
            ids += base.ids[begin:end].tolist() if found is None else found
        return ids
