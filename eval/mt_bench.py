"""Answers to MT-Bench, in every setting of one config, for FastChat's judge.

    MT_BENCH=FOLDER python -m eval.mt_bench --config configs/eval/mt_bench_smollm2.yaml \
      --out out/mt_bench.json

Answers are written as FastChat's ``model_answer`` (a file a setting, a line a question); the
judging is FastChat's, outside of this package. What can be told without a judge is in the JSON:
tokens, seconds (compiling included) and how much answers repeat themselves. A run that was stopped
goes on: questions that have been answered with the same settings are left out. ``--sweep`` adds the
first turn's answers at every reduction, for all settings that can merge and differ in more than
that; ``rows: base`` cannot.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dyntok_jax.command_line import is_terminal
from dyntok_jax.config import read_config
from dyntok_jax.dynamic_model import DynamicModel, load
from dyntok_jax.embed.providers import identity, row_provider
from dyntok_jax.embed.source import SourceEmbeddings
from dyntok_jax.files import folder_digest
from dyntok_jax.generate import Generated, GenerationConfig, OutputVocabulary, generate
from dyntok_jax.generation.opening import open_vocabulary
from dyntok_jax.large_vocabulary.exact import ExactIndex
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary, base_tokens
from dyntok_jax.lora import base_hash
from dyntok_jax.text.layouts import messages_layout
from dyntok_jax.types import DyntokError
from eval import record, task_sweep
from eval.evenly_spaced import evenly_spaced
from eval.mt_bench_answers import Answers, Question, measured, read
from eval.mt_bench_config import OWN, PREDICTED, TEMPERATURES, MtBenchRun, MtBenchSetting


def main() -> None:
    """Answers, writes what was measured as JSON."""
    parser = record.Parser(
        "eval.mt_bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="YAML of eval.mt_bench_config")
    add("--sweep", action="store_true", help="also every reduction, for the first turn")
    add("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="fields of the config")

    def answered(options: argparse.Namespace) -> dict[str, Any]:
        run = read_config(MtBenchRun, options.config, options.overrides)
        return Answering(run).measure(options.sweep)

    record.run(parser, answered, names_model=False)


class Answering:
    """A run: the model, the questions, and what settings share.

    Attributes:
        run: the config.
        model: the decoder, with rows that need no file of their own.
    """

    def __init__(self, run: MtBenchRun):
        self.run = run
        tabled = any(record.has_languages(setting.rows) for setting in run.settings)
        if run.language is not None and not tabled:
            raise DyntokError("language: the rows of no setting have a table of languages")
        questions = read(run.questions)
        self._questions = [questions[i] for i in evenly_spaced(len(questions), run.first)]
        self.model = load(run.model, "fvt", run.compute)
        self._opened: dict[tuple[Any, ...], OutputVocabulary] = {}
        self._contents: dict[tuple[str, str], dict[str, str]] = {}
        self._base = base_hash(self.model)

    def measure(self, sweep: bool) -> dict[str, Any]:
        """Answers in all settings, and what can be told without a judge.

        Raises:
            DyntokError: rows, a vocabulary or an index that cannot be had or do not fit; answers of
                other settings in the place of these.
        """
        run, settings = self.run, self.run.settings
        points = list(sweep_points(run)) if sweep else []
        todo = [(setting, run.turns) for setting in settings] + [(point, 1) for point in points]
        total = len(todo) * len(self._questions)
        with tqdm(total=total, disable=not is_terminal(), leave=False) as bar:
            rows = [self._setting(setting, turns, bar) for setting, turns in todo]
        return {
            "mt_bench": rows[: len(settings)],
            "sweep": rows[len(settings) :],
            "model": run.model,
            "questions": len(self._questions),
            "turns": run.turns,
            "max_new_tokens": run.max_new_tokens,
            "batch_size": run.batch_size,
        }

    def _setting(self, setting: MtBenchSetting, turns: int, bar: tqdm) -> dict[str, Any]:
        """Answers what is not answered yet, and tells what was measured of all."""
        name = f"{Path(self.run.model).name}-{setting.name}"
        if turns < self.run.turns:
            name += "-turn1"
        language = self._language(setting)
        network = self.model.with_rows(setting.rows, language, setting.base_rows)
        settings = self._settings(setting, turns) | {"row_provider": identity(network.rows)}
        file = Answers(Path(self.run.answers) / f"{name}.jsonl", name, settings)
        waiting = [question for question in self._questions if not file.answered(question)]
        bar.update(len(self._questions) - len(waiting))
        if waiting:
            vocabulary = self._vocabulary(setting)
            for part in self._batches(setting, waiting):
                file.add(part, self._answered(network, vocabulary, setting, part, turns))
                bar.update(len(part))
        chosen = [file.lines[question.number] for question in self._questions]
        return {**asdict(setting), "file": str(file.path), **measured(chosen)}

    def _language(self, setting: MtBenchSetting) -> int | None:
        """Row of the language in the table of a setting's rows; None where they have no table."""
        return self.run.language if record.has_languages(setting.rows) else None

    def _settings(self, setting: MtBenchSetting, turns: int) -> dict[str, Any]:
        """What answers depend on, beside the question."""
        run = self.run
        shared = (run.model, str(run.boundary), run.compute.dtype, run.language)
        names = ("model", "boundary", "dtype", "language")
        numbers = {"max_new_tokens": run.max_new_tokens, "seed": run.seed, "turns": turns}
        content = {"base": self._base, "vocabulary_content": self._content(setting)}
        return {**asdict(setting), **dict(zip(names, shared, strict=True)), **numbers, **content}

    def _content(self, setting: MtBenchSetting) -> dict[str, str]:
        """Hashes of a large vocabulary, its rows and its index: folders may hold others later."""
        if setting.vocabulary in (OWN, PREDICTED):
            return {}
        key = setting.vocabulary, setting.index
        if key not in self._contents:
            found = LargeVocabulary.load(setting.vocabulary, self.model.tokenizer).made_for
            if (index := Path(setting.index)).is_dir():
                found["index"] = folder_digest(index)
            self._contents[key] = found
        return self._contents[key]

    def _batches(
        self, setting: MtBenchSetting, questions: Sequence[Question]
    ) -> Iterator[list[Question]]:
        """Questions that are answered together: of one temperature and number of turns."""

        def alike(question: Question) -> tuple[float, int]:
            return _temperature(setting, question), len(question.turns)

        for _, group in groupby(sorted(questions, key=alike), key=alike):
            part = list(group)
            size = self.run.batch_size
            yield from (part[start : start + size] for start in range(0, len(part), size))

    def _answered(
        self,
        model: DynamicModel,
        vocabulary: OutputVocabulary | None,
        setting: MtBenchSetting,
        questions: Sequence[Question],
        turns: int,
    ) -> list[list[Generated]]:
        """For each question what was generated in its turns."""
        how = GenerationConfig(
            max_new_tokens=self.run.max_new_tokens,
            reduction=setting.reduction,
            boundary=self.run.boundary,
            kept_words=0,  # as in the paper
            batch_size=len(questions),
            temperature=_temperature(setting, questions[0]),
            top_k=setting.top_k,
            min_p=setting.min_p,
            repetition_penalty=setting.repetition_penalty,
            seed=self.run.seed,
            truncate=True,
        )
        talks: list[list[dict[str, str]]] = [[] for _ in questions]
        found: list[list[Generated]] = [[] for _ in questions]
        for turn in range(min(turns, len(questions[0].turns))):
            for talk, question in zip(talks, questions, strict=True):
                talk.append({"role": "user", "content": question.turns[turn]})
            prompts = messages_layout(model.tokenizer, talks, self.run.boundary)
            # With the first turn's draws a second answer may follow the first one word for word.
            drawn = replace(how, seed=how.seed + turn)
            # By question: neither its batch nor where a run was stopped changes what is drawn.
            numbers = [question.number % 2**31 for question in questions]
            answers = generate(model, prompts, drawn, vocabulary, draws=numbers)
            for talk, turns_of, answer in zip(talks, found, answers, strict=True):
                talk.append({"role": "assistant", "content": answer.text.strip()})
                turns_of.append(answer)
        return found

    def _vocabulary(self, setting: MtBenchSetting) -> OutputVocabulary | None:
        """What a setting answers in; None is the model's own vocabulary."""
        if setting.vocabulary == OWN:
            return None
        predicted = setting.vocabulary == PREDICTED
        key = (PREDICTED, setting.rows) if predicted else (setting.vocabulary, setting.index)
        if key not in self._opened:
            self._opened[key] = (
                self._predicted(setting)
                if predicted
                else open_vocabulary(setting.vocabulary, self.model, setting.index)
            )
        return self._opened[key]

    def _predicted(self, setting: MtBenchSetting) -> OutputVocabulary:
        model, source = self.model, self.model.source

        def tables(separate: bool) -> SourceEmbeddings:
            return source if separate else replace(source, output=None, bias=None)

        language = self._language(setting)
        provider = row_provider(
            setting.rows, tables, model.tokenizer, language, "predicted", model.mesh
        )
        tokens = base_tokens(model.tokenizer)
        rows = provider.rows(tokens)
        if rows.output is None and source.output is not None:
            raise DyntokError(
                f"setting {setting.name!r}: rows {setting.rows} predict no output rows, which "
                f"{model.name} has apart from its input rows"
            )
        return OutputVocabulary(tokens, rows.input, ExactIndex.of(rows, model.mesh))


def sweep_points(run: MtBenchRun) -> Iterator[MtBenchSetting]:
    """The settings that can merge, the first of those that differ in reduction only, swept.

    Raises:
        DyntokError: a sweep of nothing.
    """
    merging = [s for s in run.settings if s.reduction is not None and s.rows != "base"]
    for setting in task_sweep.swept(merging, run.sweep):
        for value in run.sweep:
            yield replace(setting, name=f"{setting.name}-{value:g}", reduction=value)


def _temperature(setting: MtBenchSetting, question: Question) -> float:
    if setting.temperature is not None:
        return setting.temperature
    return TEMPERATURES.get(question.category, 0.7)


if __name__ == "__main__":
    main()
