"""Rows made of the pieces' rows beside FVT's mean: what a trained hypernetwork has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import Any, Protocol

import jax
import numpy as np

from dyntok_jax.embed.source import BaseRowsRule, FvtRows, SourceEmbeddings, Tokenizer
from dyntok_jax.text.byte_level import CHAR_TO_BYTE
from dyntok_jax.text.surface_forms import pieces
from dyntok_jax.types import Rows, Token

FITTED_TOKENS = 20_000
"""Tokens of the vocabulary that the ridge regression is fitted on."""

PENALTY = 0.1
"""Of the ridge regression, relative to the mean square of a feature."""


class WeightedRows(FvtRows):
    """A token's row is the mean of its pieces' rows, the i-th of n pieces weighted by i.

    Otherwise as ``FvtRows``.
    """

    def rows(self, tokens: Sequence[Token]) -> Rows:
        """Rows of U tokens; errors as in ``FvtRows.rows``."""
        forms = [self._form(token) for token in tokens]
        return jax.tree.map(
            lambda table: by_count(table, forms, toward_last), _gather(self.source, forms)
        )


class Vocabulary(Tokenizer, Protocol):
    """A tokenizer that lists its tokens (``text.base_tokens.BaseTokenizer`` does)."""

    def vocabulary(self) -> list[str]:
        """All byte-spelled tokens, special ones left out."""
        ...


class RidgeRows(FvtRows):
    """A linear map from the pieces' rows, fitted on the model's own vocabulary.

    Tokens of the vocabulary are cut in two and each part is split by the tokenizer; the map
    predicts from these pieces what the token's own row has beyond their mean, by ridge regression
    on the first piece's row, the mean and the last piece's row. It is fitted when it is first
    needed, in closed form. Otherwise as ``FvtRows``; tokens of one piece keep its row.

    Attributes:
        fitted_tokens: most tokens that it is fitted on; chosen evenly over the vocabulary's ids.
        penalty: relative to the mean square of a feature; a large one gives FVT.
    """

    def __init__(
        self,
        source: SourceEmbeddings,
        tokenizer: Vocabulary,
        base_rows: BaseRowsRule = "own",
        fitted_tokens: int = FITTED_TOKENS,
        penalty: float = PENALTY,
    ):
        super().__init__(source, tokenizer, base_rows)
        self.fitted_tokens = fitted_tokens
        self.penalty = penalty
        self._vocabulary = tokenizer

    def rows(self, tokens: Sequence[Token]) -> Rows:
        """Rows of U tokens; errors as in ``FvtRows.rows``."""
        forms = [self._form(token) for token in tokens]
        gathered = _gather(self.source, forms)
        if max(map(len, forms), default=0) < 2:
            return gathered
        return jax.tree.map(
            lambda table, fitted: by_count(table, forms, lambda group: predicted(group, fitted)),
            gathered,
            self._maps,
        )

    @cached_property
    def _maps(self) -> Any:
        """(3E + 1, E) float32 for each table of the source."""
        ids, forms = _resplit(self._vocabulary, len(self.source.input), self.fitted_tokens)
        return jax.tree.map(
            lambda table, own: fit(by_count(table, forms, features), own, self.penalty),
            _gather(self.source, forms),
            self.source.take(ids),
        )


def by_count(
    table: np.ndarray,
    forms: Sequence[Sequence[int]],
    combine: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Combines the rows of each form's pieces, the forms of one length at a time.

    Args:
        table: (P, ...) rows of all pieces of all forms, in order.
        forms: U forms.
        combine: makes one row each of (n, pieces, ...), also of a single piece.

    Returns:
        U rows, float32.
    """
    counts = np.array([len(form) for form in forms], np.int64)
    starts = np.cumsum(counts) - counts
    combined = table[:0]
    for count in np.unique(counts):
        which = np.flatnonzero(counts == count)
        rows = combine(table[starts[which, None] + np.arange(count)])
        if not len(combined):
            combined = np.empty((len(forms), *rows.shape[1:]), np.float32)
        combined[which] = rows
    return combined


def toward_last(group: np.ndarray) -> np.ndarray:
    """(n, ...) means of (n, pieces, ...), the i-th piece weighted by i, counted from 1."""
    weights = np.arange(1, group.shape[1] + 1, dtype=np.float32)
    return np.tensordot(group, weights / weights.sum(), axes=([1], [0]))


def features(group: np.ndarray) -> np.ndarray:
    """(n, 3E) first piece, mean and last piece of (n, pieces, E)."""
    group = group.reshape(*group.shape[:2], -1)
    return np.concatenate([group[:, 0], group.mean(axis=1), group[:, -1]], axis=1)


def fit(inputs: np.ndarray, own: np.ndarray, penalty: float) -> np.ndarray:
    """Ridge regression of what own rows have beyond the mean of their pieces.

    Args:
        inputs: (n, 3E) features.
        own: (n, E) or (n,) rows to predict.
        penalty: relative to the mean square of a feature; the shift is not penalized.

    Returns:
        (3E + 1, E) float32; the last row is the shift.
    """
    width = inputs.shape[1]
    centre = inputs.mean(axis=0, dtype=np.float64)
    beyond = own.reshape(len(own), -1) - inputs[:, width // 3 : 2 * width // 3]
    shift = beyond.mean(axis=0, dtype=np.float64)
    x, y = (inputs - centre).astype(np.float32), (beyond - shift).astype(np.float32)
    gram = (x.T @ x).astype(np.float64)
    gram[np.diag_indices(width)] += penalty * np.trace(gram) / width + 1e-12
    solved = np.linalg.solve(gram, (x.T @ y).astype(np.float64))
    return np.concatenate([solved, (shift - centre @ solved)[None]]).astype(np.float32)


def predicted(group: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """(n, ...) rows of (n, pieces, ...); a single piece's row is kept."""
    if group.shape[1] == 1:
        return group[:, 0]
    beyond = features(group) @ fitted[:-1] + fitted[-1]
    return group.mean(axis=1) + beyond.reshape(len(group), *group.shape[2:])


def _gather(source: SourceEmbeddings, forms: Sequence[Sequence[int]]) -> Rows:
    return source.take(np.fromiter(chain.from_iterable(forms), np.int64))


def _resplit(tokenizer: Vocabulary, size: int, most: int) -> tuple[list[int], list[list[int]]]:
    """Ids of vocabulary tokens, evenly over the ids, and the pieces of their parts."""
    own = {tokenizer.id_of(token): token for token in tokenizer.vocabulary()}
    known = sorted((i, token) for i, token in own.items() if i is not None and i < size)
    step = max(1, len(known) // most)
    split = ((i, _split(token, i, tokenizer)) for i, token in known[::step])
    found = list(islice(((i, form) for i, form in split if form and max(form) < size), most))
    return [i for i, _ in found], [form for _, form in found]


def _split(token: str, rank: int, tokenizer: Tokenizer) -> list[int] | None:
    """Pieces of a token's two parts, cut between characters at a place that goes with ``rank``."""
    # A part is not just the space before a word.
    first = 2 if token[0] == "Ġ" else 1
    cuts = [i for i in range(first, len(token)) if not 0x80 <= CHAR_TO_BYTE[token[i]] < 0xC0]
    if not cuts:
        return None
    cut = cuts[rank % len(cuts)]
    form = pieces(token[:cut], tokenizer) + pieces(token[cut:], tokenizer)
    return None if tokenizer.unk_id in form else form
