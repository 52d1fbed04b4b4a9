"""Signals that end a run after the step they fall in."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax

from dyntok_jax.checkpoint import Checkpoints


class Stop:
    """Whether the run was told to stop."""

    def __init__(self):
        self.told = False

    def requested(self, checkpoints: Checkpoints, step: int) -> bool:
        """Whether to stop after this step; all processes of a run agree on it."""
        if jax.process_count() > 1:
            return checkpoints.reached_preemption(step)
        return self.told


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Takes note of SIGTERM and SIGINT once each instead of ending the process.

    In a run of several processes JAX does so, of SIGTERM: only its note reaches the others, and
    another handler here would take its place.
    """
    stop = Stop()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)
    }

    def note(number: int, _: Any) -> None:
        stop.told = True
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
