"""The folder of a run: its own, fit for the results, and of one run at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from dyntok_jax.sharding import made_by_all
from dyntok_jax.types import DyntokError

logger = logging.getLogger(__name__)

_LOCK = fcntl.LOCK_EX | fcntl.LOCK_NB
_held: set[str] = set()


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Makes a run's folder and keeps other runs out of it, where its file system can.

    A run that was killed keeps none out. Within it, further calls do nothing.

    Raises:
        DyntokError: another run is there; the folder cannot be made, or is not one of its own.
    """
    place = os.path.realpath(out)
    if place in _held:
        yield
        return
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            _make(out)
            if jax.process_index() != 0:
                return
            try:
                fcntl.flock(stack.enter_context((out / ".lock").open("ab")), _LOCK)
            except BlockingIOError as error:
                raise DyntokError(
                    f"training.out: another run is writing to {out}; wait for its end, or give "
                    "this one another folder"
                ) from error
            except OSError as error:
                logger.info("%s: is not locked against other runs (%s)", out, error.strerror)

        made_by_all(lock)
        _held.add(place)
        stack.callback(_held.remove, place)
        yield


def _make(out: Path) -> None:
    if out == Path():
        raise DyntokError("training.out: is the current folder; give the run its own")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DyntokError(f"training.out: {out} cannot be made ({error.strerror})") from error


def folder_to_write(folder: Path) -> Path:
    """The folder of a run's result, found fit to be one before the run.

    Raises:
        DyntokError: something else is there.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise DyntokError(f"{folder}: is no folder, but the run's result is written there")
    return folder
