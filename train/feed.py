"""Batches made and put on the devices ahead of the step that takes them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dyntok_jax.sharding import batch_part, batch_sharding, replicated
from train.task import Loaded, NoBatchError

AHEAD = 3
"""Batches that may wait."""


class Fed(NamedTuple):
    """A batch on the host and, unless processes are to agree on it first, on the devices."""

    loaded: Loaded
    arrays: Any


class Feed:
    """A thread that takes batches from an iterator, some ahead; use it as a context manager."""

    def __init__(
        self,
        batches: Iterator[Loaded],
        mesh: Mesh,
        agree: Callable[[Any], Any] | None = None,
    ):
        """Starts the thread.

        Args:
            batches: endless; only the thread touches it.
            mesh: devices of the run.
            agree: of the task, or None. Processes talk by programs on the devices, which must be
                started in one order everywhere: it is called by ``next``, between two steps, and
                not by the thread. Batches are put on the devices only then.
        """
        self.ended = False
        """Whether the iterator raised; of processes that agree on batches, in any of them."""
        self.waited = 0.0
        """Seconds for which the devices had nothing to do but wait for a batch."""
        self._mesh, self._agree = mesh, agree
        self._queue: queue.Queue[Fed | BaseException] = queue.Queue(AHEAD)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(batches,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=10)

    def next(self, running: Any) -> Fed:
        """The next batch.

        Args:
            running: a result of the step that is running, or None. Where no batch is ready, that
                step is waited for first: only what comes after is time lost to the input.

        Raises:
            Exception: whatever the iterator raised.
        """
        try:
            item = self._queue.get_nowait()
        except queue.Empty:
            jax.block_until_ready(running)
            start = time.perf_counter()
            item = self._queue.get()
            self.waited += time.perf_counter() - start
        if self._agree is not None:
            jax.block_until_ready(running)
            start = time.perf_counter()
            try:
                batch = self._agree(item.loaded.batch if isinstance(item, Fed) else None)
            except NoBatchError:
                self.ended = True
                raise
            if isinstance(item, Fed):
                item = Fed(item.loaded._replace(batch=batch), put(batch, self._mesh))
            self.waited += time.perf_counter() - start
        if isinstance(item, BaseException):
            self.ended = True
            raise item
        return item

    def _run(self, batches: Iterator[Loaded]) -> None:
        try:
            for loaded in batches:
                arrays = None if self._agree else put(loaded.batch, self._mesh)
                self._put(Fed(loaded, arrays))
                if self._stopping.is_set():
                    return
            self._put(RuntimeError("the batches of a task must be endless"))
        except BaseException as error:  # it belongs to the thread that takes the batches
            self._put(error)
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()

    def _put(self, item: Fed | BaseException) -> None:
        while not self._stopping.is_set():
            try:
                return self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue


def put(batch: Any, mesh: Mesh) -> Any:
    """A batch on the devices, each array split along its first axis where the mesh divides it.

    In a run of several processes each gives its part of the first axis (``sharding.batch_part``);
    arrays that its devices cannot share equally must be alike everywhere.
    """
    split, whole = batch_sharding(mesh), replicated(mesh)
    devices = len(batch_part(mesh).blocks)

    def place(array: Any) -> jax.Array:
        array = np.asarray(array)
        where = split if array.ndim and array.shape[0] % devices == 0 else whole
        return jax.make_array_from_process_local_data(where, array)

    return jax.tree.map(place, batch)
