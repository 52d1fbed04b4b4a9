"""What a step of a run will need, by compiling it."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from dyntok_jax.flops import product_flops
from dyntok_jax.sharding import replicated
from train.feed import put
from train.loop import TrainingConfig, check
from train.optim import make_optimizer
from train.step import initial_state, make_step
from train.task import Task


class DryRun(NamedTuple):
    """What a step of a run will need.

    Attributes:
        parameters: trainable ones.
        batch: what kind of batch the step takes.
        bytes_per_device: arguments, results and temporaries of a step.
        flops: of the step's matrix products, on all devices together.
        compile_seconds: to compile the step for the shapes of such a batch.
    """

    parameters: int
    batch: str
    bytes_per_device: int
    flops: int
    compile_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.batch}: {self.parameters:,} parameters, {self.bytes_per_device:,} bytes per "
            f"device, {self.flops:,} FLOPs per step, compiled in {self.compile_seconds:.1f} s"
        )


def dry_run(task: Task, config: TrainingConfig) -> list[DryRun]:
    """Compiles the step for a batch of each kind that the task has, without running it."""
    check(config)
    optimizer, schedule = make_optimizer(config.optimizer, config.steps)
    state, shardings = initial_state(task, optimizer, config.seed)
    sound = jax.device_put(np.True_, replicated(task.mesh))
    step: Any = make_step(task, optimizer, schedule, shardings, config.products)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.trainables))

    def compiled(batch: Any) -> DryRun:
        inputs = (state, sound, task.frozen, put(batch, task.mesh))
        start = time.perf_counter()
        program = step.lower(*inputs).compile()
        seconds = time.perf_counter() - start
        memory = program.memory_analysis()
        needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
        kind = type(batch).__name__
        return DryRun(parameters, kind, needed, product_flops(step, *inputs), seconds)

    agree = task.agree or (lambda batch: batch)
    return [compiled(agree(next(task.batches(place)).batch)) for place in task.beginnings]
