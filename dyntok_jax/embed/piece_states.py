"""What the model itself makes of a token's pieces, for hypernetworks that read it."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dyntok_jax.models.weights import LoadedModel, first_layers, model_module
from dyntok_jax.sharding import gathered
from dyntok_jax.text.base_tokens import BaseTokenizer


class PieceReader(NamedTuple):
    """The first layers of a model, which read each token as a text of its own.

    Attributes:
        module: the layers.
        params: theirs, on the host.
        opening, closing: ids of what stands before and after the pieces, as around a text.
    """

    module: nn.Module
    params: Any
    opening: tuple[int, ...]
    closing: tuple[int, ...]


def piece_reader(model: LoadedModel, layers: int, tokenizer: BaseTokenizer) -> PieceReader:
    """The reader of a model; a decoder's puts nothing after the pieces."""
    first = first_layers(model, layers)
    opening, closing = tuple(tokenizer.prompt_ids[:1]), ()
    if model.kind == "encoder":
        ends = tokenizer.opening_id, tokenizer.closing_id
        opening, closing = ((i,) if i is not None else () for i in ends)
    return PieceReader(model_module(first.architecture), first.params, opening, closing)


def piece_states(
    module: nn.Module,
    rows: Float[Array, "V D"],
    forms: Int[Array, "U S"],
    mask: Bool[Array, "U S"],
    opening: Int[Array, " O"],
    closing: Int[Array, " C"],
) -> Float[Array, "U S D"]:
    """States of the pieces of U tokens, each between what stands around a text.

    Args:
        module: the layers.
        rows: of the model; a table of only the rows in use needs all ids counted anew.
        forms: pieces of each token.
        mask: True at pieces; padding is to the right.
        opening, closing: ids around them, none or one each.
    """
    count, before = forms.shape[0], len(opening)
    room = jnp.zeros((count, len(closing)), forms.dtype)
    ids = jnp.concatenate([jnp.broadcast_to(opening, (count, before)), forms, room], axis=1)
    places = jnp.arange(ids.shape[1])
    end = before + mask.sum(axis=1, keepdims=True)
    real = places < end + len(closing)
    for place in range(len(closing)):
        ids = jnp.where(places == end + place, closing[place], ids)
    return gathered(module, rows, ids, real)[:, before : before + forms.shape[1]]
