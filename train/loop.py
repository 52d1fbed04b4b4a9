"""The training loop: any task, any mesh, resumed where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from dyntok_jax.checkpoint import Checkpoints
from dyntok_jax.config import at_least
from dyntok_jax.files import atomic_path
from dyntok_jax.sharding import batch_part, made_by_all, of_all_processes, replicated
from dyntok_jax.types import DyntokError
from train.feed import Fed, Feed
from train.metrics import Clock, Metrics
from train.optim import OptimizerConfig, make_optimizer
from train.run_folder import alone
from train.step import Products, Report, State, initial_state, make_step
from train.stopping import Stop, stop_signals
from train.task import Task

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """A run.

    Attributes:
        out: folder of the run: ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/``.
        steps: batches.
        seed: of the parameters and of what is drawn in the loss.
        optimizer: and its schedule.
        checkpoint_every: steps between checkpoints; 0 for one at the end only.
        keep: newest checkpoints that are kept.
        evaluate_every: steps between evaluations, with one at the end; 0 for none.
        best: figure of the evaluation whose best checkpoint is kept as well.
        direction: whether its best is the largest or the smallest.
        log_every: steps between records, which hold means over these steps.
        tensorboard: whether to write event files too.
        products: bfloat16 rounds the float32 factors of a step's products with parameters and
            output rows, in the losses and their gradients, and leaves all else in float32;
            evaluations stay exact. Faster on CPUs that multiply in bfloat16.
    """

    out: Path
    steps: int = 0
    seed: int = 0
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    checkpoint_every: int = 1000
    keep: int = 2
    evaluate_every: int = 0
    best: str | None = None
    direction: Literal["max", "min"] = "max"
    log_every: int = 10
    tensorboard: bool = False
    products: Products = "float32"

    def __post_init__(self) -> None:
        at_least(self, seed=0, log_every=1, keep=1, checkpoint_every=0, evaluate_every=0)


class Flight(NamedTuple):
    """A step that was handed to the devices and whose report was not read yet."""

    step: int
    fed: Fed
    report: Report


class Trained(NamedTuple):
    """What a run was for.

    Attributes:
        trainables: parameters.
        step: after which they were these.
    """

    trainables: Any
    step: int


def train(task: Task, config: TrainingConfig) -> Any:
    """The trainables of :func:`trained`."""
    return trained(task, config).trainables


def trained(task: Task, config: TrainingConfig) -> Trained:
    """Trains a task, from its newest checkpoint in ``config.out`` or from the start.

    SIGTERM and SIGINT end the process with exit code 0 after a checkpoint at the step they fell
    in; a second one ends it at once. Of several processes, SIGTERM to any ends all, after a step
    that they agree on; SIGINT is not taken note of.

    Returns:
        The trainables of the best checkpoint where ``config.best`` names a figure, else those
        after ``config.steps`` steps; also where all steps were already done.

    Raises:
        DyntokError: another run in the folder that is not over, settings that differ from those of
            the run there, a loss that is not finite (the batch is saved and named), a checkpoint
            that cannot be saved or read.
    """
    check(config)
    folder = config.out / "checkpoints"
    with (
        alone(config.out),
        Checkpoints(folder, config.keep, config.best, config.direction) as checkpoints,
    ):
        run = _Run(task, config, checkpoints)
        run.start()
        if run.done < config.steps:
            run.go()
        return run.trained()


def check(config: TrainingConfig) -> None:
    """Refuses settings that a run cannot begin with.

    Raises:
        DyntokError: no steps, or a best checkpoint without evaluations.
    """
    at_least(config, steps=1)
    if config.best is not None and not config.evaluate_every:
        raise DyntokError(f"best: {config.best} needs evaluations, but evaluate_every is 0")


class _Run:
    """A run in progress.

    Attributes:
        state: after the newest step that was handed to the devices.
        done: steps whose report was read.
        position: of the input side after these.
    """

    def __init__(self, task: Task, config: TrainingConfig, checkpoints: Checkpoints):
        self.task, self.config, self.checkpoints = task, config, checkpoints
        self.optimizer, self.schedule = make_optimizer(config.optimizer, config.steps)
        self.settings = dict(made_by_all(lambda: task.settings)) | {
            "training": {
                "steps": config.steps,
                "seed": config.seed,
                "optimizer": dataclasses.asdict(config.optimizer),
                "products": config.products,
            }
        }
        self.done, self.position = 0, None
        self.part = batch_part(task.mesh)
        self.shapes: set[Any] = set()
        self.clock = Clock()
        self.reports: list[dict[str, float]] = []
        self.tokens = self.dropped = self.cut = 0

    def start(self) -> None:
        """The state at step 0, or of the newest checkpoint."""
        self.state, self.shardings = initial_state(self.task, self.optimizer, self.config.seed)
        abstract = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            self.state,
            self.shardings,
        )
        self.abstract = abstract.trainables
        restored = self.checkpoints.restore(
            self.abstract, _rest(abstract), self.settings, self.task.evaluated
        )
        if restored is not None:
            self.state = State(restored.trainables, **restored.rest)
            self.done, self.position = restored.step, self._own(restored.position)
            logger.info("%s: resumed at step %d", self.config.out, self.done)

    def go(self) -> None:
        """Trains up to the last step."""
        config = self.config
        batches = made_by_all(lambda: self.task.batches(self.position))
        self.metrics = Metrics(config.out, self.done, config.steps, config.tensorboard)
        with (
            contextlib.closing(self.metrics),
            Feed(batches, self.task.mesh, agree=self.task.agree) as self.feed,
            stop_signals() as stop,
        ):
            self._steps(stop)
            # A signal now must not cost the last checkpoint, which may be the only one.
            self.checkpoints.wait()

    def trained(self) -> Trained:
        """The parameters that the run was for; the log says of which step."""
        config = self.config
        if config.best is not None:
            found = self.checkpoints.restore_best(self.abstract)
            if found is not None:
                logger.info(
                    "%s: best %s at step %d: these parameters", config.out, config.best, found[0]
                )
                return Trained(found[1], found[0])
        logger.info("%s: the parameters of the last step, %d", config.out, self.done)
        return Trained(self.state.trainables, self.done)

    def _steps(self, stop: Stop) -> None:
        config = self.config
        whole = replicated(self.task.mesh)
        step_function = make_step(
            self.task, self.optimizer, self.schedule, self.shardings, config.products
        )
        frozen = self.task.frozen
        sound = jax.device_put(np.True_, whole)
        flight: Flight | None = None
        self.clock.read()
        for step in range(self.done + 1, config.steps + 1):
            try:
                fed = self.feed.next(flight and flight.report)
            except Exception as error:
                # It should not cost the steps so far. Of several processes all have to save, and
                # only where they agree on batches do all know that one's input has ended.
                if flight is not None:
                    self._settle(flight)
                known = self.task.agree is not None and self.feed.ended
                if self.done and (known or jax.process_count() == 1):
                    try:
                        self._save(None)
                        self.checkpoints.wait()
                    except DyntokError as lost:
                        raise DyntokError(f"{error}; and {lost}") from error
                raise
            with self._compiling(fed):
                self.state, report = step_function(self.state, sound, frozen, fed.arrays)
            sound = report.sound
            if flight is not None:
                self._settle(flight)
            flight = Flight(step, fed, report)
            stopping = stop.requested(self.checkpoints, step)
            evaluating = _due(step, config.evaluate_every, config.steps)
            saving = _due(step, config.checkpoint_every, config.steps) or step == config.steps
            if stopping or evaluating or saving:
                self._settle(flight)
                flight = None
                with self.clock.paused():
                    figures = self._evaluate() if evaluating else None
                    if stopping or saving or config.best:
                        self._save(figures)
            if stopping and step < config.steps:
                self.checkpoints.wait()
                logger.warning("stopped by signal after step %d; the same command goes on", step)
                sys.exit(0)

    @contextlib.contextmanager
    def _compiling(self, fed: Fed) -> Iterator[None]:
        """Counts the shapes that are new, and leaves their compilation out of the speed."""
        leaves, structure = jax.tree.flatten(fed.loaded.batch)
        shapes = (structure, *((np.shape(leaf), np.result_type(leaf)) for leaf in leaves))
        if shapes in self.shapes:
            yield
            return
        self.shapes.add(shapes)
        start = time.perf_counter()
        with self.clock.paused():
            yield
        logger.info(
            "compilation %d of the step took %.1f s", len(self.shapes), time.perf_counter() - start
        )

    def _settle(self, flight: Flight) -> None:
        """Reads a step's report; ends the run where its loss is not finite."""
        report = jax.device_get(flight.report)
        if not report.sound:
            self._fail(flight, report)
        self.done, self.position = flight.step, flight.fed.loaded.position
        self.tokens += flight.fed.loaded.tokens * self.part.count
        self.dropped += flight.fed.loaded.dropped * self.part.count
        self.cut += flight.fed.loaded.cut
        self.reports.append(
            {"loss": report.loss, "grad_norm": report.grad_norm} | dict(report.metrics)
        )
        self.metrics.advance()
        if _due(self.done, self.config.log_every, self.config.steps):
            self._log(report.learning_rate)

    def _log(self, rate: float) -> None:
        seconds = max(self.clock.read(), 1e-9)
        names = dict.fromkeys(name for report in self.reports for name in report)
        means = {
            name: float(np.mean([report[name] for report in self.reports if name in report]))
            for name in names
        }
        speed = {
            "learning_rate": float(rate),
            "tokens_per_s": self.tokens / seconds,
            "input_wait": self.feed.waited / seconds,
            "compilations": len(self.shapes),
        }
        if self.dropped:
            speed["dropped"] = self.dropped / (self.dropped + self.tokens)
        if self.cut:
            speed["cut"] = self.cut / len(self.reports)
        self.metrics.write(self.done, "train", means | speed)
        self.metrics.show(loss=means["loss"], tokens_per_s=speed["tokens_per_s"])
        self.reports, self.tokens, self.dropped, self.cut, self.feed.waited = [], 0, 0, 0, 0.0

    def _evaluate(self) -> dict[str, float]:
        try:
            figures = self.task.evaluate(self.state.trainables)
            if self.config.best is not None and self.config.best not in figures:
                names = ", ".join(figures)
                raise DyntokError(
                    f"best: no figure {self.config.best!r} in the evaluation ({names})"
                )
        except Exception:
            # What is wrong with an evaluation should not cost the steps so far.
            self._save(None)
            self.checkpoints.wait()
            raise
        self.metrics.write(self.done, "evaluation", figures)
        return figures

    def _save(self, figures: dict[str, float] | None) -> None:
        self.checkpoints.save(
            self.done,
            self.state.trainables,
            _rest(self.state),
            self._of_all(self.position),
            self.settings,
            figures,
            self.task.evaluated,
        )

    def _of_all(self, position: Any) -> Any:
        """The positions of all parts of the input, since one process writes for all."""
        if self.part.count == 1:
            return position
        found = dict(of_all_processes([self.part.index, position]))
        return {"of_parts": [found[index] for index in range(self.part.count)]}

    def _own(self, position: Any) -> Any:
        """This process's, of a checkpoint; of other parts than there are now, the first one's."""
        parts = position.get("of_parts") if isinstance(position, dict) else None
        if parts is None:
            return position
        return parts[self.part.index if len(parts) == self.part.count else 0]

    def _fail(self, flight: Flight, report: Report) -> None:
        found = f"loss {report.loss}, gradient norm {report.grad_norm}"
        if np.isfinite([report.loss, report.grad_norm]).all():
            found += ", but the optimizer's update is not finite"
        try:
            where = f"is in {save_batch(self.config.out, flight.step, flight.fed.loaded.batch)}"
        except Exception as error:  # whatever it is, the loss has to be told
            where = f"could not be saved ({error})"
        said = f"step {flight.step}: {found}; the batch {where}"
        try:
            self._save(None)
            self.checkpoints.wait()
        except DyntokError as lost:
            raise DyntokError(f"{said}; and {lost}") from lost
        raise DyntokError(
            f"{said}, the parameters before it are in the checkpoint of step {self.done}"
        )


def _rest(state: State) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "trainables"}


def _due(step: int, every: int, steps: int) -> bool:
    return every > 0 and (step % every == 0 or step == steps)


def save_batch(folder: Path, step: int, batch: Any) -> Path:
    """Writes a batch as ``nan_batch_STEP.safetensors``, its arrays named by their place in it."""
    process = f"_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = folder / f"nan_batch_{step}{process}.safetensors"
    arrays = {
        jax.tree_util.keystr(place, simple=True, separator="/"): np.array(leaf, order="C")
        for place, leaf in jax.tree_util.tree_leaves_with_path(batch)
    }
    with atomic_path(path) as partial:
        save_file(arrays, partial)
    return path
