"""Layers the encoder, the decoder and the hypernetwork share.

Every parameter is declared once, by :func:`parameter`; shapes, initial values, shardings
(``sharding.py``) and the checks of the weight table (``weights.py``) all follow from it. Parameters
are float32; a module computes in its ``dtype`` (float32 or bfloat16), norms and the softmax always
in float32. (Encoders and classifiers compute in float64 too, in all their parts, for comparisons.)

Logical axes of parameters: D width, NH query heads times head width, KH key/value heads, or whole
groups of heads, times head width, F feed-forward or inner width, V vocabulary, T positions, C
classes or token types, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from flax.linen import spmd
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dyntok_jax.models.kv_cache import KeyValues
from dyntok_jax.models.products import precision, product, rounds, widened
from dyntok_jax.models.rotary import Rotary, rotate


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU by erf, as torch computes it (the erfc of ``jax.nn.gelu`` is slower on CPU)."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""Activation functions by their name in a Hugging Face ``config.json``."""


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Fix the sharding of activations by logical axes; nothing outside ``sharding.forward``."""
    return spmd.with_logical_constraint(x, axes, fallback=spmd.RulesFallback.RAISE_ERROR)


def constrained(kept: KeyValues) -> KeyValues:
    """Keys and values cut by sequence and by head."""
    key, value = kept
    return KeyValues(constrain(key, "B", "KH", None, "T"), constrain(value, "B", "KH", "T", None))


def parameter(
    module: nn.Module,
    name: str,
    init: Callable[..., Any],
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
) -> jax.Array:
    """Declare a float32 parameter of ``module``, with its initial value and logical axes.

    An axis None is never cut.
    """
    value = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    return jnp.asarray(value)  # pyright: ignore[reportArgumentType]


def abstract_params(module: nn.Module, *inputs: Any) -> Any:
    """Shapes and logical axes of a module's parameters; nothing is computed.

    Args:
        module: an unbound module.
        inputs: arrays or ``jax.ShapeDtypeStruct`` as the module is called with; without any,
            embeddings (1, 1, D) and a mask, for modules whose ``config`` has a ``width``.
    """
    if not inputs:
        width = module.config.width  # pyright: ignore[reportAttributeAccessIssue]
        inputs = (jnp.zeros((1, 1, width)), jnp.ones((1, 1), bool))
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


class Dense(nn.Module):
    """Linear map ``(..., in) -> (..., features)``, with a low-rank addition where one is given.

    The collection ``lora`` may hold, for this map, A (in, R) and B (R, features): ``x @ A @ B`` is
    added then (LoRA, https://arxiv.org/abs/2106.09685), with whatever scale B has. It may hold
    ``rate`` () too: with an RNG ``dropout``, that share of the addition's inputs is dropped.
    ``dyntok_jax.lora`` makes the collection.

    Attributes:
        features: output width.
        kernel_axes: logical axes of the kernel ``(in, features)``; the bias has the second.
        use_bias: whether a bias is added.
        dtype: dtype of the computation and of the result.
        kernel_init: initial values of the kernel.
    """

    features: int
    kernel_axes: tuple[str, str]
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    kernel_init: Callable[..., Any] = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        """Apply the map in ``dtype``."""
        shape = (x.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.kernel_init, shape, self.kernel_axes)
        y = product(x.astype(self.dtype), kernel.astype(self.dtype)).astype(self.dtype)
        if self.has_variable("lora", "A"):
            y = y + self._low_rank(x)
        if not self.use_bias:
            return y
        bias = parameter(self, "bias", nn.initializers.zeros, shape[1:], self.kernel_axes[1:])
        return y + bias.astype(self.dtype)

    def _low_rank(self, x: jax.Array) -> jax.Array:
        if self.has_rng("dropout") and self.has_variable("lora", "rate"):
            x = dropped(x, self._adapter("rate"), self.make_rng("dropout"))
        for name in "AB":
            x = product(x.astype(self.dtype), self._adapter(name).astype(self.dtype))
        return x.astype(self.dtype)

    def _adapter(self, name: str) -> jax.Array:
        return jnp.asarray(self.get_variable("lora", name))


def dropped(x: jax.Array, rate: jax.Array, key: jax.Array) -> jax.Array:
    """Inverted dropout; the rate counts in steps of 2⁻¹⁶, since random bits cost time on CPUs."""
    cut = jnp.round(jnp.minimum(rate * 2**16, 2**16 - 1)).astype(jnp.uint16)
    # Bits of 16 drawn as such cost as much as words of 32, which hold two of them.
    words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 2)), jnp.uint32)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*x.shape[:-1], -1)
    scale = 2**16 / (2**16 - cut.astype(jnp.float32))
    kept = checkpoint_name(bits[..., : x.shape[-1]] >= cut, KEPT)
    return jnp.where(kept, x * scale.astype(x.dtype), 0)


class LayerNorm(nn.Module):
    """Layer normalization over the last axis, computed in float32."""

    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalize, scale and shift; the result has ``dtype``."""
        scale = parameter(self, "scale", nn.initializers.ones, x.shape[-1:], ("D",))
        bias = parameter(self, "bias", nn.initializers.zeros, x.shape[-1:], ("D",))
        x = x.astype(widened(self.dtype))
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return (x * scale + bias).astype(self.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalization over one axis, by default the last, computed in float32."""

    epsilon: float
    dtype: DTypeLike = jnp.float32
    axis: int = -1

    @nn.compact
    def __call__(self, x: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Normalize and scale; the result has ``dtype``."""
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[self.axis],), ("D",))
        scale = jnp.expand_dims(scale, [a for a in range(x.ndim) if a != self.axis % x.ndim])
        x = x.astype(widened(self.dtype))
        x = x * jax.lax.rsqrt(jnp.square(x).mean(self.axis, keepdims=True) + self.epsilon)
        return (x * scale).astype(self.dtype)


