"""A pretrained model that reads dynamic tokens: tokenizer, rows and sharded network together."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from dyntok_jax.adapter_files import WEIGHTS, read_adapter
from dyntok_jax.batching import Batch, by_length, make_batch
from dyntok_jax.config import ComputeConfig
from dyntok_jax.embed.cache import RowCache
from dyntok_jax.embed.providers import default_rows, identity, row_provider, same_rows
from dyntok_jax.embed.shipped import shipped_adapter
from dyntok_jax.embed.source import BaseRowsRule, RowProvider, SourceEmbeddings
from dyntok_jax.lora import Adapter, Base, check_base
from dyntok_jax.merging.batch import DynamicBatch, merge
from dyntok_jax.merging.budget import Budget
from dyntok_jax.merging.punctuation import PunctuationRule
from dyntok_jax.model_store import resolve
from dyntok_jax.models.decoder import Decoder, DecoderConfig
from dyntok_jax.models.decoder_step import UnrolledDecoder, step_shapes, unrolled
from dyntok_jax.models.encoder import EncoderConfig
from dyntok_jax.models.hf_config import Architecture, read_end_ids
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.lora import merged
from dyntok_jax.models.weights import load_model, model_module
from dyntok_jax.sharding import forward, make_mesh, param_shardings, shard_params
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens, whole_words
from dyntok_jax.types import DyntokError, Token

logger = logging.getLogger(__name__)

CACHE_ROWS = 16_384
"""Rows on the device from the start; a larger batch makes the table grow."""


class MergedAdapter(NamedTuple):
    """An adapter that is part of a model's parameters.

    Attributes:
        name: as it was asked for.
        sha256: of its weights, in hexadecimal.
        rows: that it learnt to read, as ``embed.providers.identity`` names them; None where it
            does not say.
    """

    name: str
    sha256: str
    rows: str | None


@dataclass
class DynamicModel:
    """A model, its tokenizer and its rows; ``load`` makes one.

    Attributes:
        name: as it was asked for.
        kind: ``encoder`` or ``decoder``.
        tokenizer: the model's own.
        rows: name of the row provider, or its folder.
        module: the network, a linen module.
        params: its parameters, on the mesh.
        source: the model's own rows.
        cache: rows of dynamic tokens, on the device.
        mesh: devices.
        architecture: of the model.
        end_ids: of tokens that end what a decoder generates.
        adapter: what is merged into the parameters, None for nothing.
    """

    name: str
    kind: str
    tokenizer: BaseTokenizer
    rows: str
    module: nn.Module
    params: Any
    source: SourceEmbeddings
    cache: RowCache
    mesh: Mesh
    architecture: Architecture
    end_ids: tuple[int, ...] = ()
    adapter: MergedAdapter | None = None

    @property
    def max_length(self) -> int:
        """Longest sequence the model can read."""
        return self.architecture.max_length

    def with_rows(
        self, rows: str, language: int | None = None, base_rows: BaseRowsRule | None = None
    ) -> DynamicModel:
        """The same model with other rows; it shares the weights and what is compiled.

        Args:
            rows, language, base_rows: as in ``load``.

        Raises:
            DyntokError: as in ``load``.
        """
        other = copy.copy(self)
        other.rows, provider = _provider(
            rows, self.source, self.tokenizer, language, base_rows, self.mesh
        )
        other.cache = RowCache(provider, self.cache.capacity)
        other._check_rows()
        return other

    def with_adapter(self, adapter: str) -> DynamicModel:
        """The same model as an adapter makes it read dynamic tokens.

        It shares rows and all parameters that the adapter leaves as they are. Base tokens, too, it
        reads with the adapter.

        Args:
            adapter: folder of an adapter without a head, as ``train.reading`` writes it, or
                ``default``: the one that ships for the model.

        Raises:
            DyntokError: there is none, or it does not fit; one for a task; a second one.
        """
        if self.adapter is not None:
            raise DyntokError(f"adapter {adapter}: {self.name} reads with one already")
        found, said = _read_adapter(adapter, self, self.architecture, self.tokenizer)
        params = merged(self.params, found.lora, found.config)
        other = copy.copy(self)
        vars(other).pop("step_params", None)  # those of before, if there are any
        other.params = shard_params(params, abstract_params(self.module), self.mesh)
        other.adapter = said
        other._check_rows()
        return other

    def _check_rows(self) -> None:
        """Warns where the rows are not those that the adapter learnt to read."""
        learnt = self.adapter and self.adapter.rows
        if learnt and not same_rows(learnt, identity(self.rows)):
            logger.warning("the adapter learnt to read rows of %s, not of %s", learnt, self.rows)

    def merge(
        self,
        sequences: Sequence[BaseTokens],
        budget: Budget,
        boundary: Boundary = Boundary.PRETOKEN,
        per_sample: bool = False,
    ) -> DynamicBatch:
        """Merges a batch, but for what :meth:`readable` leaves as it is.

        Raises:
            DyntokError: merged tokens are possible, and the rows are base rows.
        """
        if self.rows == "base" and budget.reduction != 0 and budget.merges != 0:
            raise DyntokError(
                "base rows exist for unmerged tokens only: valid with them is a reduction of 0"
            )
        rule = self._punctuation_rule if boundary is Boundary.WORD_HYPHEN else None
        sequences = self.readable(sequences, boundary)
        return merge(sequences, budget, rule=rule, per_sample=per_sample)

    def readable(
        self, sequences: Sequence[BaseTokens], boundary: Boundary = Boundary.PRETOKEN
    ) -> list[BaseTokens]:
        """The same, with words cut up that have more base tokens than the rows are made of."""
        return whole_words(sequences, self.cache.longest, boundary)

    def batch(self, sequences: Sequence[Sequence[Token]]) -> Batch:
        """Pads sequences on the side that this kind of model wants.

        The number of sequences is rounded up too, to a power of two that the mesh divides.
        """
        side = "left" if self.kind == "decoder" else "right"
        return make_batch(sequences, side, self.batch_rows(len(sequences)), self.max_length)

    def batch_rows(self, count: int) -> int:
        """How many sequences a batch of so many has, with empty ones."""
        parts = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        rows = 1 << (count - 1).bit_length()
        return -(-rows // parts) * parts

    def table(self, batch: Batch, size: int | None = None) -> jax.Array:
        """(U, D) float32 rows of a batch's unique tokens; U is ``size`` or the batch's bucket."""
        slots = self.cache.lookup(batch.tokens)
        return _take(self.cache.tables.input, batch.table_ids(slots, size))

    def forward(self, batch: Batch, method: Callable[..., Any], *inputs: Any) -> Any:
        """Runs the network on a batch; ``method`` is as in ``sharding.forward``."""
        return forward(
            self.module,
            self.params,
            self.table(batch),
            jnp.asarray(batch.ids),
            jnp.asarray(batch.mask),
            *inputs,
            mesh=self.mesh,
            method=method,
        )

    def outputs(
        self,
        sequences: Sequence[Sequence[Token]],
        method: Callable[..., Any],
        batch_size: int,
        weights: Sequence[np.ndarray] | None = None,
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Runs the network on sequences, in batches of similar length.

        Args:
            sequences: of dynamic tokens.
            method: as in ``sharding.forward``.
            batch_size: most sequences in a batch.
            weights: a number for each token, which the method gets after the mask as (B, T)
                float32, 0 at padding.

        Yields:
            Which sequences a batch held, and the network's output of each.
        """
        under_way: deque[tuple[list[int], jax.Array]] = deque()
        for place in by_length([len(tokens) for tokens in sequences], batch_size):
            batch = self.batch([sequences[i] for i in place])
            inputs = [] if weights is None else [batch.spread([weights[i] for i in place])]
            under_way.append((place, self.forward(batch, method, *inputs)))
            # The next batch is prepared while one runs; more would fill the memory.
            if len(under_way) > 1:
                yield _fetched(*under_way.popleft())
        while under_way:
            yield _fetched(*under_way.popleft())

    @cached_property
    def output_rows(self) -> jax.Array:
        """(V, D) float32 the model's own output rows, split over the mesh by vocabulary."""
        own = self.source.input if self.source.output is None else self.source.output
        return placed_rows(np.asarray(own, np.float32), self.mesh)

    @cached_property
    def input_rows(self) -> jax.Array:
        """(V, D) float32 the model's own input rows, as the output rows."""
        if self.source.output is None:
            return self.output_rows
        return placed_rows(np.asarray(self.source.input, np.float32), self.mesh)

    @property
    def step_module(self) -> UnrolledDecoder:
        """A decoder's network over a cache."""
        module = self.module
        assert isinstance(module, Decoder)  # who asks has seen to it
        return UnrolledDecoder(module.config, module.dtype)

    @cached_property
    def step_params(self) -> Any:
        """A decoder's parameters once more, as :attr:`step_module` has them."""
        return step_layout(self.step_module, self.mesh)(self.params)

    @cached_property
    def _punctuation_rule(self) -> PunctuationRule:
        return PunctuationRule(self.tokenizer.vocabulary())


