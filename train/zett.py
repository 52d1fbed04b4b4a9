"""ZeTT's training of a hypernetwork: own rows first, then texts under other tokenizers.

Minixhofer et al., 2024 (arXiv 2405.07883), section 3 and appendix A. The hypernetwork predicts the
rows of a vocabulary it never saw, and the frozen model, run on them, says how good they are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dyntok_jax.config import ComputeConfig
from dyntok_jax.embed.hypernet import Hypernet, HypernetConfig, abstract_hypernet
from dyntok_jax.lora import frozen_hash, params_digest
from dyntok_jax.models.heads import logits
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.weights import LoadedModel, head_module, model_module
from dyntok_jax.sharding import apply, batch_part, make_mesh, replicated, shard_params
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import Rows
from train.data import DataConfig
from train.feed import put
from train.task import Loaded
from train.zett_batches import (
    NO_LABEL,
    IdentityBatch,
    LanguageBatch,
    LanguagePreparation,
    identity_batch,
    language_batches,
)
from train.zett_config import ZettConfig, check, mask_id
from train.zett_hypernet import (
    examples,
    first_parameters,
    hypernet_tokenizer,
    predict,
    split_rescalers,
)
from train.zett_losses import identity_loss, label_loss, overlap_loss, with_own_rows
from train.zett_targets import named, short_names, target_batches


class ZettTask:
    """ZeTT's objective for one model (a ``train.task.Task``).

    In a run of several processes all read the same texts, since all must sample the same
    tokenizers, and each hands its part of every batch to its devices.

    Attributes:
        config: the objective.
        hypernet_config: shape of the hypernetwork.
        languages: names of the rows of the language table, in order; empty without one.
        evaluated: what evaluations read.
        mesh: devices of the run.
        frozen: the model's rows, the rescalers and, unless it is trained, the model.
    """

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: BaseTokenizer,
        hypernet: HypernetConfig,
        config: ZettConfig,
        data: DataConfig,
        compute: ComputeConfig | None = None,
        seed: int = 0,
        held_out: DataConfig | None = None,
        start: Any = None,
        languages: Sequence[str] = (),
    ):
        """Put the model on the devices.

        Args:
            model: the base model; an encoder needs a masked-language-modelling head.
            tokenizer: its own.
            hypernet: shape, from ``hypernet.zett_hypernet_config``.
            config: the objective.
            data: texts; with a table of languages, batches of one each.
            compute: mesh, dtype of matrix products and remat.
            seed: of the hypernetwork's first parameters and of all batches.
            held_out: texts of evaluations.
            start: parameters of a hypernetwork to start from; by default random ones.
            languages: names of the rows of its language table, of which ``data`` need not have all.

        Raises:
            DyntokError: a model that this objective cannot use, sizes that do not fit it or the
                mesh, batches of mixed languages, held-out texts or targets that cannot be had.
        """
        compute = compute or ComputeConfig()
        if not config.language_table and start is None:
            hypernet = dataclasses.replace(hypernet, languages=0)
        self.config, self.hypernet_config, self.mesh = config, hypernet, make_mesh(compute.mesh)
        self._data, self._seed = data, seed
        self.evaluated = {
            "held_out": held_out and held_out.drawn,
            "batches": config.evaluation_batches,
            "targets": config.targets,
        }
        self._base, self._tokenizer, self._dtype = model, tokenizer, compute.dtype
        names = list(languages) or sorted({source.language for source in data.sources})
        self.languages = names if hypernet.languages else []
        check(config, hypernet, model, tokenizer, data, held_out, self.languages, self._parts)
        # Made before anything is trained, which an error at the first evaluation would cost.
        self._held_out = self._held_out_batches(held_out)
        self._targets = self._target_batches(held_out)
        dtype = jnp.dtype(compute.dtype)
        self._hypernet = Hypernet(hypernet, dtype, compute.remat)
        self._module = model_module(model.architecture, dtype, compute.remat)
        self._head = None if config.identity_only else head_module(model.architecture, dtype)
        source = self._source()
        if start is None:
            first = first_parameters(self._hypernet, source["source"], self.mesh, seed)
        else:
            first = split_rescalers(shard_params(start, abstract_hypernet(hypernet), self.mesh))
        # Rescalers, which never change, come from the start as well, and are in no checkpoint.
        self._start = None if start is None else params_digest(start).hexdigest()
        backbone = self._backbone()
        self.frozen = {"rescalers": first.rescalers, **source}
        self._first = {"hypernet": first.trained}
        (self._first if config.train_backbone else self.frozen).update(backbone)
        if config.overlap_with == "start":
            self.frozen["first_rows"] = self._first_rows()

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON values that must be equal when a run is resumed."""
        loss = dataclasses.asdict(self.config)
        for name in ("targets", "evaluation_batches"):
            del loss[name]  # they change no parameter
        return {
            "objective": "zett",
            "zett": loss,
            "hypernet": dataclasses.asdict(self.hypernet_config),
            # Of the data the warm-up by itself takes the languages only.
            "data": [*self.languages] if self.config.identity_only else self._data.drawn,
            "seed": self._seed,
            "dtype": self._dtype,
            "model": self._base.hf_config,
            "base": frozen_hash(self._base),
            "start": self._start,
        }

    def init(self, key: PRNGKeyArray) -> Any:
        """Trainable parameters at step 0.

        Args:
            key: not read: the rescalers, which never change, belong to the parameters that the
                seed of the task gives.
        """
        del key
        return self._first

    @property
    def beginnings(self) -> Sequence[Any]:
        """Identity batches come first, if there are any, then those of texts."""
        count = self.config.identity_steps
        if self.config.identity_only:
            return (None,)
        texts = {"identity": count, "language": None}
        return (None, texts) if count else (texts,)

    def shardings(self) -> Any:
        """Sharding of every trainable parameter."""
        return jax.tree.map(lambda leaf: leaf.sharding, self._first)

    def loss(
        self, trainables: Any, frozen: Any, batch: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
        """Loss of an ``IdentityBatch`` or a ``LanguageBatch``, and its parts."""
        del key  # nothing is drawn here
        if isinstance(batch, IdentityBatch):
            ids, real = jnp.maximum(batch.ids, 0), batch.ids != NO_LABEL
            predicted = self.predict(trainables, frozen, ids[:, None], batch.language)
            loss = identity_loss(predicted, self._own(frozen, ids), real)
            return loss, {"identity_loss": loss}
        rows, own = self.rows(trainables, frozen, batch)
        language = self._language_loss(trainables, frozen, batch, rows)
        if self.config.overlap_with == "start":
            kept, wanted = batch.real & (batch.own == NO_LABEL), frozen["first_rows"]
        else:
            kept, wanted = batch.shared != NO_LABEL, own
        overlap = overlap_loss(rows, wanted, kept, batch.real)
        parts = {"language_loss": language, "overlap_loss": overlap, "overlap": kept.mean()}
        return language + self.config.overlap_weight * overlap, parts

    def _language_loss(
        self, trainables: Any, frozen: Any, batch: Any, rows: Rows
    ) -> Float[Array, ""]:
        scores = self.scores(trainables, frozen, rows, batch.ids, batch.mask)
        return label_loss(scores, batch.labels, batch.real)

    def rows(self, trainables: Any, frozen: Any, batch: LanguageBatch) -> tuple[Rows, Rows]:
        """Rows of the U tokens of a batch, and the model's own of their first pieces."""
        predicted = self.predict(trainables, frozen, batch.forms, batch.language)
        is_special = batch.own != NO_LABEL
        # The hypernetwork has ids beyond the model's.
        pieces = jnp.minimum(batch.forms[:, 0], self.hypernet_config.vocab_size - 1)
        own = self._own(frozen, jnp.where(is_special, batch.own, pieces))
        return with_own_rows(predicted, own, is_special), own

    def predict(
        self,
        trainables: Any,
        frozen: Any,
        forms: Any,
        language: Any,
    ) -> Rows:
        """What the hypernetwork makes of (U, S) surface forms."""
        params = trainables["hypernet"] | frozen["rescalers"]
        source = frozen["source"]
        return predict(self._hypernet, params, source, forms, language, self.mesh)

    def hypernet_params(self, trainables: Any) -> dict[str, Any]:
        """All parameters of the hypernetwork, as ``embed.zett.save_hypernet`` takes them."""
        return trainables["hypernet"] | self.frozen["rescalers"]

    def trained_model(self, trainables: Any) -> LoadedModel | None:
        """The model as it was trained beside the hypernetwork; None where it was frozen."""
        if not self.config.train_backbone:
            return None
        return self._base._replace(params=trainables["model"], head_params=trainables.get("head"))

    def scores(
        self,
        trainables: Any,
        frozen: Any,
        rows: Rows,
        ids: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B T U"]:
        """Scores of the tokens with these rows, by the model on sequences of them."""
        params = trainables if self.config.train_backbone else frozen
        given, output, bias = jax.tree.map(jnp.asarray, rows)
        hidden = apply(self._module, params["model"], given, ids, mask, mesh=self.mesh)
        output = given if output is None else output
        if self._head is None:
            return logits(hidden, output, bias)
        return self._head.apply({"params": params["head"]}, hidden, output, bias)  # pyright: ignore

    def batches(self, position: Any) -> Iterator[Loaded]:
        """Identity batches, then language batches, from a position on.

        Raises:
            DyntokError: what is wrong with the texts; at once, as far as opening them shows it.
        """
        if self.config.identity_only:
            return self._batches(position, iter(()))
        begin = position["language"] if position else None
        texts = language_batches(self._data, self._preparation, seed=self._seed, position=begin)
        return self._batches(position, texts)

    def _batches(self, position: Any, texts: Iterator[Loaded]) -> Iterator[Loaded]:
        start = position["identity"] if position else 0
        steps: Any = range(start, self.config.identity_steps)
        for step in itertools.count(start) if self.config.identity_only else steps:
            sizes = self.hypernet_config.vocab_size, self.config.identity_rows, self._parts
            batch = identity_batch(*sizes, self._seed, step)
            yield Loaded(self._part(batch), 0, {"identity": step + 1, "language": None})
        for loaded in texts:
            place = {"identity": self.config.identity_steps, "language": loaded.position}
            count = batch_part(self.mesh).count
            tokens, dropped = loaded.tokens // count, loaded.dropped // count
            yield Loaded(self._part(loaded.batch), tokens, place, dropped)

    @property
    def agree(self) -> None:
        """All processes make the same batches."""
        return None

    def evaluate(self, trainables: Any) -> dict[str, float]:
        """Median cosine of predicted rows to own ones, and losses on held-out text."""
        ids = examples(self.hypernet_config)
        language = np.zeros((), np.int32)
        predicted = self._jitted_predict(trainables, self.frozen, ids[:, None], language)
        own = jax.tree.map(np.asarray, self._own(self.frozen, ids))
        figures = {"identity_cosine": _median_cosine(predicted.input, own.input)}
        if own.output is not None:
            figures["identity_cosine_output"] = _median_cosine(predicted.output, own.output)
        key = jax.random.key(0)
        parts = [
            self._jitted_loss(trainables, self.frozen, put(batch, self.mesh), key)[1]
            for batch in self._held_out
        ]
        for name in parts[0] if parts else ():
            figures[name] = float(np.mean([part[name] for part in parts]))
        for target, batches in self._targets.items():
            placed = (put(batch, self.mesh) for batch in batches)
            losses = [self._jitted_target_loss(trainables, self.frozen, b) for b in placed]
            figures[f"language_loss_{target}"] = float(np.mean(losses))
        return figures

    @cached_property
    def _jitted_predict(self) -> Any:
        # Whole everywhere: of several processes each reads all rows.
        return jax.jit(self.predict, out_shardings=replicated(self.mesh))

    @cached_property
    def _jitted_loss(self) -> Any:
        return jax.jit(self.loss)

    @cached_property
    def _jitted_target_loss(self) -> Any:
        def loss(trainables: Any, frozen: Any, batch: Any) -> Float[Array, ""]:
            rows = self.rows(trainables, frozen, batch)[0]
            return self._language_loss(trainables, frozen, batch, rows)

        return jax.jit(loss)

    def _first_rows(self) -> Rows:
        """What the hypernetwork makes of the fixed tokenizer's tokens before it is trained."""
        row = self.languages.index(self._data.sources[0].language) if self.languages else 0
        language = np.array(row, np.int32)
        forms = self._preparation.fixed.arrays[0]
        return self._jitted_predict(self._first, self.frozen, forms, language)._replace(bias=None)

    def _held_out_batches(self, held_out: DataConfig | None) -> list[LanguageBatch]:
        if held_out is None:
            return []
        data = dataclasses.replace(held_out, workers=0)
        stream = language_batches(data, self._preparation, seed=self._seed)
        batches = itertools.islice(stream, self.config.evaluation_batches)
        return [self._part(loaded.batch) for loaded in batches]

    def _target_batches(self, held_out: DataConfig | None) -> dict[str, list[LanguageBatch]]:
        c, prepare = self.config, self._preparation
        if held_out is None or not c.targets:
            return {}
        names, count, seed = short_names(c.targets), c.evaluation_batches, self._seed
        found = target_batches(c.targets, self._tokenizer, prepare, held_out, count, seed)
        return {names[key]: [self._part(batch) for batch in made] for key, made in found.items()}

    @cached_property
    def _preparation(self) -> LanguagePreparation:
        tokenizer, is_encoder = self._tokenizer, self._base.kind == "encoder"
        fixed, masking = self.config.tokenizer, mask_id(tokenizer) if is_encoder else None
        ends = [i for i in (tokenizer.opening_id, tokenizer.closing_id) if i is not None]
        return LanguagePreparation(
            hypernet_tokenizer(tokenizer)[0],
            tokenizer.special_ids,
            ends[:1] if is_encoder else tokenizer.prompt_ids,
            ends[1:] if is_encoder else [],
            tokenizer.closing_id,
            masking,
            self.hypernet_config.vocab_size,
            self.hypernet_config.pad_id,
            self.hypernet_config.surface_length,
            self.config.sequences,
            self.config.length,
            self.languages,
            self.config.sampler,
            None if fixed is None else named(fixed, tokenizer, masking),
            self.config.packed,
        )

    def _source(self) -> dict[str, Any]:
        """The model's rows on every device: input and output side by side, and the bias."""
        rows, count = self._base.source, self.hypernet_config.vocab_size
        tables = [table for table in (rows.input, rows.output) if table is not None]
        source = np.concatenate([np.asarray(t[:count], np.float32) for t in tables], axis=1)
        arrays = {"source": source}
        if rows.bias is not None:
            arrays["bias"] = np.asarray(rows.bias[:count], np.float32)
        return jax.device_put(arrays, replicated(self.mesh))

    def _backbone(self) -> dict[str, Any]:
        """The model and its head, on the devices."""
        if self.config.identity_only:
            return {}
        abstract = abstract_params(self._module)
        placed = {"model": shard_params(self._base.params, abstract, self.mesh)}
        if self._head is not None:
            hidden = jnp.zeros((1, 1, self.hypernet_config.width))
            abstract = abstract_params(self._head, hidden, hidden[0])
            placed["head"] = shard_params(self._base.head_params, abstract, self.mesh)
        return placed

    def _own(self, frozen: Any, ids: Any) -> Rows:
        taken, width = frozen["source"][ids], self.hypernet_config.width
        output = taken[:, width:] if self.hypernet_config.separate_output else None
        bias = frozen["bias"][ids] if "bias" in frozen else None
        return Rows(taken[:, :width], output, bias)

    @property
    def _parts(self) -> int:
        """Devices over which a batch is cut."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def _part(self, batch: Any) -> Any:
        """This process's part of what all processes made alike."""
        part = batch_part(self.mesh)
        if part.count == 1:
            return batch
        return jax.tree.map(lambda x: part.of(x) if x.ndim else x, batch)


def _median_cosine(a: Any, b: Any) -> float:
    a, b = np.asarray(a), np.asarray(b)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.median((a * b).sum(1) / np.maximum(lengths, 1e-12)))
