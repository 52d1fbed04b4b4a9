"""Where rows come from: the model itself, means of its rows (FVT), or the hypernetwork.

All providers have one method, ``rows(tokens) -> Rows``, so that the cache, the commands and the
evaluation take any of them. Special tokens (ints) keep the model's own row in all of them.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from safetensors.numpy import save_file

from dyntok_jax.config import MeshConfig
from dyntok_jax.embed.hypernet import Hypernet, HypernetConfig, abstract_hypernet
from dyntok_jax.models.tensor_files import DTYPES, file_tensors
from dyntok_jax.sharding import forward, make_mesh, shard_params
from dyntok_jax.text.surface_forms import Decomposer, pieces, surface_forms
from dyntok_jax.types import DyntokError, Rows, Token

logger = logging.getLogger(__name__)

BaseRowsRule = Literal["own", "predicted"]
"""Whether unmerged vocabulary tokens keep the model's own row."""

CHUNK_SIZES = (64, 256, 1024)
"""Tokens that the hypernetwork predicts at once, padded up to one of these."""


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
    """

    input: Float[np.ndarray, "V D"]
    output: Float[np.ndarray, "V D"] | None = None
    bias: Float[np.ndarray, " V"] | None = None

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
    token, and is counted.

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
        self.unknown += 1
        return [self.tokenizer.unk_id]


def _means(gathered: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means of consecutive groups of rows; groups of one size at a time, which is quick."""
    means = np.empty((len(starts), *gathered.shape[1:]), np.float32)
    for count in np.unique(counts):
        which = np.flatnonzero(counts == count)
        means[which] = gathered[starts[which, None] + np.arange(count)].mean(axis=1)
    return means


