"""What stands on the hidden states: token scores by output rows, and classification heads."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dyntok_jax.models.layers import ACTIVATIONS, Dense, LayerNorm
from dyntok_jax.models.products import contracted, product, widened


def logits(
    hidden: Float[Array, "... D"],
    rows: Float[Array, "U D"],
    bias: Float[Array, " U"] | None = None,
) -> Float[Array, "... U"]:
    """Scores of U tokens from their output rows: ``hidden @ rows.T + bias``, float32.

    The products are taken in the dtype of ``hidden``, as ``products.product`` does.
    """
    scores = product(hidden, rows.astype(hidden.dtype).T)
    return scores if bias is None else scores + bias


def step_logits(hidden: Float[Array, "B D"], rows: Float[Array, "V D"]) -> Float[Array, "B V"]:
    """:func:`logits` of a few hidden states: the rows stand left, and are not transposed."""
    return contracted(rows.astype(hidden.dtype), hidden, (1,), (1,)).T


class SequenceClassifier(nn.Module):
    """Scores of C classes from the first token's hidden state, as RoBERTa and BERT do it.

    RoBERTa's head and BERT's pooler with classifier are the same: dense, tanh, dense.
    """

    classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B C"]:
        """Class scores of every sequence, float32; its first token is at index 0."""
        first = hidden[:, 0]
        inner = Dense(first.shape[-1], ("D", "F"), dtype=self.dtype, name="dense")(first)
        classes = Dense(self.classes, ("F", "C"), dtype=self.dtype, name="classes")
        return classes(jnp.tanh(inner)).astype(widened(self.dtype))


class TokenClassifier(nn.Module):
    """Scores of C classes for every token."""

    classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T C"]:
        """Class scores of every token, float32."""
        classes = Dense(self.classes, ("D", "C"), dtype=self.dtype, name="classes")
        return classes(hidden).astype(widened(self.dtype))


class MaskedLanguageModel(nn.Module):
    """Token scores from hidden states, by given output rows.

    Attributes:
        activation: a name in ``layers.ACTIVATIONS``.
        layer_norm_eps: added to the variance.
        dtype: dtype of the computation.
    """

    activation: str
    layer_norm_eps: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "... D"],
        rows: Float[Array, "U D"],
        bias: Float[Array, " U"] | None = None,
    ) -> Float[Array, "... U"]:
        """Scores of the U tokens with these output rows, float32."""
        inner = Dense(hidden.shape[-1], ("D", "F"), dtype=self.dtype, name="dense")(hidden)
        inner = ACTIVATIONS[self.activation](inner)
        inner = LayerNorm(self.layer_norm_eps, self.dtype, name="norm")(inner)
        return logits(inner, rows, bias)