def positions_from_mask(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Position of every real token among its row's real tokens; padding gets 0 or its neighbour's.

    Counting real tokens only makes padding, left or right, invisible to the numbers.
    """
    return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


KEPT = "kept"
"""Name of what dropout keeps, which is not drawn again where layers are recomputed."""

QUERY_BLOCK = 512
"""Queries that attend together: longer sequences go block by block, so that in a forward the scores
of all pairs of tokens are never in memory at once."""

PREFIXES = 4
"""Parts of a causal sequence, each a loop over its blocks, whose keys end with the part: more would
spare more scores that are masked anyway, and take longer to compile."""


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K H S"],
    value: Float[Array, "B K S H"],
    mask: Bool[Array, "#B #T S"],
    *,
    causal: bool = False,
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention with grouped heads; the softmax is in float32.

    The lowest finite number is added to masked scores, so that a row with nothing to attend to
    attends to everything equally (as in Hugging Face's models; in a long causal sequence to all of
    its part and before) and never gives NaN.

    Args:
        query, key, value: of the same tokens.
        mask: True where a query sees a key.
        causal: the mask lets no query see a later key. (Windows are the mask's alone.)
    """
    length, looped = query.shape[1], query.shape[1] // QUERY_BLOCK
    if length <= QUERY_BLOCK:
        return attend_parts(query, [(key, value, mask)])
    mask = jnp.broadcast_to(mask, (mask.shape[0], length, mask.shape[2]))
    starts = np.array_split(np.arange(looped) * QUERY_BLOCK, min(PREFIXES if causal else 1, looped))
    parts = [(part[0], part[-1] + QUERY_BLOCK) for part in starts]
    if rest := length % QUERY_BLOCK:
        parts.append((length - rest, length))
    mixed = []
    for start, stop in parts:
        keys = slice(stop if causal else None)
        part = query[:, start:stop], key[..., keys], value[:, :, keys], mask[:, start:stop, keys]
        mixed.append(_attend_blocks(*part))
    return jnp.concatenate(mixed, axis=1)


def _attend_blocks(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
    """Attention of whole blocks of queries, or of less than one, to all keys."""
    if query.shape[1] <= QUERY_BLOCK:
        return attend_parts(query, [(key, value, mask)])

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], -1, QUERY_BLOCK, *x.shape[2:]).swapaxes(0, 1)

    mixed = jax.lax.map(
        lambda block: attend_parts(block[0], [(key, value, block[1])]), (split(query), split(mask))
    )
    return mixed.swapaxes(0, 1).reshape(query.shape)


