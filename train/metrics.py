"""What a run reports: JSON lines always, TensorBoard by option, a bar on terminals."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from dyntok_jax.files import atomic_path
from dyntok_jax.types import DyntokError


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
        try:
            _drop_after(path, done)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise DyntokError(f"{path}: cannot be written ({error.strerror})") from error
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
        if sys.stderr.isatty():
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
        try:
            self._file.write(json.dumps({"step": step, "kind": kind} | record) + "\n")
            self._file.flush()
        except OSError as error:
            raise DyntokError(f"{self._file.name}: cannot be written ({error.strerror})") from error
        for name, value in record.items():
            if self._board is not None and value is not None:
                self._board.add_scalar(f"{kind}/{name}", value, step)

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
