"""The hypernetwork: a token's rows predicted from the rows of its pieces (ZeTT, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dyntok_jax.models.encoder import EncoderConfig, EncoderLayer, EncoderStack
from dyntok_jax.models.layers import (
    ACTIVATIONS,
    Dense,
    LayerNorm,
    abstract_params,
    constrain,
    parameter,
)
from dyntok_jax.types import Rows


@dataclass(frozen=True)
class HypernetConfig:
    """Shape of a hypernetwork.

    Attributes:
        width: D, the model's width.
        hidden: width of the hypernetwork's own layers.
        feed_forward: F, their inner width, and that of the projections.
        layers: L.
        heads: N.
        surface_length: S, pieces a token is read by.
        vocab_size: V, ids below it are read by the model's own rows.
        extra_tokens: ids from V on, which have rows of the hypernetwork's own.
        pad_id: piece that stands for no piece.
        languages: rows of the language table; 0 for a hypernetwork without one.
        separate_output: output rows are read and predicted apart from input rows, since the
            model's differ, or so that merged tokens' may differ (``native``).
        single_head: one projection predicts both.
        rescale: pieces' rows and predicted rows are scaled and shifted by learned vectors.
        predict_bias: an output bias is predicted.
        residual: the mean of the pieces' rows (FVT) is added to what the heads predict, and the
            heads start at zero, so that an untrained hypernetwork gives FVT rows.
        native: trained for the model's own tokenizer: tokens are read by its pieces, and its
            vocabulary's tokens keep the model's own rows.
        max_positions: rows of the position table, of which the first S are used.
        model_layers: first layers of the model whose states of the pieces are read beside the
            pieces' rows, through a map that starts at zero (``native``, without extra tokens); 0
            for none. The model itself knows best what word some pieces spell.
    """

    width: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    surface_length: int
    vocab_size: int
    extra_tokens: int
    pad_id: int
    languages: int = 0
    separate_output: bool = False
    single_head: bool = False
    rescale: bool = True
    predict_bias: bool = True
    residual: bool = False
    native: bool = False
    max_positions: int = 514
    model_layers: int = 0

    @property
    def source_width(self) -> int:
        """E, width of a source row: input and output rows side by side where they differ."""
        return self.width * (2 if self.separate_output else 1)

    @property
    def encoder(self) -> EncoderConfig:
        """Shape of the body: RoBERTa's layers, but for the last, of which one state is read."""
        return EncoderConfig(
            width=self.hidden,
            layers=self.layers - 1,
            heads=self.heads,
            feed_forward=self.feed_forward,
            layer_norm_eps=1e-5,
        )


class Rescale(nn.Module):
    """Every coordinate times a learned factor plus a learned shift."""

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Scale and shift."""
        shape, axes = (1, x.shape[-1]), (None, "D")
        factor = parameter(self, "factor", nn.initializers.ones, shape, axes)
        return x * factor + parameter(self, "shift", nn.initializers.zeros, shape, axes)


class Projector(nn.Module):
    """Two dense layers beside the identity, then LayerNorm."""

    feed_forward: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Project."""
        gelu = ACTIVATIONS["gelu_new"]
        inner = Dense(self.feed_forward, ("D", "F"), dtype=self.dtype, name="dense1")(x)
        outer = Dense(x.shape[-1], ("F", "D"), dtype=self.dtype, name="dense2")(gelu(inner))
        return LayerNorm(1e-6, self.dtype, name="norm")(gelu(outer) + x)


