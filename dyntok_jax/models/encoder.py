"""XLM-R, RoBERTa and BERT as one post-LN encoder over given embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dyntok_jax.models.layers import (
    ACTIVATIONS,
    Attention,
    Dense,
    LayerNorm,
    constrain,
    parameter,
    positions_from_mask,
    scan_layers,
)
from dyntok_jax.models.products import widened
from dyntok_jax.types import DyntokError


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder; defaults are XLM-R base's.

    Attributes:
        width: D.
        layers: L.
        heads: N; D is a multiple of it.
        feed_forward: F.
        max_positions: rows of the position table.
        position_offset: row of the first real token (2 for RoBERTa and XLM-R, 0 for BERT).
        token_types: rows of the token-type table.
        layer_norm_eps: added to the variance.
        activation: a name in ``layers.ACTIVATIONS``.
        vocab_size: V, rows of the word embedding.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    feed_forward: int = 3072
    max_positions: int = 514
    position_offset: int = 2
    token_types: int = 1
    layer_norm_eps: float = 1e-5
    activation: str = "gelu"
    vocab_size: int = 250_002


class EncoderLayer(nn.Module):
    """One post-LN transformer layer.

    Attributes:
        config: shape of the encoder.
        dtype: dtype of the computation.
        first: only the first position's state is wanted.
    """

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    first: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B 1 T"]
    ) -> Float[Array, "B t D"]:
        """Attention, then feed-forward, each added to its input and normalized.

        Returns:
            (B, T, D), with ``first`` (B, 1, D).
        """
        c = self.config
        shape = c.heads, c.heads, c.width // c.heads
        attention = Attention(*shape, True, self.dtype, first=self.first, name="attention")
        norm = LayerNorm(c.layer_norm_eps, self.dtype, name="attention_norm")
        mixed = attention(x, mask)
        x = constrain(norm((x[:, :1] if self.first else x) + mixed), "B", "T", None)
        inner = Dense(c.feed_forward, ("D", "F"), dtype=self.dtype, name="up")(x)
        inner = ACTIVATIONS[c.activation](inner)
        outer = Dense(c.width, ("F", "D"), dtype=self.dtype, name="down")(inner)
        x = LayerNorm(c.layer_norm_eps, self.dtype, name="feed_forward_norm")(x + outer)
        return constrain(x, "B", "T", None)


class EncoderStack(nn.Module):
    """The layers of an encoder, scanned: parameters have a leading axis L.

    Attributes:
        config: shape of the encoder; only the fields of its layers matter here.
        dtype: dtype of the computation.
        remat: recompute the layers in the backward pass.
    """

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        """Hidden states after the last layer; False in ``mask`` is padding, never attended to.

        A row without any True attends to all its T positions equally.
        """
        layer = EncoderLayer(self.config, self.dtype, name="layers")
        x = x.astype(self.dtype)
        return scan_layers(layer, x, mask[:, None, :], length=self.config.layers, remat=self.remat)


class Encoder(nn.Module):
    """Embedding rows to hidden states: positions, token types, LayerNorm, layers.

    Attributes:
        config: shape of the encoder.
        dtype: dtype of the computation and of the result.
        remat: recompute the layers in the backward pass.
    """

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        embeddings: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        token_type: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states of the last layer.

        Args:
            embeddings: rows of the tokens.
            mask: True at real tokens; padding may stand left or right.
            token_type: rows of the token-type table, 0 everywhere by default.

        Raises:
            DyntokError: T exceeds the position table.
        """
        c = self.config
        room = c.max_positions - c.position_offset
        if embeddings.shape[1] > room:
            raise DyntokError(
                f"{embeddings.shape[1]} tokens in a sequence: this encoder has {room} positions"
            )
        positions = self._table("positions", c.max_positions, "T")
        types = self._table("token_types", c.token_types, "C")
        x = embeddings.astype(widened(self.dtype))
        x = x + positions[positions_from_mask(mask) + c.position_offset]
        x = x + (types[0] if token_type is None else types[token_type])
        x = LayerNorm(c.layer_norm_eps, self.dtype, name="embedding_norm")(x)
        x = constrain(x, "B", "T", None)
        return EncoderStack(c, self.dtype, self.remat, name="stack")(x, mask)

    def _table(self, name: str, rows: int, axis: str) -> jax.Array:
        normal, shape = nn.initializers.normal(0.02), (rows, self.config.width)
        # The width stays whole: it is small, and cut along fsdp the gather would cross the batch's.
        return parameter(self, name, normal, shape, (axis, None))
