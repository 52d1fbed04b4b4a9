"""Dynamic tokens to the arrays of a batch: a table of its unique tokens, and ids into it.

Lengths are rounded up to a short list of buckets, so that shorter sequences really save time and a
run compiles a handful of programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dyntok_jax.types import Token

TOKEN_BUCKETS = tuple(
    sorted({2**k * part // 2 for k in range(4, 21) for part in (2, 3)} - {24} | {8})
)
"""Tokens of a sequence, T: 8, 16, 32, 48, 64, 96, 128, and so on."""

PROMPT_BUCKETS = tuple(
    sorted({2**k * part // 4 for k in range(5, 21) for part in (4, 5, 6, 7)} | {8, 16, 24})
)
"""Tokens of a prompt, which is read once and waited for: 8, 16, 24, 32, 40, 48, 56, 64, 80, and so
on, from 32 a quarter more at most, so that merging some of its tokens saves time."""

UNIQUE_BUCKETS = tuple(4**k * 2 for k in range(4, 16))
"""Unique tokens of a batch, U: 512, 2048, 8192, and so on; coarse, since rows cost little."""

BATCH_TOKENS = 4096
"""Tokens in a batch at most, as far as one sequence allows."""

BATCH_PAIRS = 2**20
"""Pairs of tokens in a batch at most, which is what attention needs memory by."""


@dataclass(frozen=True)
class Batch:
    """Sequences padded to one length.

    Attributes:
        tokens: the batch's unique tokens, in order of first occurrence.
        ids: (B, T) int32 into ``tokens``; padding is 0.
        mask: (B, T) bool, True at real tokens.
        unique_bucket: U, the bucket of ``len(tokens)``.
    """

    tokens: list[Token]
    ids: np.ndarray
    mask: np.ndarray
    unique_bucket: int

    def spread(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """(B, T) float32: a number for each token, given by sequence; 0 at padding."""
        spread = np.zeros(self.mask.shape, np.float32)
        spread[self.mask] = np.concatenate(values)
        return spread

    def table_ids(self, slots: np.ndarray, size: int | None = None) -> np.ndarray:
        """(U,) int32: where each unique token's row is, filled up with the first one's place.

        U is ``size``, by default the batch's own bucket.
        """
        padded = np.full(size or self.unique_bucket, slots[0] if len(slots) else 0, np.int32)
        padded[: len(slots)] = slots
        return padded


def make_batch(
    sequences: Sequence[Sequence[Token]],
    padding: Literal["left", "right"],
    rows: int,
    longest: int,
    buckets: Sequence[int] = TOKEN_BUCKETS,
) -> Batch:
    """Pads sequences to the next bucket, and the batch to ``rows`` sequences.

    Args:
        sequences: at most ``rows`` sequences of tokens.
        padding: left for decoders, right for encoders.
        rows: B; empty sequences fill it up.
        longest: longest sequence the model can read; no bucket exceeds it.
        buckets: lengths that are rounded up to.
    """
    numbers: dict[Token, int] = {}
    needed = max(map(len, sequences), default=0)
    length = padded_length(needed, longest, buckets)
    ids = np.zeros((rows, length), np.int32)
    mask = np.zeros((rows, length), bool)
    for row, tokens in enumerate(sequences):
        place = slice(length - len(tokens), length) if padding == "left" else slice(len(tokens))
        ids[row, place] = [numbers.setdefault(token, len(numbers)) for token in tokens]
        mask[row, place] = True
    return Batch(list(numbers), ids, mask, bucket(len(numbers), UNIQUE_BUCKETS))


def padded_length(needed: int, longest: int, buckets: Sequence[int]) -> int:
    """T of a batch: the bucket of its longest sequence, but not more than a model reads."""
    return max(needed, min(bucket(needed, buckets), longest))


def bucket(size: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds so many."""
    return next(b for b in buckets if b >= size)


def by_length(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """Splits sequences into batches of similar length, the longest first.

    A batch has at most ``BATCH_TOKENS`` tokens and ``BATCH_PAIRS`` pairs of them, padding counted,
    as far as one sequence allows.
    Longest first, so that what does not fit into memory fails at once.

    Args:
        lengths: tokens of each sequence.
        rows: most sequences in a batch.

    Returns:
        Positions of each batch's sequences.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches = []
    while order:
        length = bucket(lengths[order[0]], TOKEN_BUCKETS)
        fitting = max(1, min(BATCH_TOKENS // length, BATCH_PAIRS // length**2))
        # Batches are rounded up to a power of two.
        count = min(rows, 1 << (fitting.bit_length() - 1))
        batches.append(order[:count])
        order = order[count:]
    return batches
