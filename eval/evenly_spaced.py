"""Places that are spread evenly over what there is, for samples of it."""

from __future__ import annotations


def evenly_spaced(size: int, count: int | None) -> list[int]:
    """Where equal parts of ``size`` places begin: so many, or all places where there are no more.

    Stretches from them on do not overlap as long as none is longer than ``size // count``.

    Args:
        size: how many places there are.
        count: how many are wanted; None for all.
    """
    chosen = min(count or size, size)
    return [i * size // chosen for i in range(chosen)]
