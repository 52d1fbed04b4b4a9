"""Steps a second of the objective ``distill``, against the same step in plain torch.

    TEXT=FOLDER python -m eval.bench_distill --model multilingual-e5-small \
        --config configs/hypernet/e5_small.yaml --out eval/results/distill.json

Both train the same hypernetwork from the same parameters on the same batches in one run, taking
turns, once in float32 and once with products in bfloat16 (``training.products``; in torch
autocast). Where ``compute.remat`` is on, this side's steps recompute the layers, torch's do not.
The optimizer is AdamW, which both have. Without torch the measurement is of this project's step
alone, and the result says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dyntok_jax.config import read_config
from dyntok_jax.embed.zett import save_hypernet
from dyntok_jax.model_store import resolve
from dyntok_jax.sharding import replicated
from dyntok_jax.types import DyntokError
from eval.record import Parser, positive, run
from eval.timing import medians
from train.config import HypernetRun
from train.distill import Distillation
from train.feed import put
from train.hypernet import make_task
from train.loop import TrainingConfig, train
from train.optim import Phase, make_optimizer
from train.preparation import DistillBatch
from train.step import Products, initial_state, make_step

TOLERANCES: dict[Products, float] = {"float32": 1e-3, "bfloat16": 0.05}
"""Largest relative difference of the two losses on any batch, by what products are rounded to."""


def main() -> None:
    """The command."""
    parser = Parser(
        prog="eval.bench_distill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", required=True, type=Path, metavar="FILE", help="of a run of distill")
    add("--batches", type=positive, default=8, metavar="N", help="steps of a turn (8)")
    add("--repeats", type=positive, default=3, metavar="N", help="turns after a warm-up (3)")
    add("--loop-steps", type=positive, default=60, metavar="N", help="steps of the loop (60)")
    run(parser, _measure)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    read = read_config(HypernetRun, options.config)
    training = replace(read.training, optimizer=replace(read.training.optimizer, name="adamw"))
    settings = replace(read, model=options.model, held_out=None, training=training)
    task = make_task(settings)
    if not isinstance(task, Distillation) or not task.is_encoder:
        raise DyntokError(f"{options.config}: not a run of distill with an encoder")
    figures = compare(task, settings, options.batches, options.repeats)
    return {"model": options.model} | figures | loop_figures(task, settings, options.loop_steps)


def compare(
    task: Distillation, settings: HypernetRun, batches: int, repeats: int
) -> dict[str, Any]:
    """Steps a second of both, and how far their losses are apart in the first turn.

    Raises:
        DyntokError: too far, so that what is measured would not be the same.
    """
    drawn = [loaded.batch for loaded in islice(task.batches(None), batches)]
    has_torch = importlib.util.find_spec("torch") is not None
    turns: dict[str, Callable[[], list[float]]] = {}
    for products in TOLERANCES:
        turns[f"jax {products}"] = _jax_turn(task, settings, drawn, products)
        if has_torch:
            turns[f"torch {products}"] = _torch_turn(task, settings, drawn, products)
    losses: dict[str, list[list[float]]] = {key: [] for key in turns}
    tasks = {key: lambda key=key: losses[key].append(turns[key]()) for key in turns}
    seconds = medians(tasks, repeats)
    figures: dict[str, Any] = {"shape": list(drawn[0].base_ids.shape)}
    figures |= {"batches": batches, "repeats": repeats, "jax": {}, "torch": {}}
    figures |= {"loss_difference": {}}
    for key, value in seconds.items():
        side, products = key.split()
        figures[side][products] = batches / value
    if not has_torch:
        return figures | {"torch_skipped": "torch is not installed"}
    for products, tolerance in TOLERANCES.items():
        found, wanted = (np.array(losses[f"{side} {products}"][0]) for side in ("jax", "torch"))
        difference = float(np.max(np.abs(found - wanted) / np.abs(wanted)))
        if not difference < tolerance:
            raise DyntokError(
                f"products in {products}: the losses of jax and torch differ: {found} and {wanted}"
            )
        figures["loss_difference"][products] = difference
    import torch  # pyright: ignore[reportMissingImports]

    return figures | {"versions": {"torch": torch.__version__, "jax": jax.__version__}}


def _jax_turn(
    task: Distillation, settings: HypernetRun, drawn: Sequence[DistillBatch], products: Products
) -> Callable[[], list[float]]:
    """A function that trains on all batches, and gives their losses."""
    training = settings.training
    optimizer, schedule = make_optimizer(training.optimizer, training.steps)
    state, shardings = initial_state(task, optimizer, training.seed)
    step = make_step(task, optimizer, schedule, shardings, products)
    sound = jax.device_put(np.True_, replicated(task.mesh))
    placed = [put(batch, task.mesh) for batch in drawn]

    def turn() -> list[float]:
        nonlocal state
        losses = []
        for batch in placed:
            state, report = step(state, sound, task.frozen, batch)
            losses.append(report.loss)
        return [float(loss) for loss in losses]

    return turn


def _torch_turn(
    task: Distillation, settings: HypernetRun, drawn: Sequence[DistillBatch], products: Products
) -> Callable[[], list[float]]:
    """The same in torch."""
    from eval.torch_distill import TorchStep, torch_batch

    training, config = settings.training, task.hypernet_config
    params = task.hypernet_params(task.init(jax.random.key(training.seed)))
    with tempfile.TemporaryDirectory() as folder:
        save_hypernet(Path(folder), config, jax.device_get(params))
        step = TorchStep(
            resolve(settings.model),
            config,
            Path(folder) / "model.safetensors",
            task.config,
            training.optimizer,
            training.steps,
            products,
        )
    placed = [torch_batch(batch, config.pad_id) for batch in drawn]
    return lambda: [step(batch) for batch in placed]


def loop_figures(task: Distillation, settings: HypernetRun, steps: int) -> dict[str, Any]:
    """Share of the time in which devices wait for a batch, in the second half of a short run."""
    with tempfile.TemporaryDirectory() as folder:
        optimizer = replace(settings.training.optimizer, phases=(Phase(),))
        every, products = max(1, steps // 2), settings.training.products
        short = TrainingConfig(
            Path(folder), steps, optimizer=optimizer, log_every=every, products=products
        )
        train(task, short)
        lines = (Path(folder) / "metrics.jsonl").read_text("utf-8").splitlines()
    # Of an odd number of steps the last one has a record of its own.
    return {"loop_steps": steps, "idle_share": json.loads(lines[:2][-1])["input_wait"]}


if __name__ == "__main__":
    main()