def step_layout(module: UnrolledDecoder, mesh: Mesh) -> Any:
    """The program that lays a decoder's parameters out for its steps, each where it belongs."""

    def run(params: Any) -> Any:
        return unrolled(params, module.config, module.dtype)

    return jax.jit(run, out_shardings=param_shardings(step_shapes(module), mesh))


def load(
    name: str,
    rows: str = "default",
    compute: ComputeConfig | None = None,
    language: int | None = None,
    base_rows: BaseRowsRule | None = None,
    cache_rows: int = CACHE_ROWS,
    adapter: str | None = None,
) -> DynamicModel:
    """Loads a model by name or folder, fetching it if need be.

    Args:
        name: see ``model_store``.
        rows: see ``embed.providers.row_provider``.
        compute: dtype, mesh and the like.
        language: row of the hypernetwork's language table.
        base_rows: see ``embed.providers.row_provider``.
        cache_rows: capacity of the cache of rows on the device; a larger batch makes it grow.
        adapter: see ``DynamicModel.with_adapter``; by default none.

    Raises:
        DyntokError: unknown names, a model that cannot be loaded, rows that do not fit it, a mesh
            that cuts heads in parts.
    """
    compute = compute or ComputeConfig()
    folder = resolve(name)
    tokenizer = BaseTokenizer.from_folder(folder)
    loaded = load_model(folder)
    mesh = make_mesh(compute.mesh)
    _check_heads(loaded.config, mesh)
    source = SourceEmbeddings(*loaded.source, folder=folder)
    if tokenizer.vocab_size > len(source.input):
        raise DyntokError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model {len(source.input)}"
            " rows: they do not belong together"
        )
    rows, provider = _provider(rows, source, tokenizer, language, base_rows, mesh)
    module = model_module(loaded.architecture, jnp.dtype(compute.dtype), compute.remat)
    said = None
    if adapter is not None:
        found, said = _read_adapter(adapter, loaded, loaded.architecture, tokenizer)
        loaded = loaded._replace(params=merged(loaded.params, found.lora, found.config))
    model = DynamicModel(
        name,
        loaded.kind,
        tokenizer,
        rows,
        module,
        shard_params(loaded.params, abstract_params(module), mesh),
        source,
        RowCache(provider, cache_rows),
        mesh,
        loaded.architecture,
        _end_ids(folder, tokenizer) if loaded.kind == "decoder" else (),
    )
    model.adapter = said
    model._check_rows()
    return model


