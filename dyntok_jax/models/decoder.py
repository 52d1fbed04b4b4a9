"""Mistral and Llama as one causal decoder over given embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from dyntok_jax.models.layers import (
    ACTIVATIONS,
    Attention,
    Dense,
    RMSNorm,
    constrain,
    constrained,
    positions_from_mask,
    scan_layers,
)
from dyntok_jax.models.rotary import Rotary, RotaryConfig, rotary_table


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder; defaults are Mistral-7B-v0.1's.

    Attributes:
        width: D.
        layers: L.
        heads: N query heads; a multiple of ``kv_heads``.
        kv_heads: K.
        head_width: H.
        feed_forward: F.
        norm_eps: added to the mean square.
        rotary: rotary positions.
        sliding_window: a token sees itself and at most this many minus one before it; None: all.
        activation: a name in ``layers.ACTIVATIONS``, applied to the gate.
        attention_bias: biases in the four attention maps.
        feed_forward_bias: biases in the three feed-forward maps.
        vocab_size: V.
        tied: the output rows are the input rows.
    """

    width: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    head_width: int = 128
    feed_forward: int = 14336
    norm_eps: float = 1e-5
    rotary: RotaryConfig = field(default_factory=RotaryConfig)
    sliding_window: int | None = 4096
    activation: str = "silu"
    attention_bias: bool = False
    feed_forward_bias: bool = False
    vocab_size: int = 32_000
    tied: bool = False


def causal_mask(mask: Bool[Array, "B T"], window: int | None) -> Bool[Array, "B T T"]:
    """(query, key) pairs that may attend: key real, not after the query, within the window."""
    index = jnp.arange(mask.shape[1])
    ago = index[:, None] - index[None, :]
    seen = ago >= 0 if window is None else (ago >= 0) & (ago < window)
    return seen & mask[:, None, :]


class GatedFeedForward(nn.Module):
    """SwiGLU feed-forward: ``down(activation(gate(x)) * up(x))``."""

    config: DecoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Apply it at every position alone."""
        c, bias = self.config, self.config.feed_forward_bias
        gate = Dense(c.feed_forward, ("D", "F"), bias, self.dtype, name="gate")(x)
        up = Dense(c.feed_forward, ("D", "F"), bias, self.dtype, name="up")(x)
        inner = ACTIVATIONS[c.activation](gate) * up
        return Dense(c.width, ("F", "D"), bias, self.dtype, name="down")(inner)


class DecoderLayer(nn.Module):
    """One pre-norm transformer layer; with ``keep`` it gives its keys and values too."""

    config: DecoderConfig
    dtype: DTypeLike = jnp.float32
    keep: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T S"],
        rotary: Rotary,
    ) -> Any:
        """Attention, then feed-forward, each on the normalized input and added to it.

        Arguments and result are those of ``layers.Attention``.
        """
        c = self.config
        shape = c.heads, c.kv_heads, c.head_width
        attention = Attention(
            *shape, c.attention_bias, self.dtype, self.keep, causal=True, name="attention"
        )
        feed_forward = GatedFeedForward(c, self.dtype, name="feed_forward")
        normalized = RMSNorm(c.norm_eps, self.dtype, name="attention_norm")(x)
        mixed = attention(normalized, mask, rotary)
        mixed, kept = mixed if self.keep else (mixed, None)
        x = constrain(x + mixed, "B", "T", None)
        normalized = RMSNorm(c.norm_eps, self.dtype, name="feed_forward_norm")(x)
        x = constrain(x + feed_forward(normalized), "B", "T", None)
        return x if kept is None else (x, constrained(kept))


class Decoder(nn.Module):
    """Embedding rows to hidden states; ``heads.logits`` turns these into token scores.

    Attributes:
        config: shape of the decoder.
        dtype: dtype of the computation and of the result.
        remat: recompute the layers in the backward pass.
    """

    config: DecoderConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, embeddings: Float[Array, "B T D"], mask: Bool[Array, "B T"], keep: bool = False
    ) -> Any:
        """Hidden states after the final norm.

        Args:
            embeddings: rows of the tokens.
            mask: True at real tokens; padding may stand left or right and changes nothing.
            keep: whether keys and values are wanted; padding must stand right then.

        Returns:
            (B, T, D); with ``keep``, that and the ``KeyValues`` of all layers, stacked on a
            leading L, for ``decoder_step.UnrolledDecoder``.
        """
        c = self.config
        rotary = rotary_table(c.rotary, positions_from_mask(mask), c.head_width)
        x = constrain(embeddings.astype(self.dtype), "B", "T", None)
        x = scan_layers(
            DecoderLayer(c, self.dtype, keep, name="layers"),
            x,
            causal_mask(mask, c.sliding_window),
            rotary,
            length=c.layers,
            remat=self.remat,
        )
        x, kept = x if keep else (x, None)
        x = RMSNorm(c.norm_eps, self.dtype, name="final_norm")(x)
        return x if kept is None else (x, kept)
