"""Task adapters: a frozen encoder reads dynamic tokens, low-rank additions and a head learn to."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from jaxtyping import Array, Float, PRNGKeyArray

from dyntok_jax.classification import classify
from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.embed.cache import RowCache
from dyntok_jax.embed.providers import identity
from dyntok_jax.files import folder_digest
from dyntok_jax.lora import Adapter, base_hash, numbered_labels, params_digest
from dyntok_jax.merging.batch import DynamicTokens
from dyntok_jax.merging.budget import Budget
from dyntok_jax.models.classifier import Classifier
from dyntok_jax.models.encoder import Encoder
from dyntok_jax.models.hf_config import Architecture
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.lora import abstract_lora, additions, init_lora, merged, targeted
from dyntok_jax.models.products import widened
from dyntok_jax.run_settings import plain_settings
from dyntok_jax.sharding import apply, param_shardings, shard_params
from dyntok_jax.tasks.registry import Task
from dyntok_jax.types import DyntokError, Token
from train.lora_config import LoraRun
from train.task import Loaded
from train.task_batches import TaskBatches
from train.task_examples import UNLABELLED, Examples, read_examples


class LoraTask:
    """The task of ``train.loop`` for an adapter and a head on one encoder.

    Attributes:
        batcher: makes the batches.
        base: hash of the frozen model.
    """

    def __init__(
        self,
        run: LoraRun,
        model: DynamicModel,
        architecture: Architecture,
        start: Adapter | None = None,
    ):
        """Reads the examples.

        Args:
            run: the config.
            model: the base with the run's rows, on the run's mesh.
            architecture: of the base.
            start: values to start from; by default the additions are 0 at first.

        Raises:
            DyntokError: a decoder, examples that cannot be read, patterns that reach nothing, a
                start of another shape, a mesh that does not divide the batch.
        """
        if not isinstance(model.module, Encoder):
            raise DyntokError(f"{model.name} is a decoder: {run.task} needs an encoder")
        parts = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
        if run.sequences % parts:
            raise DyntokError(
                f"sequences: {run.sequences} do not split over data×fsdp = {parts} devices"
            )
        self.run, self.model, self.mesh = run, model, model.mesh
        self.longest = min(run.max_length, model.max_length)
        examples = self._read(run.data, run)
        task = examples.task
        # Read now: a source that cannot be is better known before the first steps.
        self._held_out = {s.language: self._read([s], run) for s in run.held_out}
        self.base = base_hash(model)
        self.module = Classifier(
            model.module.config, task.kind, len(task.labels), model.module.dtype, run.compute.remat
        )
        paths = [*targeted(architecture, run.lora.targets).values()]
        abstract = abstract_params(self.module)
        self._abstract = {
            "lora": abstract_lora(abstract["model"], paths, run.lora.rank),
            "head": abstract["head"],
        }
        self._start = None if start is None else self._started(start, task)
        self._started_from = start and {"folder": str(run.start), **start.task}
        self.frozen = {"model": model.params}
        self.batcher = TaskBatches(
            model,
            examples,
            run.tokenization,
            run.sequences,
            self.longest,
            run.grouped,
            run.training.seed,
        )

    def _read(self, sources: Any, run: LoraRun) -> Examples:
        boundary = run.tokenization.boundary
        return read_examples(run.task, sources, self.model.tokenizer, boundary, self.longest)

    def _started(self, start: Adapter, task: Task) -> dict[str, Any]:
        # Adapters of others say neither their base nor their task, and number their labels.
        numbered = start.labels == numbered_labels(len(task.labels))
        said = {"base": start.base, "task": start.task.get("task"), "kind": start.kind}
        said |= {"labels": None if numbered else start.labels, "alpha": start.config.alpha}
        here = {"base": self.base, "task": task.name, "kind": task.kind}
        here |= {"labels": tuple(task.labels), "alpha": self.run.lora.alpha}
        odd = [name for name in said if said[name] not in (here[name], None)]
        if odd:
            faults = "; ".join(f"{name} {said[name]}, here {here[name]}" for name in odd)
            raise DyntokError(f"start {self.run.start}: {faults}")
        trees = {"lora": start.lora, "head": start.head}
        wanted = jax.tree.map(lambda leaf: leaf.shape, meta.unbox(self._abstract))
        found = jax.tree.map(np.shape, trees)
        if found != wanted:
            raise DyntokError(
                f"start {self.run.start}: not of the shape of lora and the task's head"
            )
        return trees

    @property
    def settings(self) -> Mapping[str, Any]:
        """What must stay equal when a run goes on."""
        names = ("task", "data", "rows", "base_rows", "language", "tokenization", "lora", "start")
        names += ("sequences", "max_length", "grouped")
        run = asdict(self.run)
        settings = {name: run[name] for name in names}
        settings |= {"base": self.base, "dtype": jnp.dtype(self.module.dtype).name}
        return settings | {"contents": self._contents}

    @property
    def evaluated(self) -> Mapping[str, Any]:
        """Held-out examples and reductions."""
        examples = {name: _digest(held.examples) for name, held in self._held_out.items()}
        return {"held_out": examples, "reductions": self.run.held_out_reductions}

    @cached_property
    def _contents(self) -> dict[str, str]:
        """Hashes of what the settings name by its place only."""
        found = {"data": _digest(self.batcher.examples.examples)}
        if Path(self.model.rows).is_dir():
            found["rows"] = folder_digest(Path(self.model.rows))
        if self._start is not None:
            found["start"] = params_digest(self._start).hexdigest()
        return found

    @property
    def steps(self) -> int:
        """Length of the run."""
        return self.run.epochs * self.batcher.per_epoch or self.run.training.steps

    @property
    def beginnings(self) -> Sequence[Any]:
        """Of the one kind of batches, a widest one: it needs the most memory."""
        return ({"batch": self.batcher.widest()},)

    def shardings(self) -> Any:
        """Sharding of every array of the adapter and the head."""
        return param_shardings(self._abstract, self.mesh)

    def init(self, key: PRNGKeyArray) -> Any:
        """Values at step 0; those of the additions make no difference yet."""
        if self._start is not None:
            return self._placed(self._start)
        first, second = jax.random.split(key)
        inputs = jnp.zeros((1, 1, self.module.config.width)), jnp.ones((1, 1), bool)
        # Within the program, so that no second encoder is ever made.
        head = jax.jit(lambda key: meta.unbox(self.module.init(key, *inputs))["params"]["head"])
        lora = init_lora(self._abstract["lora"], first)
        return self._placed({"lora": lora, "head": head(second)})

    def _placed(self, values: Any) -> Any:
        # In float64 steps of float32 values would be rounded all the same.
        values = jax.tree.map(lambda x: x.astype(widened(self.module.dtype)), values)
        return shard_params(values, self._abstract, self.mesh)

    def batches(self, position: Any) -> Iterator[Loaded]:
        """Merged examples, endless."""
        return self.batcher.batches(position)

    def loss(
        self, trainables: Any, frozen: Any, batch: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
        """Mean cross-entropy over all labels of a ``TaskBatch``; the share that is right."""
        scores = apply(
            self.module,
            {"model": frozen["model"], "head": trainables["head"]},
            batch.rows,
            batch.ids,
            batch.mask,
            mesh=self.mesh,
            lora={"model": additions(trainables["lora"], self.run.lora)},
            dropout=key if self.run.lora.dropout else None,
        )
        counts = batch.labels != UNLABELLED
        number = jnp.maximum(counts.sum(), 1)
        labels = jnp.where(counts, batch.labels, 0)
        each = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
        right = (scores.argmax(-1) == labels) & counts
        return jnp.where(counts, each, 0).sum() / number, {"right": right.sum() / number}

    @property
    def agree(self) -> None:
        """One process makes the batches."""
        return None

    def evaluate(self, trainables: Any) -> dict[str, float]:
        """The task's figure on held-out examples, at each reduction: ``f1_75``, ``f1_de_75``."""
        if not self.run.held_out:
            return {}
        network, figures = self._network(trainables), {}
        for reduction, held in self.held_out.items():
            found: dict[str, float] = {}
            for language, (examples, sequences, tokens) in held.items():
                predicted = classify(network, tokens, self.run.sequences)
                found[language] = examples.figure(sequences, predicted)
            name = self.batcher.examples.task.metric.lower()
            figures |= {f"{name}_{lang}_{reduction:g}": value for lang, value in found.items()}
            figures[f"{name}_{reduction:g}"] = float(np.mean([*found.values()]))
        return figures

    @cached_property
    def held_out(self) -> dict[float, dict[str, Any]]:
        """By reduction and language: examples, merged sequences, and their tokens for the rows."""
        held: dict[float, dict[str, Any]] = {}
        for reduction in self.run.held_out_reductions:
            held[reduction] = {
                language: (examples, *self._in_order(examples, reduction))
                for language, examples in self._held_out.items()
            }
        return held

    def _in_order(
        self, examples: Examples, reduction: float
    ) -> tuple[list[DynamicTokens], list[list[Token]]]:
        """Examples merged in the order they come, and their tokens as rows are looked up for."""
        found: list[DynamicTokens] = []
        budget, boundary = Budget(reduction=reduction), self.run.tokenization.boundary
        for start in range(0, len(examples.base), self.run.sequences):
            part = examples.base[start : start + self.run.sequences]
            found += self.model.merge(part, budget, boundary).sequences
        if self.model.rows == "base":
            return found, [sequence.ids.tolist() for sequence in examples.base]
        return found, [sequence.tokens for sequence in found]

    @property
    def held_out_cache(self) -> RowCache:
        """Rows of what evaluations read."""
        return self._other_model.cache

    @cached_property
    def _other_model(self) -> DynamicModel:
        """The model with a cache of its own, since batches are prepared at the same time."""
        run = self.run
        other = copy.copy(self.model.with_rows(self.model.rows, run.language, run.base_rows))
        other.module = self.module
        return other

    @cached_property
    def _merged(self) -> Any:
        """Parameters of the classifier, of the frozen model's and the trained ones."""

        def merge(model: Any, trained: Any) -> Any:
            lora = merged(model, trained["lora"], self.run.lora)
            return {"model": lora, "head": trained["head"]}

        where = param_shardings(abstract_params(self.module), self.mesh)
        return jax.jit(merge, out_shardings=where)

    def _network(self, trainables: Any) -> DynamicModel:
        return replace(self._other_model, params=self._merged(self.frozen["model"], trainables))

    def adapter(self, trainables: Any, step: int | None = None) -> Adapter:
        """What was trained, for ``lora.write_adapter``.

        Args:
            trainables: of the run.
            step: after which they were these; by default the last one.
        """
        run, task = self.run, self.batcher.examples.task
        host = jax.device_get(trainables)
        said = {
            "task": run.task,
            "model": run.model,
            "rows": run.rows,
            "row_provider": identity(self.model.rows),
            "base_rows": run.base_rows,
            "language": run.language,
            "tokenization": asdict(run.tokenization),
            "epochs": run.epochs,
            "steps": self.steps if step is None else step,
            "seed": run.training.seed,
            "start": self._started_from,
        }
        return Adapter(
            run.lora,
            host["lora"],
            host["head"],
            task.kind,
            tuple(task.labels),
            self.base,
            plain_settings(said),
        )


def _digest(examples: Sequence[Any]) -> str:
    return hashlib.sha256(repr(examples).encode()).hexdigest()
