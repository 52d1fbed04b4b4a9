"""One step of training, and what it changes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dyntok_jax.sharding import replicated
from train.optim import optimizer_shardings
from train.task import Task

Products = Literal["float32", "bfloat16"]


class State(NamedTuple):
    """What a step changes.

    Attributes:
        trainables: parameters.
        optimizer: state of the optimizer.
        key: data of the run's PRNG key; a step's key is this one folded with the step.
        step: () int32, steps done.
    """

    trainables: Any
    optimizer: Any
    key: jax.Array
    step: jax.Array


class Report(NamedTuple):
    """Scalars of a step; ``sound`` is False from the first step with what is not finite on."""

    sound: jax.Array
    loss: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    metrics: dict[str, jax.Array]


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    where: State,
    products: Products = "float32",
) -> Callable[..., tuple[State, Report]]:
    """The jitted function ``(state, sound, frozen, batch)`` of a step; it takes the state over.

    A loss, gradient or update that is not finite leaves the state as it was, and so do all later
    steps: the host, which reads reports one step late, finds the parameters before the bad batch.

    Args:
        task: gives the loss.
        optimizer, schedule: from ``optim.make_optimizer``.
        where: shardings of the state.
        products: what float32 factors of products with parameters and output rows are rounded to,
            in the loss and its gradients. CPUs leave attention in float32.
    """

    def step(state: State, sound: jax.Array, frozen: Any, batch: Any) -> tuple[State, Report]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        loss = jax.value_and_grad(task.loss, has_aux=True)
        # Nothing is set for float32, which the networks ask for themselves.
        rounds = products == "bfloat16"
        with jax.default_matmul_precision(products) if rounds else nullcontext():
            (value, metrics), grads = loss(state.trainables, frozen, batch, key)
        norm = optax.tree.norm(grads)
        sound = sound & jnp.isfinite(value) & jnp.isfinite(norm)
        updates, moments = optimizer.update(grads, state.optimizer, state.trainables)
        # A learning rate or moment that is not finite spoils the parameters before any loss.
        sound = sound & jnp.isfinite(optax.tree.norm(updates))
        trainables = optax.apply_updates(state.trainables, updates)
        new = State(trainables, moments, state.key, state.step + 1)
        new = jax.tree.map(lambda after, before: jnp.where(sound, after, before), new, state)
        rate = jnp.asarray(schedule(state.step), value.dtype)
        return new, Report(sound, value, norm, rate, metrics)

    return jax.jit(step, donate_argnums=0, out_shardings=(where, None))


def initial_state(
    task: Task, optimizer: optax.GradientTransformation, seed: int
) -> tuple[State, State]:
    """The state at step 0 and the sharding of each of its arrays.

    The parameters are copied: a step overwrites its own, and the task may hold the originals.
    """
    first, key = jax.random.split(jax.random.key(seed))
    trainables, shardings = task.init(first), task.shardings()
    whole: Any = replicated(task.mesh)
    moments = optimizer_shardings(optimizer, trainables, shardings, task.mesh)
    where = State(shardings, moments, whole, whole)

    def build(trainables: Any, key: Any) -> State:
        trainables = jax.tree.map(jnp.copy, trainables)
        return State(trainables, optimizer.init(trainables), key, jnp.int32(0))

    key = jax.device_put(np.asarray(jax.random.key_data(key)), whole)
    return jax.jit(build, out_shardings=where)(trainables, key), where
