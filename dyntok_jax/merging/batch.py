"""A batch of base tokens to a batch of dynamic tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast, get_args

import numpy as np

from dyntok_jax.merging.budget import Budget
from dyntok_jax.merging.host import merge_host
from dyntok_jax.merging.punctuation import PunctuationRule
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.types import DyntokError, Merge, Token

Backend = Literal["auto", "host", "device"]


@dataclass(frozen=True)
class DynamicTokens:
    """One sequence after merging.

    Attributes:
        tokens: T' tokens, text spelled in byte characters, special tokens by id.
        counts: (T',) int32 base tokens that each token stands for.
        word_ids: (T',) int32 word of the token's first base token, -1 for special tokens.
    """

    tokens: list[Token]
    counts: np.ndarray
    word_ids: np.ndarray | None = None

    @property
    def starts(self) -> np.ndarray:
        """(T',) int32 position of each token's first base token."""
        return np.cumsum(self.counts, dtype=np.int32) - self.counts


@dataclass(frozen=True)
class DynamicBatch:
    """The sequences of a batch after merging, and the merges.

    Attributes:
        sequences: in the order they came.
        merges: for each group that was merged together (the batch, or each sample), its merges in
            order; empty where they were not asked for.
    """

    sequences: list[DynamicTokens]
    merges: list[list[Merge]]


def merge(
    sequences: Sequence[BaseTokens],
    budget: Budget | Sequence[Budget],
    *,
    rule: PunctuationRule | None = None,
    backend: Backend = "auto",
    per_sample: bool = False,
    trace: bool = False,
) -> DynamicBatch:
    """Merges the most frequent neighbours of the batch (paper, Algorithm 1).

    Args:
        sequences: the base tokens of the batch; the result depends on their order.
        budget: when to stop; one for each group that is merged together, or one for all.
        rule: of the ``word-hyphen`` boundary.
        backend: both give the same merges. ``auto`` is the host, which ``make bench`` shows faster
            for tokens that come from the host; the device merger is for input steps on the device.
        per_sample: merges every sequence by itself.
        trace: whether the merges are wanted; without them exhaustion needs no merging at all.

    Raises:
        DyntokError: no such backend.
    """
    if backend not in get_args(Backend):
        raise DyntokError(f"unknown backend {backend!r}; valid: {', '.join(get_args(Backend))}")
    groups = [[sequence] for sequence in sequences] if per_sample else [list(sequences)]
    mergeable = [Mergeable.of(group) for group in groups]
    budgets = [budget] * len(groups) if isinstance(budget, Budget) else list(budget)
    if rule is None and not trace and all(budget.exhausts for budget in budgets):
        kept, merges = [part.unit_begins() for part in mergeable], []
    else:
        run = partial(_on_device if backend == "device" else _on_host, trace=trace)
        targets = _targets(mergeable, budgets, rule, run)
        kept, merges = run(mergeable, targets, rule)
    merged = [
        _apply(sequence, keep)
        for group, part, keep in zip(groups, mergeable, kept, strict=True)
        for sequence, keep in zip(group, part.spread(keep, group), strict=True)
    ]
    return DynamicBatch(merged, merges if trace else [])


@dataclass(frozen=True)
class Mergeable:
    """The tokens of a group that have a neighbour to merge with, in reading order.

    Attributes:
        tokens: N spelled tokens.
        units: (N,) rising numbers of their units.
        places: for each sequence, where in it these tokens stand.
    """

    tokens: list[str]
    units: np.ndarray
    places: list[np.ndarray]

    @classmethod
    def of(cls, group: Sequence[BaseTokens]) -> Mergeable:
        """Picks them out of sequences that are merged together."""
        tokens, units, places, following = [], [], [], 0
        for sequence in group:
            joined = np.diff(sequence.units) == 0
            place = np.flatnonzero(np.append(joined, False) | np.insert(joined, 0, False))
            tokens += [sequence.tokens[i] for i in place.tolist()]
            units.append(sequence.units[place] + following)
            following += len(sequence.units)
            places.append(place)
        return cls(tokens, np.concatenate(units) if units else np.zeros(0, np.int32), places)

    def unit_begins(self) -> np.ndarray:
        """(N,) bool, true at the first token of each unit."""
        return np.diff(self.units, prepend=-1) != 0

    def spread(self, kept: np.ndarray, group: Sequence[BaseTokens]) -> list[np.ndarray]:
        """For each sequence, (T,) bool: whether a dynamic token begins at the base token."""
        masks = []
        for sequence, place in zip(group, self.places, strict=True):
            mask = np.ones(len(sequence.tokens), bool)
            mask[place], kept = kept[: len(place)], kept[len(place) :]
            masks.append(mask)
        return masks


def _targets(parts: list[Mergeable], budgets: list[Budget], rule: PunctuationRule | None, run):
    """For each part the largest number of merges and the saving at which to stop."""
    most = [len(part.tokens) - int(part.unit_begins().sum()) for part in parts]
    if rule is not None and any(budget.reduction is not None for budget in budgets):
        # With a rule for pairs the maximum depends on the merges themselves: go there first.
        exhausted, _ = run(parts, [Budget().limits(0) for _ in parts], rule)
        most = [int((~keep).sum()) for keep in exhausted]
    return [budget.limits(saving) for budget, saving in zip(budgets, most, strict=True)]


def _on_host(
    parts: list[Mergeable],
    limits: list[tuple[int, int]],
    rule: PunctuationRule | None,
    trace: bool,
):
    allowed = rule.allows if rule else None
    results = [
        merge_host(part.tokens, part.units, *limit, allowed, trace)
        for part, limit in zip(parts, limits, strict=True)
    ]
    return [kept for kept, _ in results], [merges for _, merges in results]


def _on_device(
    parts: list[Mergeable],
    limits: list[tuple[int, int]],
    rule: PunctuationRule | None,
    trace: bool,
):
    if not parts:
        return [], []
    import jax

    from dyntok_jax.merging.device import merge_device
    from dyntok_jax.merging.device_tokens import device_tokens, read_merges

    rows = device_tokens([(part.tokens, part.units) for part in parts], rule)
    max_merges, target_saving = np.asarray(limits, np.int32).reshape(-1, 2).T
    merged = jax.device_get(merge_device(rows, max_merges, target_saving))
    kept = [merged.begins[i, : len(part.tokens)] for i, part in enumerate(parts)]
    found = [read_merges(merged, i, part.tokens) for i, part in enumerate(parts) if trace]
    return kept, found


def _apply(sequence: BaseTokens, kept: np.ndarray) -> DynamicTokens:
    starts = np.flatnonzero(kept).astype(np.int32)
    counts = np.diff(starts, append=np.int32(len(sequence.tokens)))
    word_ids = None if sequence.word_ids is None else sequence.word_ids[starts]
    if len(starts) == len(sequence.tokens):
        return DynamicTokens(list(sequence.tokens), counts, word_ids)
    text = cast(list[str], sequence.tokens)  # a special token is a unit by itself
    tokens: list[Token] = [
        sequence.tokens[start] if end == start + 1 else "".join(text[start:end])
        for start, end in zip(starts.tolist(), (starts + counts).tolist(), strict=True)
    ]
    return DynamicTokens(tokens, counts, word_ids)
