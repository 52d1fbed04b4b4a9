"""Keys and values of the tokens a decoder has read, kept for those that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

if TYPE_CHECKING:
    from dyntok_jax.models.decoder import DecoderConfig

Number = TypeVar("Number", int, float, np.ndarray)


class KeyValues(NamedTuple):
    """One layer's keys and values of the S tokens at positions 0 to S - 1.

    A head's tokens lie together, as attention reads them: a step never transposes what is kept.

    Attributes:
        key: (B, K, S, H), rotated by the tokens' positions.
        value: (B, K, S, H).
    """

    key: Float[Array, "B K S H"]
    value: Float[Array, "B K S H"]

    @classmethod
    def empty(cls, batch: int, heads: int, width: int, dtype: DTypeLike) -> KeyValues:
        """Those of no tokens."""
        nothing = jnp.zeros((batch, heads, 0, width), dtype)
        return cls(nothing, nothing)

    def followed_by(self, new: KeyValues, slots: Int[Array, " B"] | None) -> KeyValues:
        """With those of new tokens, in the place of what is there from ``slots`` on.

        Args:
            new: of the T tokens that follow.
            slots: where the first of them goes in each sequence; None appends them all.
        """

        def written(old: jax.Array, new: jax.Array, slot: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice(old, new, (0, slot, 0))

        if slots is None:
            return jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=2), self, new)
        return jax.tree.map(lambda old, new: jax.vmap(written)(old, new, slots), self, new)

    def grown(self, size: int) -> KeyValues:
        """With room for ``size`` tokens."""
        return jax.tree.map(
            lambda old: jnp.pad(old, ((0, 0), (0, 0), (0, size - old.shape[2]), (0, 0))), self
        )


def seen_slots(positions: Int[Array, "B T"], size: int, window: int | None) -> Bool[Array, "B T S"]:
    """(query, slot) pairs that may attend: tokens lie in a cache at their positions."""
    ago = positions[..., None] - jnp.arange(size)
    return ago >= 0 if window is None else (ago >= 0) & (ago < window)


def kv_bytes(config: DecoderConfig, tokens: Number, itemsize: int) -> Number:
    """Bytes of keys and values of one sequence.

    Args:
        config: shape of the decoder.
        tokens: T, or many of them.
        itemsize: bytes of a number.
    """
    return 2 * config.layers * config.kv_heads * config.head_width * itemsize * tokens
