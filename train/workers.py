"""A function of batches, in worker processes and ahead of their use; the results keep order."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from typing import Any, TypeVar

from dyntok_jax.types import DyntokError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 3
"""Items of each worker that are begun before they are asked for."""


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """Every item with the function's value of it.

    The processes end with the iterator, and with this process however it ends.

    Args:
        function: can be pickled, and is once for each worker.
        items: may be endless; read from this process, a few ahead.
        workers: processes; 0 calls the function here, nothing ahead.

    Raises:
        DyntokError: a worker died. What the function raises is raised here.
    """
    if workers == 0:
        yield from ((item, function(item)) for item in items)
        return
    # A forked process would inherit the threads and locks of XLA in an undefined state.
    context = multiprocessing.get_context("spawn")
    items = iter(items)
    waiting: deque[tuple[Item, Future]] = deque()
    executor = ProcessPoolExecutor(workers, context, _start, (function,))
    try:
        while True:
            for item in islice(items, AHEAD * workers - len(waiting)):
                waiting.append((item, executor.submit(_call, item)))
            if not waiting:
                return
            item, future = waiting.popleft()
            yield item, future.result()
    except BrokenProcessPool as error:
        raise DyntokError(
            "a worker process of the input side died, most often for lack of memory; "
            "what it said stands above, if anything; use fewer workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


_function: Callable[[Any], Any] | None = None


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    # Signals to the group (Ctrl-C, a scheduler's SIGTERM) are for the parent, which may still
    # want batches while it saves.
    os.setpgid(0, 0)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)
