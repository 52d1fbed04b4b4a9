"""Texts to vectors, with an encoder that reads dynamic tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.merging.batch import DynamicTokens
from dyntok_jax.merging.budget import Budget
from dyntok_jax.sharding import gathered
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import text_layout
from dyntok_jax.types import DyntokError

Pool = Literal["mean", "first"]


@dataclass(frozen=True)
class Encoded:
    """Vectors of texts.

    Attributes:
        vectors: (N, D) float32.
        tokens_before, tokens_after: base and dynamic tokens, special tokens counted.
        truncated: base tokens cut off.
    """

    vectors: Float[np.ndarray, "N D"]
    tokens_before: int
    tokens_after: int
    truncated: int


def encode(
    model: DynamicModel,
    texts: Sequence[str],
    reduction: float = 100,
    *,
    pool: Pool = "mean",
    boundary: Boundary = Boundary.PRETOKEN,
    batch_size: int = 32,
    max_length: int | None = None,
) -> Encoded:
    """One vector a text: the mean of its hidden states by base token, or the first one.

    No prefix is added and vectors are not normalized. Every ``batch_size`` texts in order are
    merged together; the network then takes them in batches of similar length.

    Args:
        model: an encoder.
        texts: what to encode.
        reduction: percent of the largest possible saving of tokens.
        pool: ``mean`` over all tokens, special ones too, each as often as the base tokens it
            stands for; or ``first``.
        boundary: what merges do not cross.
        batch_size: texts merged together, and sequences in a batch of the network.
        max_length: cuts sequences; by default, and at most, what the model can read.

    Raises:
        DyntokError: a decoder; a length the layout cannot keep; see ``DynamicModel.merge``.
    """
    if model.kind != "encoder":
        raise DyntokError(f"{model.name} is a decoder: encode needs an encoder (score takes it)")
    budget = Budget(reduction=reduction)
    longest = min(max_length or model.max_length, model.max_length)
    merged: list[DynamicTokens] = []
    before = truncated = 0
    for start in range(0, len(texts), batch_size):
        base = text_layout(model.tokenizer, texts[start : start + batch_size], boundary, longest)
        before += sum(len(sequence.tokens) for sequence in base)
        truncated += sum(sequence.truncated for sequence in base)
        merged += model.merge(base, budget, boundary).sequences
    after = sum(len(sequence.tokens) for sequence in merged)
    return Encoded(pooled(model, merged, pool, batch_size), before, after, truncated)


def pooled(
    model: DynamicModel, sequences: Sequence[DynamicTokens], pool: Pool, batch_size: int
) -> Float[np.ndarray, "N D"]:
    """(N, D) float32 vectors of sequences of dynamic tokens."""
    tokens = [sequence.tokens for sequence in sequences]
    if pool == "mean":
        counts = [sequence.counts for sequence in sequences]
        outputs = model.outputs(tokens, mean_pooled, batch_size, counts)
    else:
        outputs = model.outputs(tokens, first_pooled, batch_size)
    vectors = np.zeros((len(sequences), model.source.input.shape[1]), np.float32)
    for place, part in outputs:
        vectors[place] = part
    return vectors


def mean_pooled(
    module: nn.Module,
    rows: Float[Array, "U D"],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    counts: Float[Array, "B T"],
) -> Float[Array, "B D"]:
    """Mean of the hidden states over base tokens.

    If each state were the mean of its base tokens' states, this would be the mean over the text's
    base tokens.

    Args:
        module, rows, ids, mask: as in ``sharding.forward``.
        counts: base tokens that each token stands for, 0 at padding.
    """
    return mean_over(gathered(module, rows, ids, mask).astype(jnp.float32), counts)


def mean_over(states: Float[Array, "B T D"], counts: Array) -> Float[Array, "B D"]:
    """Mean over positions, each as often as it counts: by a mask, over the real ones."""
    weights = counts.astype(states.dtype)[..., None]
    total = jnp.where(weights > 0, states * weights, 0).sum(1)
    return total / jnp.maximum(weights.sum(1), 1)


def first_pooled(
    module: nn.Module,
    rows: Float[Array, "U D"],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B D"]:
    """Hidden state of the first token."""
    return gathered(module, rows, ids, mask)[:, 0].astype(jnp.float32)
