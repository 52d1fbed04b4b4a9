"""The decoder one step further, over what it has read.

A step reads all parameters for a few tokens, so it is as fast as memory is. Its parameters are laid
out for that: maps of one input are one matrix, and matrices stand left of the tokens, which are
columns: so CPUs multiply a few tokens fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dyntok_jax.models.decoder import DecoderConfig
from dyntok_jax.models.kv_cache import KeyValues, seen_slots
from dyntok_jax.models.layers import (
    ACTIVATIONS,
    RMSNorm,
    abstract_params,
    attend_parts,
    constrain,
    constrained,
    parameter,
)
from dyntok_jax.models.products import contracted
from dyntok_jax.models.rotary import Rotary, rotary_table, rotate


class Recent(NamedTuple):
    """A layer's tokens that are not in its cache yet.

    Attributes:
        kept: with room for R tokens.
        count: how many there are.
    """

    kept: KeyValues
    count: int | Int[Array, ""]


class LeftDense(nn.Module):
    """Linear map of columns: ``(in, B, T) -> (*shape, B, T)``.

    Attributes:
        shape: of the outputs.
        axes: logical axes of the kernel ``(*shape, in)``; the bias has all but the last.
        use_bias: whether a bias is added.
        dtype: dtype of the computation and of the result.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    use_bias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "I B T"]) -> Float[Array, "... B T"]:
        """Apply the map in ``dtype``."""
        zeros = nn.initializers.zeros
        kernel = parameter(self, "kernel", zeros, (*self.shape, len(x)), self.axes)
        kernel = kernel.astype(self.dtype)
        y = contracted(kernel, x.astype(self.dtype), (kernel.ndim - 1,), (0,)).astype(self.dtype)
        if not self.use_bias:
            return y
        bias = parameter(self, "bias", zeros, self.shape, self.axes[:-1])
        return y + bias.astype(self.dtype)[..., None, None]


class StepLayer(nn.Module):
    """``decoder.DecoderLayer`` over a cache."""

    config: DecoderConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "D B T"],
        masks: tuple[Bool[Array, "B T S"], Bool[Array, "1 T R"]],
        rotary: Rotary,
        past: KeyValues,
        recent: Recent | None,
    ) -> tuple[Float[Array, "D B T"], KeyValues]:
        """Attention, then feed-forward; the recent tokens with these."""
        c = self.config
        normalized = RMSNorm(c.norm_eps, self.dtype, 0, name="attention_norm")(x)
        mixed, kept = self._attention(normalized, masks, rotary, past, recent)
        x = constrain(x + mixed, None, "B", "T")
        normalized = RMSNorm(c.norm_eps, self.dtype, 0, name="feed_forward_norm")(x)
        inner = self._dense("gate_up", (2, c.feed_forward), (None, "F", "D"), c.feed_forward_bias)
        gate, up = inner(normalized)
        down = self._dense("down", (c.width,), ("D", "F"), c.feed_forward_bias)
        x = constrain(x + down(ACTIVATIONS[c.activation](gate) * up), None, "B", "T")
        return x, constrained(kept)

    def _attention(
        self,
        x: jax.Array,
        masks: Sequence[jax.Array],
        rotary: Rotary,
        past: KeyValues,
        recent: Recent | None,
    ) -> tuple[jax.Array, KeyValues]:
        c, (_, batch, tokens) = self.config, x.shape
        group = c.heads // c.kv_heads
        width = (c.heads + 2 * c.kv_heads) * c.head_width
        all_three = self._dense("query_key_value", (width,), ("KH", "D"), c.attention_bias)
        parts = all_three(x).reshape(c.kv_heads, group + 2, c.head_width, batch, tokens)
        parts = parts.transpose(3, 4, 0, 1, 2)
        rotated = rotate(
            parts[..., :-1, :].reshape(batch, tokens, -1, c.head_width), *rotary
        ).reshape(batch, tokens, c.kv_heads, group + 1, c.head_width)
        query = rotated[..., :-1, :].reshape(batch, tokens, c.heads, c.head_width)
        key, value = rotated[..., -1, :], parts[..., -1, :]
        new = KeyValues(key.transpose(0, 2, 3, 1), value.swapaxes(1, 2))
        kept = new if recent is None else recent.kept.replaced(new, recent.count)
        mixed = attend_parts(
            query, [(past.key, past.value, masks[0]), (kept.key, kept.value, masks[1])]
        )
        mixed = mixed.reshape(batch, tokens, -1).transpose(2, 0, 1)
        output = self._dense("output", (c.width,), ("D", "NH"), c.attention_bias)
        return output(mixed), kept

    def _dense(
        self, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], bias: bool
    ) -> LeftDense:
        return LeftDense(shape, axes, bias, self.dtype, name=name)


