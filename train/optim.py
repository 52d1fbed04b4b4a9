"""Optimizers and learning-rate schedules, from frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax
from jax.sharding import Mesh
from optax import contrib

from dyntok_jax.config import at_least
from dyntok_jax.sharding import replicated
from dyntok_jax.types import DyntokError

NEWTON_SCHULZ_STEPS = 3
"""Iterations by which muon orthogonalizes."""

VECTORS = ("bias", "scale", "factor", "shift")
"""Names of parameters that are vectors; those of stacked layers have an axis more."""


@dataclass(frozen=True)
class Phase:
    """A stretch of the run with a learning rate of its own.

    Attributes:
        peak: highest learning rate.
        steps: how many steps; -1, for the last phase, is all that are left.
        warmup: steps of it over which the rate rises linearly from 0.
        decay: how it falls from the peak to the phase's end.
        end: rate at the phase's end as a fraction of the peak; of no effect for ``constant``.
    """

    peak: float = 5e-4
    steps: int = -1
    warmup: int = 0
    decay: Literal["constant", "linear", "cosine"] = "linear"
    end: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, peak=0, end=0)


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer with its schedule.

    Attributes:
        name: ``adamw``, ``adafactor`` for little memory, or ``muon``
            (https://arxiv.org/abs/2502.16982): maps' kernels are updated by their orthogonalized
            momentum, all else as by adamw with Nesterov's momentum.
        phases: the learning rate, one stretch after the other.
        betas: decay of the first and second moments; of no effect for adafactor.
        eps: added to the root of the second moment; of no effect for adafactor.
        update_rms: root mean square of a kernel's update at a learning rate of 1; muon only.
            That of adamw's updates is about 0.2.
        weight_decay: decoupled decay of matrices, vectors are left alone, by muon tables too; adamw
            and muon multiply it with the learning rate, adafactor does not.
        clip: largest global norm of the gradient; 0 for no clipping.
        accumulate: batches whose mean gradient makes one update.
    """

    name: Literal["adamw", "adafactor", "muon"] = "adamw"
    phases: tuple[Phase, ...] = (Phase(),)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    update_rms: float = 0.2
    weight_decay: float = 0.0
    clip: float = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        at_least(self, eps=0, weight_decay=0, clip=0, accumulate=1)
        if not self.update_rms > 0:
            raise DyntokError(f"update_rms: {self.update_rms} is not above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise DyntokError(f"betas: {self.betas} are not from 0 to below 1")


def make_schedule(phases: tuple[Phase, ...], steps: int) -> optax.Schedule:
    """Learning rate by number of steps done, the phases one after the other.

    Raises:
        DyntokError: phases that do not fill the run, or a warm-up longer than its phase.
    """
    lengths = [phase.steps for phase in phases]
    if lengths and lengths[-1] == -1:
        lengths[-1] = steps - sum(lengths[:-1])
    if not lengths or min(lengths) < 1 or sum(lengths) != steps:
        said = " + ".join(str(phase.steps) for phase in phases) or "none"
        raise DyntokError(
            f"optimizer.phases: steps {said} do not add up to the run's {steps} (the last phase "
            "may say -1 for all that are left)"
        )
    schedules, ends = [], []
    for number, (phase, length) in enumerate(zip(phases, lengths, strict=True)):
        if not 0 <= phase.warmup <= length:
            raise DyntokError(
                f"optimizer.phases[{number}].warmup: {phase.warmup} is not within 0 and the "
                f"phase's {length} steps"
            )
        schedules += [optax.linear_schedule(0.0, phase.peak, phase.warmup)] if phase.warmup else []
        ends += [sum(lengths[:number]) + phase.warmup] if phase.warmup else []
        schedules.append(_decay(phase, max(1, length - phase.warmup)))
        ends.append(sum(lengths[: number + 1]))
    return optax.join_schedules(schedules, ends[:-1])


def _decay(phase: Phase, steps: int) -> optax.Schedule:
    if phase.decay == "constant":
        return optax.constant_schedule(phase.peak)
    if phase.decay == "linear":
        return optax.linear_schedule(phase.peak, phase.peak * phase.end, steps)
    return optax.cosine_decay_schedule(phase.peak, steps, phase.end)


def make_optimizer(
    config: OptimizerConfig, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a run, and its learning rate by number of steps done.

    A step is a batch: with ``accumulate`` k every k-th step changes the parameters, with the
    learning rate of the first of the k.

    Raises:
        DyntokError: phases or updates that do not fill the run.
    """
    schedule = make_schedule(config.phases, steps)
    if rest := steps % config.accumulate:
        raise DyntokError(
            f"optimizer.accumulate: {config.accumulate} batches make an update, and the last "
            f"{rest} of the run's {steps} none; {steps + config.accumulate - rest} steps would do"
        )

    def rate(updates: Any) -> Any:
        return schedule(updates * config.accumulate)

    if config.name == "adamw":
        first, second = config.betas
        update = optax.adamw(
            rate, first, second, config.eps, weight_decay=config.weight_decay, mask=_matrices
        )
    elif config.name == "adafactor":
        update = optax.adafactor(
            rate, weight_decay_rate=config.weight_decay or None, weight_decay_mask=_matrices
        )
    else:
        update = _muon(config, rate)
    if config.clip > 0:
        update = optax.chain(optax.clip_by_global_norm(config.clip), update)
    if config.accumulate > 1:
        update = optax.MultiSteps(update, config.accumulate).gradient_transformation()
    return update, schedule


def _muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    first, second = config.betas
    return contrib.muon(
        rate,
        weight_decay=config.weight_decay,
        adam_b1=first,
        adam_b2=second,
        muon_weight_dimension_numbers=_kernels,
        consistent_rms=config.update_rms,
        # Three preconditioned iterations cost about half of five, which is much beside the
        # gradients of a small network.
        ns_steps=NEWTON_SCHULZ_STEPS,
        preconditioning="schatten",
        eps=config.eps,
    )


def _kernels(params: Any) -> Any:
    """Of every kernel the axes of its matrices, stacked or not; None for all other parameters."""

    def axes(path: tuple[Any, ...], leaf: Any) -> contrib.MuonDimensionNumbers | None:
        if path[-1].key != "kernel":
            return None
        return contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def _matrices(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in VECTORS, params)


def optimizer_shardings(
    optimizer: optax.GradientTransformation, trainables: Any, shardings: Any, mesh: Mesh
) -> Any:
    """Sharding of every array of the optimizer's state, a tree like the state.

    What belongs to a parameter and has its shape, such as a moment, lies where the parameter
    does; everything else (counters, Adafactor's rows and columns) is whole on every device.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(trainables)]
    leaves = zip(jax.tree.leaves(trainables), jax.tree.leaves(shardings), strict=True)
    known = {path: (leaf.shape, where) for path, (leaf, where) in zip(paths, leaves, strict=True)}

    def sharding(path: tuple[Any, ...], leaf: Any) -> Any:
        for start in range(len(path) + 1):
            shape, where = known.get(path[start:], (None, None))
            if shape == leaf.shape:
                return where
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, jax.eval_shape(optimizer.init, trainables))
