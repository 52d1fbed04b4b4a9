"""Tokens as the hypernetwork reads them: the ids of their pieces in the model's own vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from dyntok_jax.text.byte_level import CHAR_TO_BYTE, to_bytes
from dyntok_jax.types import DyntokError, Token

_BYTE_CHARS = frozenset(CHAR_TO_BYTE)


class Decomposer(Protocol):
    """What surface forms need of a tokenizer (``text.base_tokens.BaseTokenizer`` has it)."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    def decompose(self, token: str) -> list[int]:
        """Ids of a byte-spelled string, by the tokenizer's model on the whole string."""
        ...


class SurfaceForms(NamedTuple):
    """Surface forms of U tokens.

    Attributes:
        ids: (U, S) int32, cut and padded to S.
        truncated: how many tokens had more than S pieces and lost the rest.
    """

    ids: Int[np.ndarray, "U S"]
    truncated: int


def pieces(token: Token, tokenizer: Decomposer) -> list[int]:
    """All piece ids of one token: a special token is its own piece, ``""`` has none.

    Raises:
        DyntokError: a character that stands for no byte, or an id outside the vocabulary.
    """
    if isinstance(token, int):
        if not 0 <= token < tokenizer.vocab_size:
            raise DyntokError(
                f"special token id {token}: the vocabulary has ids 0 to {tokenizer.vocab_size - 1}"
            )
        return [token]
    if not _BYTE_CHARS.issuperset(token):
        to_bytes(token)  # raises; a tokenizer would take the character as unknown and carry on
    return tokenizer.decompose(token) if token else []


def surface_forms(
    tokens: Sequence[Token], tokenizer: Decomposer, length: int, pad_id: int
) -> SurfaceForms:
    """Pieces of every token, cut and padded to one length (ZeTT, section 3.1).

    Args:
        tokens: byte-spelled strings, or ids of special tokens.
        tokenizer: splits a string into the model's own ids.
        length: S.
        pad_id: id that fills a row after its pieces; ``""`` is all padding.

    Raises:
        DyntokError: see :func:`pieces`.
    """
    ids = np.full((len(tokens), length), pad_id, np.int32)
    truncated = 0
    for row, token in zip(ids, tokens, strict=True):
        form = pieces(token, tokenizer)
        truncated += len(form) > length
        row[: len(form)] = form[:length]
    return SurfaceForms(ids, truncated)
