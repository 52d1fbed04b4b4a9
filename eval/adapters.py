"""Evaluation of trained task adapters: settings of tokenization, rows and adapter, in one run."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from jaxtyping import Float
from tqdm import tqdm

from dyntok_jax.adapter_files import read_adapter
from dyntok_jax.batching import by_length
from dyntok_jax.classification import adapted, best_class, classify
from dyntok_jax.command_line import is_terminal
from dyntok_jax.config import read_config
from dyntok_jax.dynamic_model import DynamicModel, load
from dyntok_jax.embed.providers import default_rows, identity, same_rows
from dyntok_jax.lora import Adapter
from dyntok_jax.merging.batch import DynamicTokens
from dyntok_jax.merging.budget import Budget
from dyntok_jax.model_store import resolve
from dyntok_jax.models.hf_config import Architecture, read_architecture
from dyntok_jax.tasks.registry import Task
from dyntok_jax.tasks.source import TaskSource
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.types import DyntokError, Token
from eval import record, task_sweep
from eval.task_config import Setting, TaskRun, check_languages, hypernet_language, repeated
from eval.task_figures import Outcome, figures
from eval.timing import clocks

logger = logging.getLogger(__name__)


def run(task: Task, description: str | None) -> None:
    """A task's command: measures, writes JSON, and sweeps as CSV and plot."""
    parser = record.Parser(
        f"eval.{task.name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="YAML of eval.task_config")
    add("--files", nargs="+", metavar="[LANGUAGE=]FILE", help="in place of the config's data")
    add("--sweep", action="store_true", help="also every reduction, where settings merge")
    add("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="fields of the config")

    def measured(options: argparse.Namespace) -> dict[str, Any]:
        evaluation = Evaluation(task, configured(options))
        if not options.sweep:
            found = evaluation.measure(False)
            task_sweep.remove_companions(options.out)
            return found
        # Before measuring: hours of work must not end in a file that cannot be written.
        with task_sweep.companions(options.out) as (lines, drawing):
            found = evaluation.measure(True)
            task_sweep.fill(lines, drawing, found)
        return found | {"plot": str(options.out.with_suffix(".svg"))}

    record.run(parser, measured, names_model=False)


def configured(options: argparse.Namespace) -> TaskRun:
    """The config, with ``--files`` in the place of its data.

    Raises:
        DyntokError: see ``config.read_config`` and ``TaskRun``; ``--files`` without a file.
    """
    given, overrides = options.files or [], [*options.overrides]
    files = [text for text in given if not _is_override(text)]
    # All that stands behind --files comes with it.
    overrides += [text for text in given if _is_override(text)]
    if given and not files:
        raise DyntokError(f"--files: {given[0]} is no file but a field; valid is one file at least")
    if files:
        sources = [asdict(_file_source(text)) for text in files]
        # YAML, for it does not read all escapes of JSON: those of letters beyond 16 bits are two.
        overrides = ["average=[]", *overrides, f"data={yaml.safe_dump(sources)}"]
    return read_config(TaskRun, options.config, overrides)


def _is_override(text: str) -> bool:
    key, equals, _ = text.partition("=")
    return bool(equals) and key.partition(".")[0] in [field.name for field in fields(TaskRun)]


def _file_source(text: str) -> TaskSource:
    language, equals, path = text.partition("=")
    # A path may have an equals sign, and then a slash or a dot before it.
    if not equals or "/" in language or "." in language:
        language, path = Path(text).stem, text
    return TaskSource(files=path, language=language)


class Merged(NamedTuple):
    """A language's sequences at one reduction.

    Attributes:
        sequences: after merging.
        seconds: (2,) that it took, as ``timing.clocks`` counts.
    """

    sequences: list[DynamicTokens]
    seconds: Float[np.ndarray, " 2"]


class Evaluation:
    """A run: the base model, the examples, and what settings share.

    Attributes:
        task: what is evaluated.
        run: the config.
    """

    def __init__(self, task: Task, run: TaskRun):
        self.task = task
        self.run = run
        self._examples = {source.language: task.read(source) for source in run.data}
        check_languages(run.hypernet_languages, run.settings, self._examples)
        self._shapes: set[tuple[Any, ...]] = set()
        self._compiled: set[tuple[Any, ...]] = set()

    @cached_property
    def _model(self) -> DynamicModel:
        # Every setting names its rows; these need no file of their own.
        model = load(self.run.model, "fvt", self.run.compute)
        if model.kind != "encoder":
            raise DyntokError(f"{model.name} is a decoder: {self.task.name} needs an encoder")
        return model

    @cached_property
    def _architecture(self) -> Architecture:
        return read_architecture(resolve(self.run.model))

    @property
    def _longest(self) -> int:
        return min(self.run.max_length, self._model.max_length)

    @cached_property
    def _base(self) -> dict[str, list[BaseTokens]]:
        tokenizer, boundary = self._model.tokenizer, self.run.boundary
        return {
            language: self.task.layout(tokenizer, examples, boundary, self._longest)
            for language, examples in self._examples.items()
        }

    def measure(self, sweep: bool) -> dict[str, Any]:
        """Figures of all settings, and of the sweeps where they are wanted.

        Raises:
            DyntokError: a model, an adapter or rows that cannot be had or do not fit together; a
                sweep of nothing; two adapters of one list that were trained with one seed.
        """
        run, task = self.run, self.task
        merging = [setting for setting in run.settings if setting.reduction]
        curves = task_sweep.swept(merging, run.sweep) if sweep else []
        # All adapters first: one that does not fit is known before hours of work.
        trained = {name: self._adapters(name) for name in run.adapters}
        self._warn_of_other_rows(trained)
        networks = {
            name: [self._network(*pair) for pair in pairs] for name, pairs in trained.items()
        }
        seeds = {
            setting.name: [adapter.task.get("seed") for _, adapter in trained[setting.adapter]]
            for setting in run.settings
        }
        total = sum(len(networks[s.adapter]) for s in run.settings)
        total += sum(len(networks[s.adapter]) for s in curves) * len(run.sweep)
        with tqdm(total=total, disable=not is_terminal(), leave=False) as bar:
            outcomes = {
                setting.name: [
                    self._outcomes(setting, network, None, bar)
                    for network in networks[setting.adapter]
                ]
                for setting in run.settings
            }
            points = {
                curve.name: {
                    value: [
                        self._outcomes(point, network, limit, bar)
                        for network in networks[curve.adapter]
                    ]
                    for value in run.sweep
                    for point in [replace(curve, reduction=value)]
                }
                for limit in [run.sweep_examples]
                for curve in curves
            }
        average = run.average or [source.language for source in run.data]
        controls = {setting.name: setting.control for setting in run.settings if setting.control}
        return {
            "task": task.name,
            "metric": task.metric,
            "model": run.model,
            "average_of": average,
            "examples": {name: len(examples) for name, examples in self._examples.items()},
            "adapters": {
                name: [described(*pair) for pair in pairs] for name, pairs in trained.items()
            },
            "row_providers": self._row_providers,
            "boundary": str(run.boundary),
            "max_length": self._longest,
            "settings": figures(outcomes, task.figure, average, run.settings, seeds, controls),
            "sweep": task_sweep.curves(points, task.figure, average, curves),
            "sweep_examples": run.sweep_examples,
            "compiled_shapes": len(self._shapes),
        }

    @cached_property
    def _row_providers(self) -> dict[str, str]:
        """What the settings' rows are, by their name: a hypernetwork's folder may change."""
        model = self._model
        named = {setting.rows: setting.rows for setting in self.run.settings}
        if "default" in named:
            named["default"] = default_rows(lambda _: model.source, model.tokenizer)
        return {rows: identity(name) for rows, name in named.items()}

    def _warn_of_other_rows(self, trained: Mapping[str, Sequence[tuple[str, Adapter]]]) -> None:
        """Warns of adapters that learnt to read rows, and get those of another provider."""
        for setting in self.run.settings:
            here = self._row_providers[setting.rows]
            for folder, adapter in trained[setting.adapter]:
                there = adapter.task.get("row_provider", here)
                if there != "base" and not same_rows(there, here):
                    logger.warning(
                        "setting %r: %s was trained with rows of %s; these are of %s",
                        *(setting.name, folder, there, here),
                    )

    def _adapters(self, name: str) -> list[tuple[str, Adapter]]:
        """A list's folders, and what is in them."""
        found = []
        for folder in self.run.adapters[name]:
            base = resolve(self.run.model)
            adapter = read_adapter(Path(folder), self._architecture, base)
            found.append((folder, adapter))
        seeds = [adapter.task["seed"] for _, adapter in found if "seed" in adapter.task]
        if (twice := repeated(seeds)) is not None:
            raise DyntokError(
                f"adapters, {name!r}: two of seed {twice}; valid are adapters of different seeds"
            )
        return found

    def _network(self, folder: str, adapter: Adapter) -> DynamicModel:
        try:
            return adapted(self._model, adapter, self.task, self.run.compute)
        except DyntokError as error:
            raise DyntokError(f"{folder}: {error}") from error

    def _outcomes(
        self, setting: Setting, network: DynamicModel, limit: int | None, bar: tqdm
    ) -> dict[str, Outcome]:
        """What a setting does with one adapter in every language."""
        found: dict[str, Outcome] = {}
        models: dict[int | None, tuple[DynamicModel, DynamicModel | None]] = {}
        rows, base_rows = setting.rows, setting.base_rows
        # Another adapter has the same batches, so what it runs is compiled by then.
        key = rows, base_rows, setting.reduction, limit
        known = key in self._compiled
        self._compiled.add(key)
        for language in self._examples:
            number = hypernet_language(self.run.hypernet_languages, rows, language)
            if number not in models:
                # An empty cache: a setting's time has the prediction of its rows in it.
                fresh = network.with_rows(rows, number, base_rows)
                other = None if known else network.with_rows(rows, number, base_rows)
                models[number] = fresh, other
            found[language] = self._outcome(*models[number], setting.reduction, language, limit)
        bar.update()
        return found

    def _outcome(
        self,
        network: DynamicModel,
        other: DynamicModel | None,
        reduction: float,
        language: str,
        limit: int | None,
    ) -> Outcome:
        """Merges, predicts and counts; ``other``, if any, is for compiling beforehand."""
        examples, base = self._examples[language][:limit], self._base[language][:limit]
        merged = self._merged(network, reduction, base)
        sequences: list[list[Token]] = [sequence.tokens for sequence in merged.sequences]
        if network.rows == "base":
            # By ids, since text that the vocabulary lacks has the unknown token's row.
            sequences = [[*sequence.ids.tolist()] for sequence in base]
        if other is not None:
            self._compile(other, sequences)
        cut, unknown, start = network.cache.cut, network.cache.unknown, clocks()
        predicted = classify(network, sequences, self.run.batch_size)
        seconds = clocks() - start
        return Outcome(
            self.task.counts(examples, merged.sequences, predicted),
            sum(len(sequence.tokens) for sequence in base),
            sum(map(len, sequences)),
            merged.seconds + seconds,
            {
                "truncated_tokens": sum(sequence.truncated for sequence in base),
                "cut_rows": network.cache.cut - cut,
                "unknown_rows": network.cache.unknown - unknown,
                **self.task.notes(examples, merged.sequences),
            },
        )

    def _merged(
        self, network: DynamicModel, reduction: float, base: Sequence[BaseTokens]
    ) -> Merged:
        start = clocks()
        sequences: list[DynamicTokens] = []
        for first in range(0, len(base), self.run.batch_size):
            together = base[first : first + self.run.batch_size]
            budget = Budget(reduction=reduction)
            sequences += network.merge(together, budget, self.run.boundary).sequences
        return Merged(sequences, clocks() - start)

    def _compile(self, network: DynamicModel, sequences: Sequence[Sequence[Any]]) -> None:
        """Looks up the rows of all batches, and runs the network once in every new shape.

        The programs that rows take depend on how many are missing, so the cache has to see the
        same batches in the same order as the one of which the time is taken.
        """
        for place in by_length([len(tokens) for tokens in sequences], self.run.batch_size):
            batch = network.batch([sequences[i] for i in place])
            shape = (network.rows, *batch.ids.shape, batch.unique_bucket)
            if shape in self._shapes:
                network.table(batch).block_until_ready()
            else:
                self._shapes.add(shape)
                network.forward(batch, best_class).block_until_ready()


def described(folder: str, adapter: Adapter) -> dict[str, Any]:
    """How an adapter was trained, as far as it says, as JSON values."""
    names = ("seed", "rows", "row_provider", "tokenization", "epochs", "steps", "start")
    return {"folder": folder, "base": adapter.base, **{n: adapter.task.get(n) for n in names}}