class HypernetRows:
    """Rows that a hypernetwork predicts from a token's pieces.

    Only the source rows of the pieces in use go to the device. Tokens run in chunks of a few
    sizes, so that at most two programs per size are compiled.

    Attributes:
        truncated: how many tokens so far had more than S pieces and were read by the first S.
    """

    def __init__(
        self,
        config: HypernetConfig,
        params: Mapping[str, Any],
        source: SourceEmbeddings,
        tokenizer: Tokenizer,
        language: int | None = None,
        base_rows: BaseRowsRule = "predicted",
        mesh: Mesh | None = None,
    ):
        """Bind a hypernetwork to the model it was trained for.

        Args:
            config: shape of the hypernetwork.
            params: its parameters.
            source: the model's own rows.
            tokenizer: splits tokens into the ids the hypernetwork reads.
            language: row of its language table, where it has one.
            base_rows: whether vocabulary tokens keep their own row.
            mesh: devices; by default all of them, each with all parameters.

        Raises:
            DyntokError: the source does not fit, or the language is missing or not there.
        """
        _check_source(config, source)
        if config.languages and (language is None or not 0 <= language < config.languages):
            raise DyntokError(
                f"language {language}: this hypernetwork has languages 0 to {config.languages - 1}"
            )
        if language is not None and not config.languages:
            raise DyntokError(f"language {language}: this hypernetwork has no languages")
        self.config = config
        self.truncated = 0
        self._mesh = make_mesh(MeshConfig()) if mesh is None else mesh
        self._network = Hypernet(config)
        self._params = shard_params(dict(params), abstract_hypernet(config), self._mesh)
        self._source = source
        self._tokenizer = tokenizer
        self._language = language or 0
        self._base_rows: BaseRowsRule = base_rows

    def rows(self, tokens: Sequence[Token]) -> Rows:
        """Rows of U tokens.

        Raises:
            DyntokError: a character that stands for no byte; a special token without a row; a
                tokenizer with more ids than the hypernetwork knows.
        """
        ids = [self._kept_id(token) for token in tokens]
        is_own = np.array([i is not None for i in ids], bool)
        own = self._own([i for i in ids if i is not None])
        predicted = self._predict([t for t, i in zip(tokens, ids, strict=True) if i is None])

        def place(own: np.ndarray, predicted: np.ndarray) -> np.ndarray:
            table = np.empty((len(tokens), *own.shape[1:]), np.float32)
            table[is_own], table[~is_own] = own, predicted
            return table

        return jax.tree.map(place, own, predicted)

    def _kept_id(self, token: Token) -> int | None:
        """The id of a token that keeps the model's own row."""
        if isinstance(token, str) and self._base_rows == "predicted":
            return None
        own = own_id(token, self._source, self._tokenizer)
        # Beyond V a table may have rows, but none of the tokenizer's own tokens there.
        extra = isinstance(token, str) and own is not None and own >= self.config.vocab_size
        return None if extra else own

    def _own(self, ids: list[int]) -> Rows:
        """The model's rows, with the tables the hypernetwork predicts; a bias it lacks is 0."""
        rows = self._source.take(ids)
        if not self.config.predict_bias:
            return rows._replace(bias=None)
        return rows if rows.bias is not None else rows._replace(bias=np.zeros(len(ids), np.float32))

    def _predict(self, tokens: list[Token]) -> Rows:
        c = self.config
        if not tokens:
            return self._own([])
        forms, truncated = surface_forms(tokens, self._tokenizer, c.surface_length, c.pad_id)
        if truncated and not self.truncated:
            logger.warning(
                "%d of %d tokens have more than %d pieces; the rest of each is not read "
                "(further ones are counted, not logged)",
                truncated,
                len(tokens),
                c.surface_length,
            )
        self.truncated += truncated
        limit = c.vocab_size + c.extra_tokens
        if forms.max() >= limit:
            raise DyntokError(
                f"the tokenizer gave id {forms.max()}: this hypernetwork knows ids below {limit}"
            )
        size = CHUNK_SIZES[-1]
        chunks = [self._chunk(forms[i : i + size]) for i in range(0, len(forms), size)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)

    def _chunk(self, forms: Int[np.ndarray, "U S"]) -> Rows:
        """Predict up to a chunk's worth of rows, reading each source row once."""
        count, width = forms.shape
        size = next(size for size in CHUNK_SIZES if size >= count)
        size += -size % math.prod(self._mesh.devices.shape)
        ids, where = np.unique(forms, return_inverse=True)
        known = ids[ids < self.config.vocab_size]
        room = 2 * size if len(known) <= 2 * size else width * size
        taken = self._source.take(known)
        source = np.zeros((room, self.config.source_width), np.float32)
        parts = [taken.input, taken.output] if self.config.separate_output else [taken.input]
        source[: len(known)] = np.concatenate([part for part in parts if part is not None], axis=1)
        # Counted anew: rows in use from 0, the hypernetwork's own from the end of the table.
        own = ids - self.config.vocab_size
        anew = np.where(own < 0, np.arange(len(ids)), room + own)
        padded = np.zeros((size, width), np.int32)
        mask = np.zeros((size, width), bool)
        padded[:count] = anew[where].reshape(forms.shape)
        mask[:count] = forms != self.config.pad_id
        inputs: Any = (source, padded, mask, self._language)
        call = Hypernet.__call__
        rows = forward(self._network, self._params, *inputs, mesh=self._mesh, method=call)
        return jax.tree.map(lambda table: np.asarray(table)[:count], rows)


def _check_source(config: HypernetConfig, source: SourceEmbeddings) -> None:
    rows, width = source.input.shape
    if width != config.width or rows < config.vocab_size:
        raise DyntokError(
            f"the model has {rows} rows of width {width}: this hypernetwork reads "
            f"{config.vocab_size} of width {config.width}"
        )
    if (source.output is not None) != config.separate_output:
        raise DyntokError(
            "the model has separate output rows and the hypernetwork predicts none"
            if source.output is not None
            else "the hypernetwork reads separate output rows and the model has none"
        )


def predict_rows(tokens: Sequence[Token], provider: RowProvider, path: Path) -> None:
    """Write the tokens' rows as safetensors: ``input``, and ``output`` and ``bias`` where given.

    The file appears whole or not at all.
    """
    tensors = {k: v for k, v in provider.rows(tokens)._asdict().items() if v is not None}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial)
    os.replace(partial, path)
