"""Classes of dynamically tokenized sequences, or of their tokens, with a task's adapted encoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dyntok_jax.config import ComputeConfig
from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.lora import Adapter, adapted_params, numbered_labels
from dyntok_jax.models.classifier import Classifier
from dyntok_jax.models.encoder import Encoder
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.sharding import gathered, shard_params
from dyntok_jax.tasks.registry import Task
from dyntok_jax.types import DyntokError, Token


def adapted(
    model: DynamicModel, adapter: Adapter, task: Task, compute: ComputeConfig
) -> DynamicModel:
    """An encoder with an adapter merged into it and the adapter's head on it.

    Args:
        model: the base, and rows, their cache, tokenizer and mesh of the result.
        adapter: trained for ``task``.
        task: whose classes are told apart.
        compute: dtype, and whether layers are recomputed.

    Raises:
        DyntokError: an adapter of another task or base; a decoder.
    """
    if fault := _misfit(task, adapter):
        raise DyntokError(fault)
    if not isinstance(model.module, Encoder):
        raise DyntokError(f"{model.name} is a decoder: {task.name} needs an encoder")
    params = adapted_params(model, adapter)
    module = Classifier(
        model.module.config, task.kind, len(task.labels), jnp.dtype(compute.dtype), compute.remat
    )
    other = copy.copy(model)
    other.module = module
    other.params = shard_params(params, abstract_params(module), model.mesh)
    return other


def _misfit(task: Task, adapter: Adapter) -> str | None:
    """Why an adapter is not one of the task's; None where it is.

    One that names no task and numbers its labels (peft's own) fits by their number.
    """
    said = adapter.task.get("task", task.name)
    numbered = numbered_labels(len(task.labels))
    fits = said == task.name and adapter.kind == task.kind
    if fits and adapter.labels in (tuple(task.labels), numbered):
        return None
    kind, labels = adapter.kind or "no", ", ".join(adapter.labels)
    return (
        f"an adapter for {said}, with {kind} labels {labels}; {task.name} has {task.kind} labels "
        f"{', '.join(task.labels)}"
    )


def classify(
    model: DynamicModel, sequences: Sequence[Sequence[Token]], batch_size: int
) -> list[np.ndarray]:
    """The number of the class with the highest score: of each sequence, or of each of its tokens.

    Args:
        model: its module is a ``models.classifier.Classifier``.
        sequences: dynamic tokens.
        batch_size: most sequences in a batch of the network.

    Returns:
        For each sequence () or (T,) int32 as the classifier's kind is.
    """
    found: list[np.ndarray] = [np.zeros(0, np.int32)] * len(sequences)
    for place, part in model.outputs(sequences, best_class, batch_size):
        for i, value in zip(place, part, strict=True):
            found[i] = value[: len(sequences[i])] if value.ndim else value
    return found


def best_class(
    module: nn.Module,
    rows: Float[Array, "U D"],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Array:
    """The class with the highest score: (B,) of sequences, (B, T) of tokens."""
    return jnp.argmax(gathered(module, rows, ids, mask), axis=-1)