def _read_adapter(
    name: str, base: Base, architecture: Architecture, tokenizer: BaseTokenizer
) -> tuple[Adapter, MergedAdapter]:
    """An adapter without a head, checked against its base, and what is known of it then."""
    folder = Path(name)
    if name == "default":
        shipped = shipped_adapter(SourceEmbeddings(base.source.input), tokenizer)
        if shipped is None:
            raise DyntokError(
                "no adapter ships for this model; valid is the folder of one, from train.reading"
            )
        folder = shipped
    found = read_adapter(folder, architecture)
    if found.kind is not None:
        raise DyntokError(
            f"{folder}: is for a task ({found.task.get('task', found.kind)}); valid is one "
            "that reads dynamic tokens, from train.reading"
        )
    try:
        check_base(base, found)
    except DyntokError as error:
        if name != "default":
            raise DyntokError(f"{folder}: {error}") from error
        # By its rows the model is the one that it ships for, so that this is another copy of it.
        logger.warning("%s: learnt on another copy of this model, such as a quantized one", folder)
    with (folder / WEIGHTS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return found, MergedAdapter(name, digest, found.task.get("row_provider"))


def placed_rows(rows: Float[np.ndarray, "V D"], mesh: Mesh) -> jax.Array:
    """Rows of a whole vocabulary on the mesh, split by vocabulary where that goes."""
    splits = len(rows) % mesh.shape["model"] == 0
    sharding = NamedSharding(mesh, PartitionSpec("model" if splits else None))
    return jax.device_put(rows, sharding)


def _provider(
    rows: str,
    source: SourceEmbeddings,
    tokenizer: BaseTokenizer,
    language: int | None,
    base_rows: BaseRowsRule | None,
    mesh: Mesh,
) -> tuple[str, RowProvider]:
    """The provider of some rows, and their name with ``default`` resolved."""

    def tables(separate: bool) -> SourceEmbeddings:
        # Of a model with separate output rows only a hypernetwork that reads them needs both.
        return source if separate else replace(source, output=None, bias=None)

    name = default_rows(tables, tokenizer) if rows == "default" else rows
    return name, row_provider(name, tables, tokenizer, language, base_rows, mesh)


def _end_ids(folder: Path, tokenizer: BaseTokenizer) -> tuple[int, ...]:
    closing = () if tokenizer.closing_id is None else (tokenizer.closing_id,)
    return read_end_ids(folder) or closing


def _check_heads(config: EncoderConfig | DecoderConfig, mesh: Mesh) -> None:
    heads = config.kv_heads if isinstance(config, DecoderConfig) else config.heads
    parts = mesh.shape["model"]
    if heads % parts:
        raise DyntokError(
            f"mesh axis model of {parts} would cut heads in parts: the model has {heads} "
            "(key/value) heads; choose a divisor of that"
        )


def _fetched(place: list[int], output: jax.Array) -> tuple[list[int], np.ndarray]:
    return place, jax.device_get(output)[: len(place)]


@jax.jit
def _take(table: jax.Array, ids: jax.Array) -> jax.Array:
    return table[ids]