class UnrolledDecoder(nn.Module):
    """``decoder.Decoder`` over a cache: tokens lie at their positions.

    Its layers stand one after another, each with parameters and a cache of its own: a step over
    stacked ones takes two or three times as long on CPUs. :func:`unrolled` makes its parameters.

    Attributes:
        config, dtype: as in ``Decoder``.
    """

    config: DecoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        embeddings: Float[Array, "B T D"],
        cache: Sequence[KeyValues],
        length: Int[Array, " B"],
        recent: Sequence[KeyValues] | None = None,
        count: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "B T D"], tuple[KeyValues, ...]]:
        """Hidden states of the T tokens that follow, and each layer's recent tokens with theirs.

        What a loop of steps writes to, XLA copies in each of them: so they leave the cache alone
        and write to a small part, which goes to the cache behind the loop (:func:`settled`).

        Args:
            embeddings: rows of the tokens.
            cache: of each layer, with room for S tokens.
            length: tokens each sequence has in the cache; what is behind them is not read.
            recent: of each layer, with room for R tokens that follow those in the cache; by
                default the tokens read now are all.
            count: how many there are; count + T is at most R, length + count + T at most S.
        """
        c, tokens = self.config, jnp.arange(embeddings.shape[1])
        positions = length[:, None] + count + tokens
        size = cache[0].value.shape[2]
        # Taken from constants (8 bytes a slot and pair): CPUs compute cosines again in each layer.
        table = rotary_table(c.rotary, np.arange(size), c.head_width)
        rotary = jnp.asarray(table[0])[positions], jnp.asarray(table[1])[positions]
        before = jnp.arange(size) < length[:, None, None]
        room = len(tokens) if recent is None else recent[0].value.shape[2]
        masks = (
            seen_slots(positions, size, c.sliding_window) & before,
            seen_slots((count + tokens)[None], room, c.sliding_window),
        )
        x = constrain(embeddings.astype(self.dtype).transpose(2, 0, 1), None, "B", "T")
        kept = []
        for i, past in enumerate(cache):
            own = None if recent is None else Recent(recent[i], count)
            x, now = StepLayer(c, self.dtype, name=f"layer_{i}")(x, masks, rotary, past, own)
            kept.append(now)
        x = RMSNorm(c.norm_eps, self.dtype, 0, name="final_norm")(x)
        return x.transpose(1, 2, 0), tuple(kept)


def emptied(cache: Sequence[KeyValues], tokens: int) -> tuple[KeyValues, ...]:
    """Of each layer, room for recent tokens."""
    return tuple(constrained(past.emptied(tokens)) for past in cache)


def settled(
    cache: Sequence[KeyValues], recent: Sequence[KeyValues], length: Int[Array, " B"]
) -> tuple[KeyValues, ...]:
    """The cache with recent tokens behind its ``length``, those that it has room for."""
    pairs = zip(cache, recent, strict=True)
    return tuple(constrained(past.followed_by(new, length)) for past, new in pairs)


def step_shapes(module: UnrolledDecoder) -> Any:
    """Shapes and logical axes of a step's parameters, as ``layers.abstract_params`` gives them."""
    c: DecoderConfig = module.config
    kind: Any = jax.ShapeDtypeStruct
    past = KeyValues(
        kind((1, c.kv_heads, c.head_width, 1), module.dtype),
        kind((1, c.kv_heads, 1, c.head_width), module.dtype),
    )
    embeddings = kind((1, 1, c.width), module.dtype)
    return abstract_params(module, embeddings, (past,) * c.layers, kind((1,), jnp.int32))


def unrolled(params: Any, config: DecoderConfig, dtype: DTypeLike) -> Any:
    """A decoder's parameters as :class:`UnrolledDecoder` has them.

    Kernels are (out, in). Those of query, key and value are one, whose outputs are the groups of
    heads, each its query heads, its key and its value; gate and up are stacked. Matrices and biases
    are cast to the dtype they are multiplied in; norms stay float32.

    Args:
        params: of ``decoder.Decoder``.
        config: its shape.
        dtype: of the steps.
    """
    # Layer by layer: whole stacks, laid out anew, would be in memory once more.
    layers = {
        f"layer_{i}": _laid_out(
            jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]), config, dtype
        )
        for i in range(config.layers)
    }
    return layers | {"final_norm": params["final_norm"]}


def _laid_out(layer: Any, config: DecoderConfig, dtype: DTypeLike) -> Any:
    def grouped(*parts: jax.Array | np.ndarray) -> jax.Array:
        shape = config.kv_heads, -1, config.head_width
        heads = [part.reshape(*part.shape[:-1], *shape) for part in parts]
        return jnp.concatenate(heads, axis=-2).reshape(*parts[0].shape[:-1], -1)

    def left(maps: Any) -> Any:
        return {
            name: (leaf.T if name == "kernel" else leaf).astype(dtype)
            for name, leaf in maps.items()
        }

    attention, feed_forward = layer["attention"], layer["feed_forward"]
    qkv = jax.tree.map(grouped, attention["query"], attention["key"], attention["value"])
    gate, up = left(feed_forward["gate"]), left(feed_forward["up"])
    return {
        "attention_norm": layer["attention_norm"],
        "query_key_value": left(qkv),
        "output": left(attention["output"]),
        "feed_forward_norm": layer["feed_forward_norm"],
        "gate_up": jax.tree.map(lambda *both: jnp.stack(both), gate, up),
        "down": left(feed_forward["down"]),
    }


def layer_caches(kept: KeyValues, size: int) -> tuple[KeyValues, ...]:
    """Each layer's cache with room for ``size`` tokens, of what a whole forward kept."""
    layers = range(kept.key.shape[0])
    return tuple(
        constrained(jax.tree.map(lambda part, i=i: part[i], kept).grown(size)) for i in layers
    )
