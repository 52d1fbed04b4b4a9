"""Training steps of an adapter: against transformers and peft in torch, and static against merged.

    UNER=FOLDER python -m eval.bench_lora --config configs/lora/uner_e5.yaml --steps 200 \
        --out out/lora_bench.json lora.dropout=0.0 'training.optimizer.phases=[{peak: 5.0e-4}]'

All start from the same values and take the same batches of base tokens in one run, turn and turn
about: torch, the step in float32, as torch computes, and the step as configured. One in a shape
that is new is not timed. torch takes the learning rates from the schedule here. Without dropout the
losses of the first two are compared, and at the end their figures on held-out examples. Rounding
grows with the steps, in float32 to more than what is compared: with ``--float64`` both compute in
float64, and nothing is timed. With ``--reduction PCT`` configured steps on merged batches are timed
against static ones, with everything that comes before them: once while their rows are new, and once
more when the cache has them, as in an adapter's later epochs.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dyntok_jax.adapter_files import write_adapter
from dyntok_jax.config import read_config
from dyntok_jax.model_store import resolve
from dyntok_jax.models.hf_config import read_architecture
from dyntok_jax.sharding import replicated
from dyntok_jax.types import DyntokError
from eval.record import Parser, percent, positive, run
from train.feed import put
from train.lora import make_task
from train.lora_config import LoraRun, TokenizationConfig
from train.lora_task import LoraTask
from train.optim import make_optimizer
from train.step import initial_state, make_step
from train.task_batches import TaskBatch

EARLY = 50
"""Steps over which the losses have to agree more closely."""


def main() -> None:
    """The command."""
    parser = Parser(
        prog="eval.bench_lora",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", required=True, type=Path, metavar="FILE", help="of a run of train.lora")
    add("--steps", type=positive, default=200, metavar="N", help="batches (200)")
    add("--reduction", type=percent, metavar="PCT", help="also time merged batches")
    add("--float64", action="store_true", help="only compare losses, computed in float64")
    add("--rows", default="fvt", help="rows of the merged batches (fvt)")
    add("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="fields of the config")
    run(parser, _measure, names_model=False)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    given = read_config(LoraRun, options.config, options.overrides)
    # Beside torch, which knows no others, base tokens by the model's own rows.
    settings = replace(
        given,
        rows="base",
        base_rows=None,
        language=None,
        tokenization=TokenizationConfig(),
        held_out_reductions=(0.0,),
    )
    figures: dict[str, Any] = {"model": settings.model, "adapter": settings.task}
    figures |= {"rank": settings.lora.rank, "sequences": settings.sequences}
    if options.float64:
        return figures | in_float64(settings, options)
    figures["products"] = settings.training.products
    task = make_task(settings)
    if importlib.util.find_spec("torch"):
        figures |= against_torch(make_task(exact(settings, "float32")), task, options.steps)
    else:
        figures["torch_skipped"] = "torch is not installed"
    if options.reduction is not None:
        merged = merged_run(given, options.rows, options.reduction)
        figures["merged"] = {"reduction": options.reduction, "rows": options.rows}
        figures["merged"] |= against_merged(task, make_task(merged), options.steps)
    return figures


def in_float64(settings: LoraRun, options: argparse.Namespace) -> dict[str, Any]:
    """Losses and figures of :func:`against_torch`, without a rounding that would count."""
    if options.reduction is not None:
        raise DyntokError("--reduction: merged batches are timed, and --float64 times nothing")
    if not importlib.util.find_spec("torch"):
        raise DyntokError("--float64 compares with torch, which is not installed")
    if settings.lora.dropout:
        raise DyntokError("--float64 compares losses: give lora.dropout=0.0")
    with jax.enable_x64(True):
        found = against_torch(make_task(exact(settings, "float64")), None, options.steps)
    return {"dtype": "float64"} | found


def exact(settings: LoraRun, dtype: str) -> LoraRun:
    """The run as torch computes it, to be held beside it value by value."""
    training = replace(settings.training, products="float32")
    return replace(settings, training=training, compute=replace(settings.compute, dtype=dtype))


def merged_run(given: LoraRun, rows: str, reduction: float) -> LoraRun:
    """The run with batches merged within its boundary, and without evaluations."""
    training = replace(given.training, evaluate_every=0)
    mode = TokenizationConfig("fixed", reduction, boundary=given.tokenization.boundary)
    return replace(
        given,
        rows=rows,
        tokenization=mode,
        held_out=(),
        held_out_reductions=(0.0,),
        training=training,
    )


class JaxSide:
    """A task's step, and the shapes it was compiled for.

    Attributes:
        seconds: of every step in a shape that was not new.
        rate: the last step's learning rate.
    """

    def __init__(self, task: LoraTask, steps: int):
        self.task, self.seconds, self.rate = task, {}, 0.0
        training = task.run.training
        optimizer, schedule = make_optimizer(training.optimizer, steps)
        self.state, where = initial_state(task, optimizer, training.seed)
        self._step = make_step(task, optimizer, schedule, where, training.products)
        self._sound = jax.device_put(np.True_, replicated(task.mesh))
        self._shapes: set[Any] = set()

    def step(self, number: int, prepared: Callable[[], TaskBatch]) -> tuple[float, bool]:
        """A step on a batch, and whether it was timed; ``prepared`` is timed with it."""
        start = time.perf_counter()
        batch = prepared()
        placed = put(batch, self.task.mesh)
        self.state, report = self._step(self.state, self._sound, self.task.frozen, placed)
        loss, self.rate = float(report.loss), float(report.learning_rate)
        shape = (batch.ids.shape, batch.rows.shape)
        timed, self._shapes = shape in self._shapes, self._shapes | {shape}
        if timed:
            self.seconds[number] = time.perf_counter() - start
        return loss, timed


class Drawn(NamedTuple):
    """A batch of base tokens for both sides.

    Attributes:
        batch: padded to a bucket.
        ids: of every sequence.
    """

    batch: TaskBatch
    ids: list[np.ndarray]


def drawn(task: LoraTask, steps: int) -> Iterator[Drawn]:
    """The first batches of a task with base rows."""
    batcher, stream = task.batcher, task.batches(None)
    for number in range(steps):
        epoch, place = divmod(number, batcher.per_epoch)
        ids = [batcher.examples.base[i].ids for i in batcher.order(epoch)[place]]
        yield Drawn(next(stream).batch, ids)


def against_torch(task: LoraTask, configured: LoraTask | None, steps: int) -> dict[str, Any]:
    """Seconds and losses on the same batches, and figures at the end.

    Args:
        task: computes as torch does.
        configured: the same task, computing as it likes; only its seconds count. Without it
            nothing is timed.
        steps: batches.
    """
    import torch  # pyright: ignore[reportMissingImports]

    from eval.torch_lora import TorchLora

    settings, side = task.run, JaxSide(task, steps)
    other_side = None if configured is None else JaxSide(configured, steps)
    folder, labels = resolve(settings.model), task.batcher.examples.task.labels
    kind = task.batcher.examples.task.kind
    with tempfile.TemporaryDirectory() as first:
        start = task.adapter(side.state.trainables)
        write_adapter(Path(first), start, read_architecture(folder), str(folder))
        optimizer, dtype = settings.training.optimizer, settings.compute.dtype
        other = TorchLora(folder, Path(first), kind, len(labels), optimizer, dtype)
    losses: list[tuple[float, float]] = []
    seconds: list[tuple[float, float, float]] = []
    for number, (batch, ids) in enumerate(drawn(task, steps)):
        ours, timed = side.step(number, lambda batch=batch: batch)
        if other_side is not None:
            other_side.step(number, lambda batch=batch: batch)
        count, longest = len(ids), max(map(len, ids))
        wanted = batch.labels[(slice(count), slice(longest)) if kind == "token" else slice(count)]
        begin = time.perf_counter()
        losses.append((ours, other.step(ids, wanted, side.rate)))
        torch_seconds = time.perf_counter() - begin
        if timed and other_side is not None:
            seconds.append((side.seconds[number], other_side.seconds[number], torch_seconds))
    versions = {"torch": torch.__version__, "jax": jax.__version__}
    found = {"steps": steps, "dropout": settings.lora.dropout, "versions": versions}
    if configured is not None:
        found |= _seconds(seconds, ("jax", "configured", "torch"))
    if not settings.lora.dropout:
        apart = np.abs(np.diff(np.array(losses), axis=1))[:, 0]
        found |= {"losses": losses, f"apart_{EARLY}": float(apart[:EARLY].max())}
        found |= {"apart": float(apart.max())} | _figures(task, side, other)
    return found


def _seconds(steps: list[tuple[float, ...]], names: Sequence[str]) -> dict[str, Any]:
    """Medians of every side's seconds, and how many times longer than it the last side takes."""
    if not steps:
        raise DyntokError("too few steps: no shape of a batch came twice")
    table = np.array(steps)
    sums = table.sum(0)
    found: dict[str, Any] = {"timed": len(steps)}
    for i, name in enumerate(names):
        found[f"{name}_s"] = float(np.median(table[:, i]))
        if name != names[-1]:
            found[f"{name}_ratio"] = float(sums[-1] / sums[i])
    return found