def attend_parts(
    query: Float[Array, "B T N H"], parts: Sequence[tuple[jax.Array, jax.Array, jax.Array]]
) -> Float[Array, "B T N H"]:
    """:func:`attend` to keys that lie in several arrays, all at once.

    The form is chosen for XLA on CPU, where it halves the time: both products are of matrices that
    lie as they are multiplied, the query heads of a group lined up as more queries, a mask that is
    added rather than selected, and the division by the softmax's sum after the second contraction.

    Args:
        query: of T tokens.
        parts: the key (B, K, H, S), value (B, K, S, H) and mask (#B, #T, S) of each.
    """
    batch, length, heads, width = query.shape
    groups = parts[0][0].shape[1]
    query = query.reshape(batch, length, groups, -1, width).transpose(0, 2, 3, 1, 4)
    query = query.reshape(batch, groups, -1, width)
    exact, wide = None if rounds() else precision(query.dtype), widened(query.dtype)

    def multiplied(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.matmul(x.astype(y.dtype), y, precision=exact, preferred_element_type=wide)

    scores = []
    for key, _, mask in parts:
        bias = jnp.where(mask, 0.0, jnp.finfo(wide).min)
        if mask.shape[1] > 1:
            bias = jnp.tile(bias, (1, heads // groups, 1))
        scores.append(multiplied(query, key) * (1 / math.sqrt(width)) + bias[:, None])
    highest = reduce(jnp.maximum, [part.max(-1, keepdims=True) for part in scores])
    weights = [jnp.exp(part - jax.lax.stop_gradient(highest)) for part in scores]
    mixed = [multiplied(w, value) for w, (_, value, _) in zip(weights, parts, strict=True)]
    total = reduce(jnp.add, [w.sum(-1, keepdims=True) for w in weights])
    mixed = reduce(jnp.add, mixed) / total
    mixed = mixed.astype(parts[0][1].dtype)
    mixed = mixed.reshape(batch, groups, -1, length, width).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(batch, length, heads, width)


class Attention(nn.Module):
    """Self-attention with grouped key/value heads and optional rotary positions.

    Attributes:
        heads: number of query heads, N.
        kv_heads: number of key/value heads, K; N is a multiple of it.
        head_width: H.
        use_bias: whether the four maps have biases.
        dtype: dtype of the computation.
        keep: whether keys and values are wanted.
        causal: as in :func:`attend`.
        first: only the first position attends.
    """

    heads: int
    kv_heads: int
    head_width: int
    use_bias: bool
    dtype: DTypeLike = jnp.float32
    keep: bool = False
    causal: bool = False
    first: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "#B #T S"],
        rotary: Rotary | None = None,
    ) -> Any:
        """Attend from every position to the positions ``mask`` (query, key) allows.

        Args:
            x: (B, T, D).
            mask: S is T.
            rotary: cosines and sines of x's positions.

        Returns:
            (B, T, D), T = 1 with ``first``; with ``keep``, that and the tokens' keys and values.
        """

        def project(x: jax.Array, count: int, axis: str, name: str) -> jax.Array:
            width = count * self.head_width
            y = Dense(width, ("D", axis), self.use_bias, self.dtype, name=name)(x)
            return y.reshape(*x.shape[:2], count, self.head_width)

        query = project(x[:, :1] if self.first else x, self.heads, "NH", "query")
        key = project(x, self.kv_heads, "KH", "key")
        value = project(x, self.kv_heads, "KH", "value")
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        kept = KeyValues(key.transpose(0, 2, 3, 1), value.swapaxes(1, 2))
        mixed = attend(query, *kept, mask, causal=self.causal)
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        y = Dense(x.shape[-1], ("NH", "D"), self.use_bias, self.dtype, name="output")(mixed)
        return (y, kept) if self.keep else y


def scan_layers(layer: nn.Module, x: jax.Array, *inputs: object, length: int, remat: bool) -> Any:
    """Apply ``length`` copies of ``layer`` one after another, parameters stacked on a leading L.

    Args:
        layer: module mapping ``(x, *inputs)`` to the next x, or to that and something to keep.
        x: activations that pass from layer to layer.
        inputs: what every layer gets alike (masks, rotary tables).
        length: number of layers, L.
        remat: recompute each layer in the backward pass instead of keeping its activations.

    Returns:
        The last x; where layers keep something, that and what they keep, stacked on a leading L.
    """

    def step(module: nn.Module, x: jax.Array, *inputs: object) -> tuple[Any, Any]:
        result = module(x, *inputs)  # pyright: ignore[reportCallIssue]
        return result if isinstance(result, tuple) else (result, None)

    # prevent_cse is needless inside a loop and would only hinder the compiler.
    policy = jax.checkpoint_policies.save_only_these_names(KEPT)
    scanned = nn.scan(
        nn.remat(step, prevent_cse=False, policy=policy) if remat else step,
        variable_axes={"params": 0, "lora": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        length=length,
        metadata_params={meta.PARTITION_NAME: "L"},
    )
    x, kept = scanned(layer, x, *inputs)
    return x if kept is None else (x, kept)
