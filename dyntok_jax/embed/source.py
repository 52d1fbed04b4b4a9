"""Where rows come from: the model itself, means of its rows (FVT), or ``hypernet_rows``.

All providers have one method, ``rows(tokens) -> Rows``, so that the cache, the commands and the
evaluation take any of them. Special tokens (ints) keep the model's own row in all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import jax
import numpy as np
from jaxtyping import Float
from safetensors.numpy import save_file

from dyntok_jax.files import atomic_path
from dyntok_jax.tensor_files import DTYPES, file_tensors
from dyntok_jax.text.surface_forms import Decomposer, pieces
from dyntok_jax.types import DyntokError, Rows, Token

logger = logging.getLogger(__name__)

BaseRowsRule = Literal["own", "predicted"]
"""Whether unmerged vocabulary tokens keep the model's own row."""


class Tokenizer(Decomposer, Protocol):
    """What row providers need of a tokenizer (``text.base_tokens.BaseTokenizer`` has it)."""

    @property
    def unk_id(self) -> int | None:
        """Id of the unknown token, if there is one."""
        ...

    def id_of(self, token: str) -> int | None:
        """Id of the vocabulary token with exactly these bytes."""
        ...


class RowProvider(Protocol):
    """Anything that turns tokens into rows."""

    def rows(self, tokens: Sequence[Token]) -> Rows:
        """Rows of U tokens, in order; no tokens give rows of shape (0, D)."""
        ...


def map_tensor(path: Path, name: str) -> np.ndarray:
    """A tensor of a safetensors file as a read-only memory map: reading rows reads just those.

    Raises:
        DyntokError: no such file or tensor, or not of floats.
    """
    tensors = file_tensors(path)
    if name not in tensors or tensors[name].dtype not in DTYPES:
        found = ", ".join(sorted(tensors))
        raise DyntokError(f"{path}: no tensor {name!r} of floats; it has {found}")
    return tensors[name].map()


@dataclass(frozen=True)
class SourceEmbeddings:
    """The model's own rows, in memory or memory-mapped.

    Attributes:
        input: (V, D) embedding table.
        output: (V, D) rows of a separate output layer, None where it is tied or there is none.
        bias: (V,) output bias, or None.
        folder: of the model, for hypernetworks that read its layers too; None where not known.
    """

    input: Float[np.ndarray, "V D"]
    output: Float[np.ndarray, "V D"] | None = None
    bias: Float[np.ndarray, " V"] | None = None
    folder: Path | None = None

    @classmethod
    def from_concatenated(
        cls, source: Float[np.ndarray, "V E"], separate: bool
    ) -> SourceEmbeddings:
        """Split (V, 2D), input and output rows side by side as ZeTT stores them; or take (V, D)."""
        if not separate:
            return cls(source)
        width = source.shape[1] // 2
        return cls(source[:, :width], source[:, width:])

    def take(self, ids: Sequence[int] | np.ndarray) -> Rows:
        """The rows of these ids, float32; only they are read."""
        ids = np.asarray(ids, np.int64)
        tables = Rows(self.input, self.output, self.bias)
        return jax.tree.map(lambda table: np.asarray(table[ids], np.float32), tables)


@dataclass(frozen=True)
class BaseRows:
    """The model's own rows, for tokens of its vocabulary only."""

    source: SourceEmbeddings
    tokenizer: Tokenizer

    def rows(self, tokens: Sequence[Token]) -> Rows:
        """Rows of U base or special tokens.

        Raises:
            DyntokError: a token outside the vocabulary.
        """
        ids = [own_id(token, self.source, self.tokenizer) for token in tokens]
        if None in ids:
            raise DyntokError(
                f"token {tokens[ids.index(None)]!r} is not in the model's vocabulary: base rows "
                "exist for unmerged tokens only (merged ones need fvt rows or a hypernetwork)"
            )
        return self.source.take(np.array(ids, np.int64))


def own_id(token: Token, source: SourceEmbeddings, tokenizer: Tokenizer) -> int | None:
    """The id under which the model has a row of exactly this token, or None.

    Raises:
        DyntokError: a special token without a row.
    """
    size = len(source.input)
    if isinstance(token, int):
        if not 0 <= token < size:
            raise DyntokError(f"special token id {token}: the model has rows 0 to {size - 1}")
        return token
    own = tokenizer.id_of(token)
    return own if own is not None and own < size else None


class FvtRows:
    """Fast vocabulary transfer: a token's row is the mean of its pieces' rows.

    A token without pieces, or with a piece the model has no row for, gets the row of the unknown
    token, and is counted; the first is logged.

    Attributes:
        source: the model's own rows.
        tokenizer: splits tokens into the model's ids.
        base_rows: whether vocabulary tokens keep their own row even where the tokenizer splits
            their spelling otherwise.
        unknown: how many rows of the unknown token were given so far.
    """

    def __init__(
        self, source: SourceEmbeddings, tokenizer: Tokenizer, base_rows: BaseRowsRule = "own"
    ):
        self.source = source
        self.tokenizer = tokenizer
        self.base_rows = base_rows
        self.unknown = 0

    def rows(self, tokens: Sequence[Token]) -> Rows:
        """Rows of U tokens (Gee et al. 2022, eq. 1).

        Raises:
            DyntokError: a character that stands for no byte; a special token without a row; a
                token that needs the unknown row of a model that has none.
        """
        forms = [self._form(token) for token in tokens]
        counts = np.array([len(form) for form in forms], np.int64)
        gathered = self.source.take(np.array([i for form in forms for i in form], np.int64))
        starts = np.cumsum(counts) - counts
        return jax.tree.map(lambda table: _means(table, starts, counts), gathered)

    def _form(self, token: Token) -> list[int]:
        if isinstance(token, int) or self.base_rows == "own":
            own = own_id(token, self.source, self.tokenizer)
            if own is not None:
                return [own]
        form = pieces(token, self.tokenizer)
        if form and max(form) < len(self.source.input):
            return form
        if self.tokenizer.unk_id is None:
            raise DyntokError(
                f"token {token!r} has no pieces with rows, and the model has no unknown token"
            )
        if not self.unknown:
            logger.warning(
                "token %r has no pieces with rows and gets the unknown token's row "
                "(further ones are counted, not logged)",
                token,
            )
        self.unknown += 1
        return [self.tokenizer.unk_id]


def _means(gathered: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means of consecutive groups of rows; groups of one size at a time, which is quick."""
    means = np.empty((len(starts), *gathered.shape[1:]), np.float32)
    for count in np.unique(counts):
        which = np.flatnonzero(counts == count)
        means[which] = gathered[starts[which, None] + np.arange(count)].mean(axis=1)
    return means


def predict_rows(tokens: Sequence[Token], provider: RowProvider, path: Path) -> None:
    """Write the tokens' rows as safetensors: ``input``, and ``output`` and ``bias`` where given.

    The file appears whole or not at all.
    """
    with atomic_path(path) as partial:
        tensors = {k: v for k, v in provider.rows(tokens)._asdict().items() if v is not None}
        save_file(tensors, partial)
