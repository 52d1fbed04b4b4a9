"""Base tokens on the host made into the padded arrays of the device merger."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from dyntok_jax.merging.device import PRIME, DeviceMerges, DeviceTokens
from dyntok_jax.merging.punctuation import PunctuationRule
from dyntok_jax.text.byte_level import to_bytes
from dyntok_jax.types import Merge

LENGTHS = tuple(2**k * part // 2 for k in range(6, 27) for part in (2, 3))
"""Padded lengths: powers of two from 64, and one and a half times each."""

_BASES = (1_270_390_823, 891_345_067)  # one for each of two independent hashes


def device_tokens(
    rows: Sequence[tuple[Sequence[str], np.ndarray]], rule: PunctuationRule | None = None
) -> DeviceTokens:
    """Pads and numbers the rows that are merged independently of each other.

    Args:
        rows: for each, its byte-spelled tokens and their units.
        rule: of the ``word-hyphen`` boundary.
    """
    length = padded_length(max((len(tokens) for tokens, _ in rows), default=0))
    arrays = [_row(tokens, units, length, rule) for tokens, units in rows]
    return DeviceTokens._make(np.stack(column) for column in zip(*arrays, strict=True))


def empty_tokens(rows: int, length: int) -> DeviceTokens:
    """Rows of padding alone: the shapes of a program that is compiled ahead of its tokens."""
    row = _row([], np.zeros(0, np.int32), length, None)
    return DeviceTokens._make(np.stack([array] * rows) for array in row)


def padded_length(length: int) -> int:
    """The shortest padded length that holds so many tokens."""
    return next(size for size in LENGTHS if size >= length)


def read_merges(merged: DeviceMerges, row: int, tokens: Sequence[str]) -> list[Merge]:
    """The merges of one row in order, as spelled tokens."""
    number = int(merged.number[row])
    columns = (merged.start, merged.middle, merged.end, merged.count)
    spans = zip(*(np.asarray(column)[row, :number].tolist() for column in columns), strict=True)
    return [
        Merge("".join(tokens[start:middle]), "".join(tokens[middle:end]), count)
        for start, middle, end, count in spans
    ]


def _row(
    tokens: Sequence[str], units: np.ndarray, length: int, rule: PunctuationRule | None
) -> tuple[np.ndarray, ...]:
    numbers: dict[str, int] = {}
    token = np.zeros(length, np.int32)
    token[: len(tokens)] = [numbers.setdefault(name, len(numbers)) for name in tokens]
    # Padding positions are units of their own.
    unit = np.arange(length) + length
    unit[: len(tokens)] = units
    first = np.flatnonzero(np.diff(unit, prepend=-1))
    sizes = np.diff(first, append=length)
    start = np.repeat(first, sizes).astype(np.int32)
    end = np.repeat(first + sizes, sizes).astype(np.int32)
    sums, shifts = _running_hashes(tokens, length)
    return token, start, end, sums, shifts, _marks(tokens, units, length, rule)


def _running_hashes(tokens: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Two (T+1, 2) uint32 arrays: at each token's first byte, the sum before it and its shift."""
    raw = np.frombuffer(to_bytes("".join(tokens)), np.uint8).astype(np.uint64) + np.uint64(1)
    offsets = np.full(length + 1, len(raw))
    offsets[: len(tokens)] = np.cumsum([0, *map(len, tokens)])[:-1]
    sums, shifts = [], []
    for base in _BASES:
        weights, inverses = _powers(base, padded_length(len(raw) + 1))
        weighted = np.cumsum(raw * weights[: len(raw)] % PRIME)
        sums.append(np.concatenate([[0], weighted])[offsets] % PRIME)
        shifts.append(inverses[offsets])
    return np.stack(sums, -1).astype(np.uint32), np.stack(shifts, -1).astype(np.uint32)


@lru_cache(maxsize=2 * len(LENGTHS))
def _powers(base: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Two (length,) uint64 arrays: the powers of the base modulo the prime, and their inverses."""
    powers = []
    for factor in (base, pow(base, -1, PRIME)):
        power = np.ones(1, np.uint64)
        while len(power) < length:
            step = np.uint64(pow(factor, len(power), PRIME))
            power = np.concatenate([power, power * step % PRIME])
        powers.append(power[:length])
    return powers[0], powers[1]


def _marks(
    tokens: Sequence[str], units: np.ndarray, length: int, rule: PunctuationRule | None
) -> np.ndarray:
    """(T, K) the mark of every span that could be a punctuation token."""
    if rule is None:
        return np.zeros((length, 0), np.int32)
    marks = np.zeros((length, rule.longest), np.int32)
    for start, unit in enumerate(units):
        span = ""
        for k in range(rule.longest):
            if start + k >= len(tokens) or units[start + k] != unit or len(span) > rule.longest:
                break
            span += tokens[start + k]
            marks[start, k] = rule.mark(span)
    return marks
