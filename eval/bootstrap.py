"""Intervals of figures that are ratios of sums over paired samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

RESAMPLES = 10_000
LEVEL = 95
"""Percent of the resampled figures inside the interval."""


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
    count = len(samples[0])
    rng = np.random.default_rng(0)
    draws = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = figure(*(draws @ part for part in samples))
    if not np.isfinite(values).all():
        return None
    low, high = np.percentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)
