"""Parts of the distillation losses: alignment of states, distances, and where they are taken."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray


def span_means(
    teacher: Float[Array, "B T D"], owner: Int[Array, "B T"], length: int
) -> Float[Array, "B t D"]:
    """Mean of the teacher's states over the base tokens of each dynamic token.

    Args:
        teacher: states of base tokens.
        owner: position of the dynamic token each belongs to; ``length`` for padding.
        length: t, dynamic positions.
    """
    belongs = jax.nn.one_hot(owner, length, axis=1, dtype=teacher.dtype)
    counts = belongs.sum(-1, keepdims=True)
    return jnp.einsum("bsd,bts->btd", teacher, belongs) / jnp.maximum(counts, 1)


def relative_error(student: Array, teacher: Array, mask: Array) -> Float[Array, ""]:
    """Mean over real positions of the squared error over the teacher's squared norm."""
    error = jnp.square(student - teacher).sum(-1)
    return mean(error / jnp.maximum(jnp.square(teacher).sum(-1), 1e-6), mask)


def centred(student: Array, teacher: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Vectors of sequences without the batch's mean of the teacher's, and which are real.

    Vectors of one model share a large common part, which would hide what tells texts apart.
    """
    real = mask.any(1)
    center = jnp.where(real[:, None], teacher, 0).sum(0) / jnp.maximum(real.sum(), 1)
    return student - center, teacher - center, real


def cosine_distance(student: Array, teacher: Array, mask: Array) -> Float[Array, ""]:
    """Mean over sequences of one minus the cosine of their centred vectors."""
    student, teacher, real = centred(student, teacher, mask)
    return mean(optax.cosine_distance(student, teacher, epsilon=1e-6), real)


def shortfall(student: Array, teacher: Array, mask: Array) -> Float[Array, ""]:
    """Squared share of the batch's centred vectors that is lacking along the teacher's.

    What is learned by errors alone is drawn to the mean: its vectors reach less far than the
    teacher's, and texts that are nearer to the mean come between a text and its like.
    """
    student, teacher, real = centred(student, teacher, mask)
    along, whole = (student * teacher).sum(-1), jnp.square(teacher).sum(-1)
    length = mean(whole, real)
    lacking = 1 - mean(along, real) / jnp.maximum(length, 1e-6)
    # A single text is its own centre.
    return jnp.where(length > 1e-6, jnp.square(lacking), 0.0)


def scored_positions(
    mask: Array, key: PRNGKeyArray, count: int
) -> tuple[Int[Array, " P"], Int[Array, " P"]]:
    """Random positions with a next token, as rows and places."""
    has_next = (mask[:, :-1] & mask[:, 1:]).astype(jnp.float32)
    width = has_next.shape[1]
    _, chosen = jax.lax.top_k(
        (has_next * jax.random.uniform(key, has_next.shape, minval=0.5)).ravel(),
        min(count, has_next.size),
    )
    return chosen // width, chosen % width


def mean(values: Array, mask: Array) -> Float[Array, ""]:
    """Mean of the values where the mask is True, 0 where it nowhere is."""
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)
