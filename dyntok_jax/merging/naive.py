"""Algorithm 1 as it is written: every pair of the batch recounted for every merge.

The baseline of the benchmark and the plainest oracle of the tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from dyntok_jax.types import Merge


def merge_naive(
    units: Sequence[Sequence[str]],
    max_merges: int,
    target_saving: int,
    allowed: Callable[[str, str], bool] | None = None,
) -> tuple[list[list[str]], list[Merge]]:
    """Merges the most frequent pair until a limit is reached or no pair is left.

    Args:
        units: stretches of tokens in reading order; merges stay inside one.
        max_merges: largest number of merges.
        target_saving: saving in tokens at which to stop.
        allowed: tells whether a pair may merge; None allows all.

    Returns:
        The merged units and the merges in order.
    """
    state = [list(unit) for unit in units]
    merges: list[Merge] = []
    saved = 0
    while len(merges) < max_merges and saved < target_saving:
        counts: Counter[tuple[str, str]] = Counter()
        for unit in state:
            counts.update(zip(unit, unit[1:], strict=False))  # noqa: RUF007 (the benchmark names it)
        if allowed:
            counts = Counter({pair: n for pair, n in counts.items() if allowed(*pair)})
        if not counts:
            break
        # The first of equals is the first inserted: the earliest in reading order.
        pair = max(counts, key=counts.__getitem__)
        merges.append(Merge(*pair, counts[pair]))
        before = sum(map(len, state))
        state = [_replace(unit, pair) for unit in state]
        saved += before - sum(map(len, state))
    return state, merges


def _replace(unit: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    i = 0
    while i < len(unit):
        if i + 1 < len(unit) and (unit[i], unit[i + 1]) == pair:
            merged.append(unit[i] + unit[i + 1])
            i += 2
        else:
            merged.append(unit[i])
            i += 1
    return merged