def _figures(task: LoraTask, side: JaxSide, other: Any) -> dict[str, Any]:
    """The task's figure of both on held-out examples, mean over their languages."""
    if not task.run.held_out:
        return {}
    values = []
    for examples, sequences, _ in task.held_out[0.0].values():
        predicted: list[Any] = []
        for start in range(0, len(examples.base), task.run.sequences):
            part = examples.base[start : start + task.run.sequences]
            predicted += other.predict([sequence.ids for sequence in part])
        values.append(examples.figure(sequences, predicted))
    name = task.batcher.examples.task.metric.lower()
    ours = task.evaluate(side.state.trainables)[f"{name}_0"]
    return {f"{name}_jax": ours, f"{name}_torch": float(np.mean(values))}


def against_merged(static: LoraTask, merged: LoraTask, steps: int) -> dict[str, Any]:
    """Seconds of steps on static and on merged batches of the same examples, merging counted.

    The batches come twice: the second time their rows are known. ``new_rows`` are the tokens whose
    rows the cache lacked in each pass.
    """
    sides = [JaxSide(task, 2 * steps) for task in (static, merged)]
    tokens = np.zeros(2, np.int64)
    predicted = [0]
    for number in range(2 * steps):
        if number == steps:
            predicted.append(merged.model.cache.misses)
        for place, side in enumerate(sides):
            batcher = side.task.batcher
            epoch, rank = divmod(number % steps, batcher.per_epoch)
            chosen = batcher.order(epoch)[rank]

            def prepared(
                batcher: Any = batcher, chosen: Any = chosen, n: int = number % steps
            ) -> Any:
                return batcher.arrays(chosen, batcher.merged(chosen, n))

            side.step(number, prepared)
            tokens[place] += sum(len(s.tokens) for s in batcher.merged(chosen, number % steps))
    both = sorted(sides[0].seconds.keys() & sides[1].seconds.keys())
    pairs = {n: (sides[1].seconds[n], sides[0].seconds[n]) for n in both}
    known = _seconds([pairs[n] for n in both if n >= steps], ("merged", "static"))
    found = _seconds([pairs[n] for n in both if n < steps], ("merged", "static"))
    found["share_of_time"] = 1 / found.pop("merged_ratio")
    found["share_of_time_known_rows"] = 1 / known["merged_ratio"]
    found["new_rows"] = np.diff([*predicted, merged.model.cache.misses]).tolist()
    return found | {"share_of_tokens": float(tokens[1] / tokens[0])}


if __name__ == "__main__":
    main()