class Hypernet(nn.Module):
    """Surface forms to rows.

    Attributes:
        config: shape of the hypernetwork.
        dtype: dtype of the computation; rows are float32.
        remat: recompute the layers in the backward pass.
    """

    config: HypernetConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        source: Float[Array, "V E"],
        forms: Int[Array, "U S"],
        mask: Bool[Array, "U S"],
        language: ArrayLike | None = None,
        states: Float[Array, "U S D"] | None = None,
    ) -> Rows:
        """Predict the rows of U tokens.

        Args:
            source: rows of the model.
            forms: pieces of each token. An id below V is a row of ``source``; V + i is the
                hypernetwork's own row i. (With the model's whole table that is a tokenizer's id;
                a table of only the rows in use needs its ids counted anew.)
            mask: True at pieces, False at padding.
            language: row of the language table, if there is one.
            states: of the pieces, by the model's first layers, where they are read.

        Returns:
            Rows on the device: input, and output and bias where the configuration has them.
        """
        c = self.config
        source = jnp.asarray(source)
        x = self._read(source, forms)
        mean = _mean_row(source, forms, mask) if c.residual else None
        if c.model_layers:
            x = x + self._read_states(states)
        x = x + self._table("positions", (c.max_positions, c.hidden), "T")[: forms.shape[1]]
        x = x + self._table("token_types", (1, c.hidden), "C")[0]
        if c.languages:
            row = self._table("languages", (c.languages, c.hidden), "C")[language]
            row = jnp.broadcast_to(row, (len(x), 1, c.hidden))
            x = jnp.concatenate([x, row.astype(x.dtype)], axis=1)
            mask = jnp.concatenate([mask, jnp.ones((len(x), 1), bool)], axis=1)
        x = LayerNorm(c.encoder.layer_norm_eps, self.dtype, name="embedding_norm")(x)
        x = constrain(x, "B", "T", None)
        if c.layers > 1:
            x = EncoderStack(c.encoder, self.dtype, self.remat, name="stack")(x, mask)
        layer = nn.remat(EncoderLayer) if self.remat else EncoderLayer
        x = layer(c.encoder, self.dtype, first=True, name="last")(x, mask[:, None, :])
        return self._predict(x[:, 0], mean)

    def _read(self, source: Float[Array, "V E"], forms: Int[Array, "U S"]) -> Float[Array, "U S H"]:
        c = self.config
        # The original keeps one unused row where there are no extra tokens.
        own = self._table("extra", (max(c.extra_tokens, 1), c.source_width), "V")
        beyond = forms - len(source)
        rows = source[jnp.minimum(forms, len(source) - 1)]
        if c.rescale:
            rows = Rescale(name="rescale_source")(rows)
        x = jnp.where((beyond >= 0)[..., None], own[jnp.maximum(beyond, 0)], rows)
        x = Dense(c.hidden, ("F", "D"), dtype=self.dtype, name="read")(x)
        return Projector(c.feed_forward, self.dtype, name="read_projector")(x)

    def _read_states(self, states: Any) -> Float[Array, "U S H"]:
        c = self.config
        # By few dimensions: a map of the whole width would be a tenth of a small hypernetwork.
        states = LayerNorm(1e-6, self.dtype, name="states_norm")(states)
        narrow = Dense(max(1, c.hidden // 3), ("D", "C"), dtype=self.dtype, name="states_down")(
            states
        )
        zeros = nn.initializers.zeros
        return Dense(c.hidden, ("C", "D"), True, self.dtype, zeros, name="states_up")(narrow)

    def _predict(
        self, hidden: Float[Array, "U H"], mean: Float[Array, "U E"] | None = None
    ) -> Rows:
        c = self.config
        rows: Any
        output: Any = None
        if c.separate_output and c.single_head:
            both = self._head(hidden, 2 * c.width, "head")
            rows, output = both[:, : c.width], both[:, c.width :]
        else:
            rows = self._head(hidden, c.width, "head")
            if c.separate_output:
                output = self._head(hidden, c.width, "output_head")
        if c.rescale:
            rows = Rescale(name="rescale")(rows)
            output = None if output is None else Rescale(name="rescale_output")(output)
        if mean is not None:
            rows = rows + mean[:, : c.width]
            output = None if output is None else output + mean[:, c.width :]
        bias: Any = None
        if c.predict_bias:
            bias = Dense(1, ("D", "C"), dtype=self.dtype, name="bias")(hidden)[:, 0]
        return jax.tree.map(lambda x: x.astype(jnp.float32), Rows(rows, output, bias))

    def _head(self, hidden: Float[Array, "U H"], width: int, name: str) -> Any:
        projected = Projector(self.config.feed_forward, self.dtype, name=f"{name}_projector")
        init = nn.initializers.zeros if self.config.residual else nn.initializers.normal(0.02)
        dense = Dense(width, ("D", "F"), dtype=self.dtype, kernel_init=init, name=name)
        return dense(projected(hidden))

    def _table(self, name: str, shape: tuple[int, int], axis: str) -> jax.Array:
        # Whole along the width, as the encoder's tables are.
        return parameter(self, name, nn.initializers.normal(0.02), shape, (axis, None))


def _mean_row(
    source: Float[Array, "V E"], forms: Int[Array, "U S"], mask: Bool[Array, "U S"]
) -> Float[Array, "U E"]:
    """Mean of the pieces' rows; pieces beyond V, which have none in ``source``, do not count."""
    known = mask & (forms < len(source))
    rows = source[jnp.minimum(forms, len(source) - 1)]
    total = jnp.where(known[..., None], rows, 0).sum(axis=1)
    return total / jnp.maximum(known.sum(axis=1, keepdims=True), 1)


def abstract_hypernet(config: HypernetConfig) -> Any:
    """Shapes and logical axes of a hypernetwork's parameters; nothing is computed."""
    source = jax.ShapeDtypeStruct((1, config.source_width), jnp.float32)
    forms = jax.ShapeDtypeStruct((1, config.surface_length), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, config.surface_length), jnp.bool_)
    states = jax.ShapeDtypeStruct((*forms.shape, config.width), jnp.float32)
    return abstract_params(Hypernet(config), source, forms, mask, 0, states)
