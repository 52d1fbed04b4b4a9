"""Distillation: the model on dynamic tokens learns to agree with itself on base tokens.

Teacher is the frozen model on base tokens, student the same model on the merged sequence, where the
hypernetwork gives the merged tokens' rows; vocabulary tokens keep their own. Nothing but the
hypernetwork is trained here; ``train.reading`` trains additions to the student instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dyntok_jax.config import ComputeConfig
from dyntok_jax.embed.hypernet import Hypernet, HypernetConfig, abstract_hypernet
from dyntok_jax.embed.piece_states import PieceReader, piece_reader, piece_states
from dyntok_jax.encoding import mean_over
from dyntok_jax.lora import frozen_hash, params_digest
from dyntok_jax.models.heads import logits
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.weights import LoadedModel, first_layers, model_module
from dyntok_jax.sharding import apply, batch_part, make_mesh, replicated, shard_params
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import DyntokError, Rows
from train.data import DataConfig, batches
from train.distill_config import DistillConfig
from train.distill_losses import (
    cosine_distance,
    mean,
    relative_error,
    scored_positions,
    shortfall,
    span_means,
)
from train.held_out import HeldOut
from train.preparation import ROW_BUCKETS, Preparation
from train.task import Loaded, NoBatchError
from train.zett_hypernet import first_parameters, split_rescalers

LOGIT_LOSSES = ("divergence", "output")
"""Losses of next tokens, which decoders have."""

DEVIATION = 1.0
"""Standard deviation that the rows of pieces are scaled to, and of the first position table: that
of what LayerNorm gives."""


class States(NamedTuple):
    """Hidden states of both, aligned.

    Attributes:
        student: (B, T', D) float32.
        teacher: (B, T', D) float32, over the same bytes as the student's positions.
        pooled: (B, D) float32, the teacher's mean over all its positions; zeros for decoders.
    """

    student: Float[Array, "B T D"]
    teacher: Float[Array, "B T D"]
    pooled: Float[Array, "B D"]


class Distillation:
    """The task of ``train.loop`` for a hypernetwork of one model."""

    def __init__(
        self,
        model: LoadedModel,
        hypernet: HypernetConfig,
        config: DistillConfig,
        data: DataConfig,
        preparation: Preparation,
        compute: ComputeConfig,
        seed: int,
        held_out: HeldOut | None = None,
        start: Any = None,
    ):
        """Puts the frozen model on the mesh.

        Args:
            model: teacher and student.
            hypernet: shape of what is trained.
            config: loss.
            data: texts.
            preparation: texts to batches, in worker processes.
            compute: mesh, dtype of matrix products and remat.
            seed: of the order of the texts and of the merge rates.
            held_out: text on which the losses are evaluated.
            start: parameters to start from; by default the hypernetwork starts at FVT rows.

        Raises:
            DyntokError: sequences that the mesh does not divide; losses that the model or the
                layers do not have.
        """
        _check(model, hypernet, config)
        self.mesh = mesh = make_mesh(compute.mesh)
        devices = mesh.shape["data"] * mesh.shape["fsdp"]
        if config.sequences % devices:
            raise DyntokError(
                f"distill.sequences: {config.sequences} do not split over data×fsdp = {devices} "
                "devices"
            )
        self._part = batch_part(mesh)
        self._part.places(ROW_BUCKETS[0])  # refuses devices that rows do not split over
        self.config, self.hypernet_config = config, hypernet
        self.reader: PieceReader | None = None
        self.data, self.preparation, self.seed = data, preparation, seed
        self.held_out = held_out
        self.is_encoder = model.kind == "encoder"
        # Rescalers, which never change, come from the start as well, and are in no checkpoint.
        first = None if start is None else params_digest(start).hexdigest()
        self._origin = {"model": model.hf_config, "base": frozen_hash(model), "start": first}
        dtype = jnp.dtype(compute.dtype)
        student = model if config.layers is None else first_layers(model, config.layers)
        self.network = model_module(student.architecture, dtype, compute.remat)
        self.whole = model_module(model.architecture, dtype)
        self.hypernet = Hypernet(hypernet, dtype, compute.remat)
        params = shard_params(student.params, abstract_params(self.network), mesh)
        rows = model.source
        if hypernet.separate_output and rows.output is None:
            rows = rows._replace(output=rows.input)
        rows = jax.tree.map(lambda table: np.asarray(table, np.float32), rows)
        source = jax.device_put(rows, replicated(mesh))
        # Joined once: in a step that would be a copy of the whole table.
        table = source_table(source)
        self._first = (
            first_parameters(self.hypernet, table, mesh, seed, DEVIATION)
            if start is None
            else split_rescalers(shard_params(start, abstract_hypernet(hypernet), mesh))
        )
        rescalers = self._first.rescalers
        self.frozen = {"model": params, "source": source, "table": table, "rescalers": rescalers}
        if hypernet.model_layers:
            tokenizer = BaseTokenizer.from_folder(preparation.tokenizer)
            self.reader = reader = piece_reader(model, hypernet.model_layers, tokenizer)
            abstract = abstract_params(reader.module)
            self.frozen["reader"] = shard_params(reader.params, abstract, mesh)
        if config.layers and config.output:
            abstract = abstract_params(self.whole)
            self.frozen["whole"] = shard_params(model.params, abstract, mesh)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What must stay equal when a run goes on."""
        settings = {
            "objective": "distill",
            "hypernet": asdict(self.hypernet_config),
            "distill": asdict(self.config),
            "data": self.data.drawn,
            "seed": self.seed,
            "dtype": jnp.dtype(self.hypernet.dtype).name,
        }
        return settings | self._origin

    @property
    def evaluated(self) -> Mapping[str, Any]:
        """Held-out texts and batches."""
        return {} if self.held_out is None else self.held_out.drawn

    @property
    def beginnings(self) -> Sequence[Any]:
        """There is one kind of batches."""
        return (None,)

    def shardings(self) -> Any:
        """Sharding of the trained parameters."""
        return jax.tree.map(lambda leaf: leaf.sharding, self._first.trained)

    def init(self, key: PRNGKeyArray) -> Any:
        """Trained parameters at step 0.

        Args:
            key: not read: the seed of the task has given them, and rescalers to match.
        """
        del key
        return self._first.trained

    def hypernet_params(self, trainables: Any) -> Any:
        """All parameters of the hypernetwork, as ``embed.zett.save_hypernet`` takes them."""
        return trainables | self.frozen["rescalers"]

    def batches(self, position: Any) -> Iterator[Loaded]:
        """Merged texts, endless; of several processes each reads and merges its own."""
        return batches(
            replace(self.data, texts=-(-self.data.texts // self._part.count)),
            replace(
                self.preparation,
                sequences=self.config.sequences // self._part.count,
                part=self._part.index,
            ),
            seed=self.seed,
            position=position,
            process_index=self._part.index,
            process_count=self._part.count,
        )

    @property
    def agree(self) -> Callable[[Any], Any] | None:
        """Gives each part the sizes of the largest."""
        return self._agreed if self._part.count > 1 else None

    def _agreed(self, batch: Any) -> Any:
        failed = (-1, -1, -1)
        sizes = multihost_utils.process_allgather(
            np.array(failed if batch is None else batch.sizes)
        )
        if batch is None:
            return None
        if sizes.min() < 0:
            raise NoBatchError("the input of another process failed; its own message says why")
        return self.preparation.as_part(batch, sizes.max(0).tolist(), self._part)

    def loss(
        self, trainables: Any, frozen: Any, batch: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
        """Weighted sum of the losses that are on, for a ``DistillBatch``."""
        c = self.config
        hypernet, lora = self.split(trainables, frozen)
        predicted = self.predicted(hypernet, frozen, batch)
        states = self.states(predicted, frozen, batch, lora)
        mask = batch.mask
        parts = {"hidden": relative_error(states.student, states.teacher, mask)}
        if self.is_encoder:
            # Over base tokens, as ``encoding.mean_pooled`` takes it.
            counts = jnp.where(mask, jnp.diff(batch.last, axis=1, prepend=-1), 0)
            pooled = mean_over(states.student, counts)
            parts["pooled"] = cosine_distance(pooled, states.pooled, mask)
            parts["shortfall"] = shortfall(pooled, states.pooled, mask)
        elif c.divergence or c.output:
            positions = scored_positions(mask, key, c.scored)
            parts |= self._next_tokens(states, predicted, frozen, batch, positions)
        total = sum((getattr(c, name) * value for name, value in parts.items()), jnp.zeros(()))
        return total, parts

    def split(self, trainables: Any, frozen: Any) -> tuple[Any, Any]:
        """Trained parameters of the hypernetwork, and what the student has beside the teacher's.

        The latter are low-rank additions, as ``sharding.apply`` takes them, or None.
        """
        del frozen
        return trainables, None

    def predicted(self, hypernet: Any, frozen: Any, batch: Any) -> Rows:
        """(M + N, D) rows of the batch's merged tokens, the short ones first."""
        params, source = hypernet | frozen["rescalers"], frozen["table"]

        def rows(forms: Any) -> Rows:
            mask = forms != self.hypernet_config.pad_id
            inputs: Any = (source, forms, mask, None, self._piece_states(frozen, forms, mask))
            method = Hypernet.__call__
            return apply(self.hypernet, params, *inputs, mesh=self.mesh, method=method)

        # Most are short, and padded to S pieces they would cost as much as long ones.
        return jax.tree.map(
            lambda *parts: jnp.concatenate(parts), rows(batch.short), rows(batch.long)
        )

    def _piece_states(self, frozen: Any, forms: Any, mask: Any) -> Any:
        if self.reader is None:
            return None
        ends = (np.array(ids, np.int32) for ids in (self.reader.opening, self.reader.closing))
        inputs = frozen["source"].input, forms, mask, *ends
        read = apply(
            self.reader.module, frozen["reader"], *inputs, mesh=self.mesh, method=piece_states
        )
        return jax.lax.stop_gradient(read)

    def states(self, predicted: Any, frozen: Any, batch: Any, lora: Any = None) -> States:
        """Runs teacher and student and aligns them; ``lora`` is the student's, as in ``split``."""
        source = frozen["source"].input
        rows = jnp.concatenate([source[batch.own], predicted.input])
        inputs = (rows, batch.ids, batch.mask)
        student = apply(self.network, frozen["model"], *inputs, mesh=self.mesh, lora=lora)
        student = student.astype(jnp.float32)
        teacher = self._teacher(self.network, frozen["model"], source, batch)
        if self.is_encoder:
            aligned = span_means(teacher, batch.owner, batch.mask.shape[1])
            return States(student, aligned, mean_over(teacher, batch.base_mask))
        aligned = jnp.take_along_axis(teacher, batch.last[..., None], axis=1)
        return States(student, aligned, jnp.zeros_like(teacher[:, 0]))

    def _teacher(
        self, module: nn.Module, params: Any, source: Array, batch: Any
    ) -> Float[Array, "B T D"]:
        states = apply(module, params, source, batch.base_ids, batch.base_mask, mesh=self.mesh)
        return jax.lax.stop_gradient(states.astype(jnp.float32))

    def _next_tokens(
        self,
        states: States,
        predicted: Any,
        frozen: Any,
        batch: Any,
        positions: tuple[Int[Array, " P"], Int[Array, " P"]],
    ) -> dict[str, jax.Array]:
        """Both losses on next tokens, at some positions."""
        row, place = positions
        source, last = frozen["source"], states.student
        if "whole" in frozen:
            teacher = self._teacher(self.whole, frozen["whole"], source.input, batch)
            last = jnp.take_along_axis(teacher, batch.last[..., None], axis=1)
        own = source.input if source.output is None else source.output
        merged = predicted.input if predicted.output is None else predicted.output
        student = logits(last[row, place], own)
        valid = batch.mask[row, place] & batch.mask[row, place + 1]
        beyond = logits(last[row, place], merged)
        beyond += jnp.concatenate([batch.short_shift, batch.long_shift])
        # What other processes merged is no choice here: the same token may be among it again.
        makers = jnp.concatenate([batch.short_maker, batch.long_maker])
        beyond = jnp.where(batch.maker[row][:, None] == makers, beyond, -jnp.inf)
        following = batch.ids[row, place + 1]
        is_own = following < len(batch.own)
        target = jnp.where(
            is_own,
            batch.own[jnp.minimum(following, len(batch.own) - 1)],
            len(own) + following - len(batch.own),
        )
        scores = jnp.concatenate([student, beyond], axis=-1)
        entropy = optax.softmax_cross_entropy_with_integer_labels(scores, target)
        # Behind a prompt, that the next word is in pieces says nothing about the vocabulary.
        found = {"output": mean(entropy, valid & (place + 1 < batch.prompt_length[row]))}
        if self.config.divergence:
            teacher = jax.nn.softmax(logits(states.teacher[row, place], own))
            divergence = optax.losses.kl_divergence(jax.nn.log_softmax(student), teacher)
            found["divergence"] = mean(divergence, valid)
        return found

    def evaluate(self, trainables: Any) -> dict[str, float]:
        """Parts of the loss on held-out text."""
        return self.held_out(self, trainables) if self.held_out else {}


def source_table(rows: Any) -> Float[Array, "V E"]:
    """The model's rows as the hypernetwork reads them: output rows beside input rows if it has."""
    if rows.output is None:
        return rows.input
    return jnp.concatenate([rows.input, rows.output], axis=1)


def _check(model: LoadedModel, hypernet: HypernetConfig, config: DistillConfig) -> None:
    if config.divergence and config.layers:
        raise DyntokError(
            "distill.divergence is of the model's last layer: leave distill.layers out"
        )
    of_vectors = ("pooled", "shortfall")
    losses = ("hidden", *(of_vectors if model.kind == "encoder" else LOGIT_LOSSES))
    if not any(getattr(config, name) for name in losses):
        names = ", ".join(f"distill.{name}" for name in losses)
        raise DyntokError(f"{names}: all have weight 0, so that nothing would be learned")
    if model.kind != "encoder":
        if config.prefix:
            raise DyntokError("distill.prefix: a decoder reads stretches of text without one")
        if config.shortfall:
            raise DyntokError("distill.shortfall: a decoder makes no vectors of texts")
        return
    if config.divergence or config.output:
        raise DyntokError(
            "distill.divergence and distill.output: an encoder predicts no next tokens"
        )
    if config.prompt_share != (1.0, 1.0):
        raise DyntokError("distill.prompt_share: an encoder reads no prompts")
    if hypernet.separate_output and model.source.output is None:
        raise DyntokError("hypernet.separate_output: an encoder predicts no next tokens")
