"""Classes of dynamically tokenized sequences, or of their tokens, with a task's adapted encoder."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.sharding import gathered
from dyntok_jax.types import Token


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
