"""Hidden states that a decoder asks a large vocabulary's output rows with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary
from dyntok_jax.sharding import gathered
from dyntok_jax.text.layouts import prompt_layout
from dyntok_jax.types import DyntokError, Token

BATCH_SIZE = 8


def hidden_states(
    model: DynamicModel,
    vocabulary: LargeVocabulary,
    texts: Sequence[str],
    count: int,
    longest: int,
) -> Float[np.ndarray, "Q D"]:
    """Last hidden states after tokens that are spread evenly over texts.

    The texts are read in the tokens of the vocabulary, by longest prefixes, as prompts are.

    Args:
        model: a decoder.
        vocabulary: of that model.
        texts: at least one that is not empty.
        count: Q; all tokens' states where there are no more.
        longest: tokens of a text that are read, at most.

    Raises:
        DyntokError: an encoder, which has no next tokens; texts without a token.
    """
    if model.kind != "decoder":
        raise DyntokError(f"{model.name} is an encoder: it has no logits to search by")
    longest = min(longest, model.max_length)
    sequences: list[list[Token]] = [
        [vocabulary.tokens[i] for i in vocabulary.tokenize(base)[:longest]]
        for base in prompt_layout(model.tokenizer, texts)
    ]
    ends = np.cumsum([len(tokens) for tokens in sequences])
    total = int(ends[-1])
    if not total:
        raise DyntokError("texts without a token: there are no hidden states of them")
    count = min(count, total)
    wanted = np.arange(count) * total // count
    hidden = np.zeros((count, model.source.input.shape[1]), np.float32)
    for place, states in model.outputs(sequences, gathered, BATCH_SIZE):
        for i, table in zip(place, states, strict=True):
            begin = int(ends[i]) - len(sequences[i])
            here = np.flatnonzero((wanted >= begin) & (wanted < ends[i]))
            # Padding is on the left.
            hidden[here] = table[len(table) - int(ends[i]) + wanted[here]]
    return hidden
