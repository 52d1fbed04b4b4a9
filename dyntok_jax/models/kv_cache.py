"""Keys and values of the tokens a decoder has read, kept for those that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

if TYPE_CHECKING:
    from dyntok_jax.models.decoder import DecoderConfig

Number = TypeVar("Number", int, float, np.ndarray)


class KeyValues(NamedTuple):
    """One layer's keys and values of the tokens in slots 0 to S - 1.

    In a cache a token's slot is its position; recent tokens, which are not in it yet, have slots of
    their own, counted from its end. They lie as attention multiplies them, so that a step need not
    move what is kept.

    Attributes:
        key: (B, K, H, S), rotated by the tokens' positions.
        value: (B, K, S, H).
    """

    key: Float[Array, "B K H S"]
    value: Float[Array, "B K S H"]

    def followed_by(self, new: KeyValues, slots: Int[Array, " B"]) -> KeyValues:
        """With those of new tokens, in the place of what is there from ``slots`` on.

        Args:
            new: of the T tokens that follow.
            slots: where the first of them goes in each sequence; what would lie beyond S is lost.
        """

        def written(old: KeyValues, new: KeyValues, slot: jax.Array) -> KeyValues:
            place = slot + jnp.arange(new.value.shape[1])
            hints = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
            return KeyValues(
                old.key.at[:, :, place].set(new.key, **hints),
                old.value.at[:, place].set(new.value, **hints),
            )

        return jax.vmap(written)(self, new, slots)

    def replaced(self, new: KeyValues, slot: int | Int[Array, ""]) -> KeyValues:
        """With new tokens in the place of those from ``slot`` on, in every sequence.

        There is room for all of them: XLA would write further to the front otherwise.
        """
        update = jax.lax.dynamic_update_slice_in_dim
        return KeyValues(
            update(self.key, new.key, slot, axis=3), update(self.value, new.value, slot, axis=2)
        )

    def emptied(self, size: int) -> KeyValues:
        """Zeros, with room for ``size`` tokens."""
        return KeyValues(self.key[..., :0], self.value[:, :, :0]).grown(size)

    def grown(self, size: int) -> KeyValues:
        """With room for ``size`` tokens."""
        more = (0, size - self.value.shape[2])
        return KeyValues(
            jnp.pad(self.key, ((0, 0), (0, 0), (0, 0), more)),
            jnp.pad(self.value, ((0, 0), (0, 0), more, (0, 0))),
        )


def seen_slots(positions: Int[Array, "B T"], size: int, window: int | None) -> Bool[Array, "B T S"]:
    """(query, slot) pairs that may attend; positions are counted from slot 0 on."""
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
