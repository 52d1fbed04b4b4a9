"""Rows that a hypernetwork predicts from the pieces of a token."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from dyntok_jax.config import MeshConfig
from dyntok_jax.embed.hypernet import Hypernet, HypernetConfig, abstract_hypernet
from dyntok_jax.embed.piece_states import PieceReader, piece_reader, piece_states
from dyntok_jax.embed.source import BaseRowsRule, SourceEmbeddings, Tokenizer, own_id
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.weights import load_model
from dyntok_jax.sharding import forward, make_mesh, shard_params
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.surface_forms import surface_forms
from dyntok_jax.types import DyntokError, Rows, Token

logger = logging.getLogger(__name__)

CHUNK_SIZES = (64, 256, 1024)
"""Tokens that the hypernetwork predicts at once; each divides the next."""


def chunk_sizes(count: int) -> list[int]:
    """Sizes of the chunks that so many tokens run in, with less padding than the smallest has.

    Largest first, each of :data:`CHUNK_SIZES`.
    """
    found, left = [], -(-count // CHUNK_SIZES[0]) * CHUNK_SIZES[0]
    for size in reversed(CHUNK_SIZES):
        found += [size] * (left // size)
        left %= size
    return found


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
        languages: Sequence[str] = (),
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
            languages: names of the table's rows for errors, in order; empty where not known.

        Raises:
            DyntokError: the source does not fit, or the language is missing or not there.
        """
        source = readable_source(config, source)
        if config.languages and (language is None or not 0 <= language < config.languages):
            what = "no language given" if language is None else f"language {language}"
            names = ", ".join(f"{row} {name}" for row, name in enumerate(languages))
            raise DyntokError(
                f"{what}: this hypernetwork has languages 0 to {config.languages - 1}"
                + (f" ({names})" if names else "")
            )
        if language is not None and not config.languages:
            raise DyntokError(f"language {language}: this hypernetwork has no languages")
        self.config = config
        self.truncated = 0
        self._mesh = make_mesh(MeshConfig()) if mesh is None else mesh
        self._network = Hypernet(config)
        self._params = shard_params(dict(params), abstract_hypernet(config), self._mesh)
        self._source = source
        self._reader = _reader(config, source, tokenizer, self._mesh)
        self._tokenizer = tokenizer
        self._language = language or 0
        self._base_rows: BaseRowsRule = base_rows

    @property
    def longest(self) -> int:
        """S: what a token has more is not read."""
        return self.config.surface_length

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
        return self._chunks(forms)

    def _chunks(self, forms: Int[np.ndarray, "U S"]) -> Rows:
        """Predict rows in chunks: of many those of short forms together, without their padding."""
        lengths = ((forms != self.config.pad_id) * np.arange(1, forms.shape[1] + 1)).max(axis=1)
        order = np.argsort(lengths, kind="stable")
        chunks, begin = [], 0
        for size in chunk_sizes(len(forms)):
            place = order[begin : begin + size]
            begin += size
            # Of few tokens all have the full width: every other one compiles a program.
            many = size == CHUNK_SIZES[-1] < len(forms)
            width = max(1, lengths[place[-1]]) if many else forms.shape[1]
            chunks.append(self._chunk(forms[place, :width], size))
        back = np.argsort(order)
        return jax.tree.map(lambda *parts: np.concatenate(parts)[back], *chunks)

    def _chunk(self, forms: Int[np.ndarray, "U S"], size: int) -> Rows:
        """Predict up to ``size`` rows, reading each source row once."""
        count, width = forms.shape
        size += -size % math.prod(self._mesh.devices.shape)
        around = () if self._reader is None else (*self._reader.opening, *self._reader.closing)
        all_ids = np.concatenate([forms.ravel(), np.array(around, forms.dtype)])
        ids, where = np.unique(all_ids, return_inverse=True)
        where, ends = where[: forms.size], where[forms.size :]
        known = ids[ids < self.config.vocab_size]
        room = 2 * size if len(known) <= 2 * size else width * size + len(around)
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
        if self._reader is not None:
            opening, closing = np.split(ends.astype(np.int32), [len(self._reader.opening)])
            rows = source[:, : self.config.width]
            read: Any = (self._reader.module, self._reader.params, rows, padded, mask)
            states = forward(*read, opening, closing, mesh=self._mesh, method=piece_states)
            inputs = (*inputs, states)
        call = Hypernet.__call__
        rows = forward(self._network, self._params, *inputs, mesh=self._mesh, method=call)
        return jax.tree.map(lambda table: np.asarray(table)[:count], rows)


def _reader(
    config: HypernetConfig, source: SourceEmbeddings, tokenizer: Tokenizer, mesh: Mesh
) -> PieceReader | None:
    """The model's first layers on the mesh, where the hypernetwork reads by them."""
    if not config.model_layers:
        return None
    if source.folder is None or not isinstance(tokenizer, BaseTokenizer):
        raise DyntokError(
            f"this hypernetwork reads the model's first {config.model_layers} layers, not its rows "
            "alone: give the model's name or folder, and no rows of a file"
        )
    reader = piece_reader(load_model(source.folder), config.model_layers, tokenizer)
    return reader._replace(params=shard_params(reader.params, abstract_params(reader.module), mesh))


def readable_source(config: HypernetConfig, source: SourceEmbeddings) -> SourceEmbeddings:
    """A model's rows as a hypernetwork reads them.

    Raises:
        DyntokError: it reads others.
    """
    if config.native and config.separate_output and source.output is None:
        # Merged tokens of a tied model may have output rows apart from their input rows.
        source = replace(source, output=source.input)
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
    return source
