"""Checkpoints of a training run: saved beside the training, restored onto any mesh."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from dyntok_jax.run_settings import check_same, plain_settings
from dyntok_jax.sharding import of_all_processes
from dyntok_jax.types import DyntokError

logger = logging.getLogger(__name__)
_STORAGE_LOGGER = logging.getLogger("absl")


class Restored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        step: steps done.
        trainables: the parameters.
        rest: optimizer state and PRNG key.
        position: JSON value, where the input side goes on.
    """

    step: int
    trainables: Any
    rest: Any
    position: Any


class Checkpoints:
    """The checkpoints in a folder, one subfolder a step; use it as a context manager."""

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        best: str | None = None,
        direction: Literal["max", "min"] = "max",
    ):
        """Opens the folder, making it where it is missing.

        Args:
            folder: holds this run's checkpoints and nothing else.
            keep: newest checkpoints that are kept.
            best: name of the figure whose best checkpoint is kept as well; one whose figure is
                missing, not finite or cannot be read is never the best.
            direction: whether the best is the largest or the smallest.

        Raises:
            DyntokError: the folder cannot be made or written.
        """
        self.folder = folder
        policies: list[Any] = [LatestN(keep)]

        def figure(metrics: Any) -> float:
            return metrics[best]

        if best is not None:
            policies.append(
                BestN(
                    get_metric_fn=figure,
                    reverse=direction == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            best_fn=figure if best else None,
            best_mode=direction,
            preservation_policy=AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(_quiet())
            try:
                self._manager = _Manager(folder.absolute(), best, options)
            except OSError as error:
                raise DyntokError(f"{folder}: cannot hold checkpoints ({_line(error)})") from error
            self._stack = stack.pop_all()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._guarded(self._manager.close)
        except DyntokError:
            if kind is None:
                raise
        finally:
            self._stack.close()

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Step of the best checkpoint; None without one."""
        return self._manager.best_step()

    def reached_preemption(self, step: int) -> bool:
        """Whether all processes of a multi-process run were told to stop after this step."""
        return self._manager.reached_preemption(step)

    def save(
        self,
        step: int,
        trainables: Any,
        rest: Any,
        position: Any,
        settings: Mapping[str, Any],
        figures: Mapping[str, float] | None = None,
        evaluated: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Copies the arrays and writes them in the background; a step's second save does nothing.

        Args:
            step: steps done.
            trainables: parameters, ``jax.Array`` leaves.
            rest: optimizer state and PRNG key data, ``jax.Array`` leaves.
            position: JSON value, where the input side goes on.
            settings: JSON values that must be equal for a resumed run.
            figures: of an evaluation at this step, for the best.
            evaluated: JSON values, what figures are of; must be equal for a resumed run that keeps
                its best checkpoint.

        Raises:
            DyntokError: this save, or the one before it, failed; earlier checkpoints are good.
        """
        if step in self._manager.all_steps():
            return
        best = self._manager.best
        if best is not None and figures is not None and not _ranks(figures, best):
            logger.warning("%s: step %d cannot be the best: no finite %s", self.folder, step, best)
            figures = None
        run = {
            "position": position,
            "settings": plain_settings(settings),
            "evaluated": plain_settings(evaluated),
            "sums": np.asarray(_sums((trainables, rest))).tolist(),
        }
        items = ocp.args.Composite(
            trainables=ocp.args.StandardSave(trainables),
            rest=ocp.args.StandardSave(rest),
            run=ocp.args.JsonSave(run),
        )
        self._guarded(self._manager.save, step, args=items, metrics=figures, force=True)

    def wait(self) -> None:
        """Until the last save is on disk.

        Raises:
            DyntokError: it failed; earlier checkpoints are good.
        """
        self._guarded(self._manager.wait_until_finished)

    def _guarded(self, call: Any, *arguments: Any, **options: Any) -> None:
        try:
            call(*arguments, **options)
        except Exception as error:  # the storage layer raises many kinds
            raise DyntokError(
                f"{self.folder}: a checkpoint could not be saved ({_line(error)}); earlier "
                "checkpoints are good: make room and run again"
            ) from error

    def restore(
        self,
        trainables: Any,
        rest: Any,
        settings: Mapping[str, Any],
        evaluated: Mapping[str, Any] = MappingProxyType({}),
    ) -> Restored | None:
        """The newest checkpoint that is whole, put where the given trees say.

        Damaged newer ones are moved aside once an older one is read, with one warning; another
        names those that cannot be the best, as their figures are damaged.

        Args:
            trainables: ``jax.ShapeDtypeStruct`` leaves with shardings of the running task's mesh,
                which need not be the mesh of the run that saved.
            rest: likewise.
            settings: those of the running task.
            evaluated: likewise; compared where the best checkpoint is kept.

        Returns:
            The checkpoint, or None where the folder has none.

        Raises:
            DyntokError: the settings differ from the run's, every checkpoint is damaged, or one
                that may be sound cannot be read now.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                run = self._sound(step, self._read_run)
                self._check_same(run, settings, evaluated)
                arrays = self._sound(step, self._read_arrays, trainables, rest, run["sums"])
            except _DamageError as error:
                damaged[step] = str(error)
                continue
            self._set_aside(damaged, step)
            self._tell_unranked()
            return Restored(step, arrays[0], arrays[1], run["position"])
        if damaged:
            said = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise DyntokError(f"{self.folder}: no checkpoint can be read ({said})")
        return None

    def restore_best(self, trainables: Any) -> tuple[int, Any] | None:
        """Step and parameters of the best checkpoint.

        Args:
            trainables: ``jax.ShapeDtypeStruct`` leaves, as for :meth:`restore`.

        Returns:
            None where there is none; likewise, with a warning, where it is damaged.

        Raises:
            DyntokError: it cannot be read now and may be sound.
        """
        step = self.best_step()
        if step is None:
            return None
        try:
            return step, self._sound(step, self._read_trainables, trainables)
        except _DamageError as error:
            logger.warning("%s: the best checkpoint, %d, is damaged (%s)", self.folder, step, error)
            return None

    def _sound(self, step: int, read: Callable[..., Any], *arguments: Any) -> Any:
        """What ``read`` finds at a step; of several processes all find it or none does.

        Raises:
            _DamageError: the checkpoint is damaged.
            DyntokError: what failed says nothing about the checkpoint.
        """
        found = failed = None
        try:
            found = read(step, *arguments)
        except Exception as error:  # damage shows in many ways
            failed = _line(error), _is_damage(error)
        for reason, is_damage in sorted(filter(None, of_all_processes(failed)), key=itemgetter(1)):
            if is_damage:
                raise _DamageError(reason)
            raise DyntokError(
                f"{self.folder}: checkpoint {step} cannot be read now ({reason}); it may be sound: "
                f"run again, or move {self.folder / str(step)} away to go on from an older one"
            )
        return found

    def _read_run(self, step: int) -> Any:
        restored = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))
        names = ("settings", "evaluated", "position", "sums")
        if missing := [name for name in names if name not in restored["run"]]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        return restored["run"]

    def _check_same(
        self, run: Any, settings: Mapping[str, Any], evaluated: Mapping[str, Any]
    ) -> None:
        check_same(run["settings"], settings, self.folder)
        if self._manager.best is not None:
            # Figures of other texts do not rank beside those that are there.
            before, now = {"evaluated": run["evaluated"]}, {"evaluated": dict(evaluated)}
            check_same(before, now, self.folder)

    def _read_arrays(self, step: int, trainables: Any, rest: Any, sums: list[int]) -> Any:
        items = ocp.args.Composite(
            trainables=ocp.args.StandardRestore(trainables), rest=ocp.args.StandardRestore(rest)
        )
        restored = self._manager.restore(step, args=items)
        arrays = restored["trainables"], restored["rest"]
        _compare_sums(arrays, sums)
        return arrays

    def _read_trainables(self, step: int, trainables: Any) -> Any:
        sums = self._read_run(step)["sums"][: len(jax.tree.leaves(trainables))]
        items = ocp.args.Composite(trainables=ocp.args.StandardRestore(trainables))
        found = self._manager.restore(step, args=items)["trainables"]
        _compare_sums(found, sums)
        return found

    def _set_aside(self, damaged: Mapping[int, str], used: int) -> None:
        """Moves damaged checkpoints out of the way of the steps to come."""
        if not damaged:
            return
        aside = self.folder.with_name(f"{self.folder.name}_damaged")
        said = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        failed = None
        try:
            if jax.process_index() == 0:
                aside.mkdir(exist_ok=True)
                for step in damaged:
                    (self.folder / str(step)).rename(_free(aside / str(step)))
        except OSError as error:
            failed = _line(error)
        for reason in filter(None, of_all_processes(failed)):
            raise DyntokError(f"{aside}: damaged checkpoints ({said}) cannot be moved ({reason})")
        logger.warning(
            "%s: going on from step %d; newer ones are damaged and now in %s (%s)",
            *(self.folder, used, aside, said),
        )
        self._manager.unranked.clear()
        self._manager.reload()

    def _tell_unranked(self) -> None:
        unranked = sorted(self._manager.unranked.items())
        if unranked:
            said = "; ".join(f"{step}: {reason}" for step, reason in unranked)
            logger.warning("%s: checkpoints that cannot be the best (%s)", self.folder, said)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the storage layer from logging saves at length, and errors that it raises as well.

    When a read fails, many others are still under way, and end after their event loop: each is
    good for a traceback.
    """
    level, hook = _STORAGE_LOGGER.level, sys.unraisablehook

    def without_late_reads(said: Any) -> None:
        if str(said.exc_value) != "Event loop is closed":
            hook(said)

    _STORAGE_LOGGER.setLevel(logging.CRITICAL)
    sys.unraisablehook = without_late_reads
    try:
        yield
    finally:
        _STORAGE_LOGGER.setLevel(level)
        sys.unraisablehook = hook


class _DamageError(Exception):
    """A checkpoint is not as it was saved."""


class _Manager(ocp.CheckpointManager):
    """The storage layer's manager, to which figures that cannot be read are none.

    Attributes:
        unranked: why the figures of a step are none.
    """

    def __init__(self, folder: Path, best: str | None, options: ocp.CheckpointManagerOptions):
        self.best, self.unranked = best, dict[int, str]()
        super().__init__(folder, options=options)

    def metrics(self, step: int) -> Any:
        """Figures of a checkpoint; opening the folder asks for those of all."""
        if self.best is None:
            return None
        try:
            figures = super().metrics(step)
        except Exception as error:  # damage shows in many ways
            if not _is_damage(error):
                raise OSError(f"figures of step {step}: {_line(error)}") from error
            self.unranked[step] = _line(error)
            return None
        if figures is None or _ranks(figures, self.best):
            return figures
        self.unranked[step] = f"no finite figure {self.best!r}"
        return None


def _ranks(figures: Any, name: str) -> bool:
    figure = figures.get(name) if isinstance(figures, Mapping) else None
    return isinstance(figure, int | float) and math.isfinite(figure)


@jax.jit
def _sums(tree: Any) -> jax.Array:
    """Sum of every array's bits modulo 2³², the same on every mesh; it detects damage."""

    def total(leaf: jax.Array) -> jax.Array:
        if leaf.dtype == jnp.bool_:
            bits = leaf
        else:
            bits = jax.lax.bitcast_convert_type(leaf, _WORDS[leaf.dtype.itemsize])
        return jnp.sum(bits, dtype=jnp.uint32)

    return jnp.stack([total(leaf) for leaf in jax.tree.leaves(tree)])


def _compare_sums(tree: Any, sums: list[int]) -> None:
    if np.asarray(_sums(tree)).tolist() != sums:
        raise ValueError("its values are not those that were saved")


_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}


_FLEETING = re.compile(
    "RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|ABORTED|"
    "CANCELLED|UNKNOWN"
)
"""Status by which the storage layer says that reading failed, not what was read."""


def _is_damage(error: Exception) -> bool:
    """Whether reading failed for what the files hold or that they are missing."""
    if isinstance(error, OSError):
        return isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    if isinstance(error, MemoryError | jax.errors.JaxRuntimeError):
        return False
    return not _FLEETING.match(str(error))


def _free(path: Path) -> Path:
    """The path, with a number behind it where it is taken."""
    numbered = (path.with_name(f"{path.name}_{i}") for i in itertools.count(2))
    return next(name for name in itertools.chain([path], numbered) if not name.exists())


def _line(error: BaseException) -> str:
    said = " ".join(str(error).split())
    # The storage layer says so at the end of several long paths.
    return "no space left" if "No space left" in said else said[:200] or type(error).__name__
