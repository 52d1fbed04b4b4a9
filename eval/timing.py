"""Times for comparisons within one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float


def clocks() -> Float[np.ndarray, " 2"]:
    """Seconds by the wall clock, and of this process on all processors.

    What else a machine does adds to the first and hardly to the second, which therefore compares
    work that was done at different times.
    """
    return np.array([time.perf_counter(), time.process_time()])


def medians(tasks: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Median seconds of each task, after one warm-up; the tasks take turns.

    Taking turns, a machine that slows down for a while slows all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
