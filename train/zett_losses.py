"""The losses of ZeTT's training, pure functions of rows and scores (section 3.3 of the paper)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from dyntok_jax.types import Rows
from train.zett_batches import NO_LABEL


def identity_loss(predicted: Rows, own: Rows, real: Bool[Array, " N"]) -> Float[Array, ""]:
    """Squared distance of N rows to the model's own, mean over real ones, input and output."""
    tables = [(predicted.input, own.input), (predicted.output, own.output)]
    distances = [_squared(a, b) for a, b in tables if a is not None]
    return _mean_of([jnp.where(real, d, 0).sum() / real.sum() for d in distances])


def overlap_loss(
    predicted: Rows, wanted: Rows, kept: Bool[Array, " U"], real: Bool[Array, " U"]
) -> Float[Array, ""]:
    """Squared distance of the rows of kept tokens to those wanted (section 3.3).

    Relative to the mean length of those wanted, over all real tokens; mean over kept tokens and
    over input and output.
    """
    count = jnp.maximum(kept.sum(), 1)

    def distance(a: Any, b: Any) -> Float[Array, ""]:
        lengths = jnp.where(real, jnp.sqrt(jnp.square(b).sum(-1)), 0)
        length = lengths.sum() / jnp.maximum(real.sum(), 1)
        return jnp.where(kept, _squared(a, b), 0).sum() / count / jnp.maximum(length, 1e-8)

    tables = [(predicted.input, wanted.input), (predicted.output, wanted.output)]
    return _mean_of([distance(a, b) for a, b in tables if a is not None])


def label_loss(
    scores: Float[Array, "B T U"], labels: Int[Array, "B T"], real: Bool[Array, " U"]
) -> Float[Array, ""]:
    """Cross-entropy over the real tokens of the vocabulary, mean over positions with a label."""
    scores = jnp.where(real, scores, jnp.finfo(scores.dtype).min)
    asked = labels != NO_LABEL
    loss = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(labels, 0))
    return jnp.where(asked, loss, 0).sum() / jnp.maximum(asked.sum(), 1)


def with_own_rows(predicted: Rows, own: Rows, keep: Bool[Array, " U"]) -> Rows:
    """The model's own rows where ``keep`` is True; of a bias it lacks, 0."""

    def place(a: Any, b: Any) -> Any:
        if a is None:
            return None
        b = jnp.zeros_like(a) if b is None else b
        return jnp.where(keep[:, None] if a.ndim == 2 else keep, b, a)

    return Rows(*(place(a, b) for a, b in zip(predicted, own, strict=True)))


def _squared(a: Any, b: Any) -> Array:
    return jnp.square(a - b).sum(-1)


def _mean_of(values: list[Array]) -> Float[Array, ""]:
    return jnp.stack(values).mean()
