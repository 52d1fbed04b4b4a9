"""Intervals of figures that are ratios of sums over paired samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Num

RESAMPLES = 10_000
LEVEL = 95
"""Percent of the resampled figures inside the interval."""

TOGETHER = 500
"""Resamplings drawn at once, which divide all of them: their draws are in memory."""


def interval(
    figure: Callable[..., np.ndarray], *samples: Float[np.ndarray, " W"]
) -> tuple[float, float] | None:
    """The percentile interval of a figure under resampling of the samples with replacement.

    All sums of one resampling are over the same draws, so that what the samples share cancels.
    The draws are the same in every call with as many samples.

    Args:
        figure: of the sums, each (R,) for R resamplings.
        samples: each (W,), paired by their place.

    Returns:
        Both ends, or None where the figure is not defined in some resampling.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return ends(figure(*resampled_sums(np.stack(samples, axis=1)).T))


def resampled_sums(samples: Num[np.ndarray, "W K"]) -> Num[np.ndarray, "R K"]:
    """Sums of K columns of samples under resampling; the draws are as in :func:`interval`."""
    count = len(samples)
    rng = np.random.default_rng(0)
    even = np.full(count, 1 / count)
    columns = samples.astype(np.float64)
    sums = np.empty((RESAMPLES, samples.shape[1]))
    for start in range(0, RESAMPLES, TOGETHER):
        draws = rng.multinomial(count, even, TOGETHER)
        sums[start : start + TOGETHER] = draws.astype(np.float64) @ columns
    return sums


def ends(values: Float[np.ndarray, " R"]) -> tuple[float, float] | None:
    """The percentile interval of resampled figures; None where one is not defined."""
    if not np.isfinite(values).all():
        return None
    low, high = np.percentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)
