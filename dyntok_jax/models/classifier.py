"""An encoder with a head that scores classes, of a whole sequence or of every token."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from dyntok_jax.models.encoder import Encoder, EncoderConfig
from dyntok_jax.models.heads import SequenceClassifier, TokenClassifier

HEADS = {"sequence": SequenceClassifier, "token": TokenClassifier}


class Classifier(nn.Module):
    """Embedding rows to class scores; its parameters are ``model`` and ``head``.

    Attributes:
        config: shape of the encoder.
        kind: what is classified.
        classes: C.
        dtype: dtype of the computation.
        remat: recompute the layers in the backward pass.
    """

    config: EncoderConfig
    kind: Literal["sequence", "token"]
    classes: int
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, embeddings: Float[Array, "B T D"], mask: Bool[Array, "B T"]
    ) -> Float[Array, "B *T C"]:
        """Class scores, float32: (B, C) of sequences, (B, T, C) of tokens."""
        hidden = Encoder(self.config, self.dtype, self.remat, name="model")(embeddings, mask)
        return HEADS[self.kind](self.classes, self.dtype, name="head")(hidden)
