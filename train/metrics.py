"""What a run reports: JSON lines always, TensorBoard by option, a bar on terminals."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.summary import scalar
from tqdm import tqdm

from dyntok_jax.command_line import is_terminal
from dyntok_jax.files import atomic_path
from dyntok_jax.types import DyntokError

# Its classes are made when it is imported, which a type checker does not see.
EVENTS: Any = importlib.import_module("tensorboardX.proto.event_pb2")


class Metrics:
    """Writer of a run's records; on process 0 only, the others' calls do nothing."""

    def __init__(self, folder: Path, done: int, steps: int, tensorboard: bool):
        """Opens ``metrics.jsonl``, dropping what stands there of steps after ``done``.

        Args:
            folder: of the run.
            done: steps done, 0 for a new run.
            steps: of the whole run.
            tensorboard: whether to write event files too, under ``tensorboard/``.

        Raises:
            DyntokError: it cannot be read or written.
        """
        self._file = self._board = self._bar = None
        if jax.process_index() != 0:
            return
        path = folder / "metrics.jsonl"
        with _writing(path):
            _drop_after(path, done)
            self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            with _writing(folder / "tensorboard"):
                self._board = _Board(folder / "tensorboard", done + 1)
        if is_terminal():
            self._bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True)

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Adds a record of finite scalars; what is not finite becomes null.

        Args:
            step: steps done.
            kind: ``train`` or ``evaluation``.
            values: by name.

        Raises:
            DyntokError: the disk is full.
        """
        if self._file is None:
            return
        record = {name: _plain(value) for name, value in values.items()}
        with _writing(self._file.name):
            self._file.write(json.dumps({"step": step, "kind": kind} | record) + "\n")
            self._file.flush()
        if self._board is not None:
            with _writing(self._board.folder):
                self._board.add(step, {f"{kind}/{name}": value for name, value in record.items()})

    def advance(self) -> None:
        """One more step on the bar."""
        if self._bar is not None:
            self._bar.update()

    def show(self, **figures: float) -> None:
        """Figures beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()})

    def close(self) -> None:
        """Closes files and bar."""
        for part in (self._file, self._board, self._bar):
            if part is not None:
                # Records are flushed one by one: what cannot be written was said then.
                with contextlib.suppress(OSError):
                    part.close()


class _Board:
    """Event files of TensorBoard, written at once.

    The library's own writer has a thread for it; where the disk is full that ends, and the run
    waits for ever for room in its queue.
    """

    def __init__(self, folder: Path, purge: int):
        """Begins a file, by which TensorBoard forgets what it has of steps from ``purge`` on."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        self._file.write_event(EVENTS.Event(step=purge, file_version="brain.Event:2"))
        start = EVENTS.SessionLog(status=EVENTS.SessionLog.START)
        self._file.write_event(EVENTS.Event(step=purge, session_log=start))
        self._file.flush()

    def add(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Adds scalars; None has no place there."""
        for name, value in values.items():
            if value is not None:
                event = EVENTS.Event(wall_time=time.time(), step=step, summary=scalar(name, value))
                self._file.write_event(event)
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@contextlib.contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DyntokError(f"{path}: cannot be written ({error.strerror})") from error


def _drop_after(path: Path, done: int) -> None:
    """Rewrites a JSONL file without records after a step, and without a broken last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= done:
                kept.append(line + "\n")
    with atomic_path(path) as partial:
        partial.write_text("".join(kept), encoding="utf-8")


def _plain(value: Any) -> float | int | None:
    value = value if isinstance(value, int) else float(value)
    return value if math.isfinite(value) else None


class Clock:
    """Seconds since the last reading, without those spent on something else."""

    def __init__(self):
        self._start, self._paused = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time in this context does not count."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def read(self) -> float:
        """Seconds since the last reading; begins anew."""
        now = time.perf_counter()
        seconds, self._start, self._paused = now - self._start - self._paused, now, 0.0
        return seconds
