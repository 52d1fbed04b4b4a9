"""MMLU with a decoder: accuracy and the answer's likelihood, in every setting of one config.

    MMLU=FOLDER python -m eval.mmlu --config configs/eval/mmlu_smollm2.yaml --sweep \
      --out out/mmlu.json

Five solved questions of the subject stand before each question (``tasks.mmlu`` has the prompt);
each prompt is merged alone. The answer is the letter with the highest score from the last hidden
state. Since small models are near chance, there is also the likelihood of the right answer's text
behind ``Answer:``: its bits per byte, in base tokens read and scored by the model's own rows. A
prompt too long for the model loses its beginning, which is counted. With ``--sweep`` a CSV and a
plot of all reductions stand beside the JSON, and those of bits per byte as ``_bits``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dyntok_jax.command_line import is_terminal
from dyntok_jax.config import read_config
from dyntok_jax.dynamic_model import DynamicModel, load
from dyntok_jax.merging.budget import Budget
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.types import DyntokError, Token
from eval import record, task_sweep
from eval.mmlu_config import MmluRun, MmluSetting
from eval.mmlu_data import Asked, asked
from eval.mmlu_scoring import Letters, answer_scores, letter_ids, rehearse, vocabulary
from eval.task_config import check_languages, hypernet_language
from eval.task_figures import Outcome, figures
from eval.timing import clocks

METRICS = {
    "accuracy": lambda sums: 100 * sums[..., 0] / sums[..., 1],
    "bits per byte": lambda sums: sums[..., 2] / sums[..., 3],
}
"""Of the summed counts of questions: right, 1, bits and bytes of the right answer's text."""


def main() -> None:
    """Measures, writes the figures as JSON."""
    parser = record.Parser(
        "eval.mmlu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="YAML of eval.mmlu_config")
    add("--sweep", action="store_true", help="also every reduction, for all rows")
    add("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="fields of the config")

    def measured(options: argparse.Namespace) -> dict[str, Any]:
        run = read_config(MmluRun, options.config, options.overrides)
        if options.sweep:
            return _with_sweep(run, options.out)
        found = Evaluation(run).measure(False)
        task_sweep.remove_companions(options.out, _of_bits(options.out))
        return found

    record.run(parser, measured, names_model=False)


def _with_sweep(run: MmluRun, out: Path) -> dict[str, Any]:
    """The figures, and the sweeps of both metrics as CSV and plot."""
    bits = _of_bits(out)
    # Before measuring: hours of work must not end in a file that cannot be written.
    with task_sweep.companions(out) as files, task_sweep.companions(bits, out) as files_of_bits:
        found = Evaluation(run).measure(True)
        likelihood = {"metric": "bits per byte", "sweep": found["likelihood_sweep"]}
        task_sweep.fill(*files, found)
        task_sweep.fill(*files_of_bits, found | likelihood)
    plots = {"plot": out.with_suffix(".svg"), "likelihood_plot": bits.with_suffix(".svg")}
    return found | {name: str(path) for name, path in plots.items()}


def _of_bits(out: Path) -> Path:
    """What the likelihood's CSV and plot are named as."""
    return out.with_stem(f"{out.stem}_bits")


class Evaluation:
    """A run: the model, the questions, and what settings share.

    Attributes:
        run: the config.
        model: the decoder, with rows that need no file of their own.
    """

    def __init__(self, run: MmluRun):
        self.run = run
        self.model = load(run.model, "fvt", run.compute)
        if self.model.kind != "decoder":
            raise DyntokError(f"{run.model} is an encoder: MMLU needs a decoder")
        longest = min(run.max_length, self.model.max_length)
        tokenizer = self.model.tokenizer
        self._asked = {
            data.language: asked(tokenizer, data, run.boundary, longest) for data in run.data
        }
        check_languages(run.hypernet_languages, run.settings, self._asked)
        self._letters = letter_ids(tokenizer)
        folders = {setting.longest_prefix for setting in run.settings} - {None}
        self._vocabularies = {
            name: vocabulary(name, tokenizer) for name in folders if name is not None
        }
        self._shapes: set[tuple[Any, ...]] = set()

    def measure(self, sweep: bool) -> dict[str, Any]:
        """Figures of all settings, and of the sweeps where they are wanted.

        Raises:
            DyntokError: rows that cannot be had or do not fit; a sweep of nothing.
        """
        run = self.run
        merging = [s for s in run.settings if s.reduction and not s.longest_prefix]
        curves = task_sweep.swept(merging, run.sweep) if sweep else []
        total = len(run.settings) + len(curves) * len(run.sweep)
        with tqdm(total=total, disable=not is_terminal(), leave=False) as bar:
            outcomes = {s.name: [self._outcomes(s, None, bar)] for s in run.settings}
            points = {
                curve.name: {
                    share: [self._outcomes(replace(curve, reduction=share), run.sweep_first, bar)]
                    for share in run.sweep
                }
                for curve in curves
            }
        languages = list(self._asked)
        tables = [figures(outcomes, m, languages, run.settings) for m in METRICS.values()]
        lines = [task_sweep.curves(points, m, languages, curves) for m in METRICS.values()]
        return {
            "task": "mmlu",
            "metric": "accuracy",
            "model": run.model,
            "average_of": languages,
            "examples": {name: len(part.prompts) for name, part in self._asked.items()},
            "boundary": str(run.boundary),
            "max_length": min(run.max_length, self.model.max_length),
            "settings": tables[0],
            "likelihood": tables[1],
            "sweep": lines[0],
            "likelihood_sweep": lines[1],
            "sweep_examples": run.sweep_first,
            "sweep_choice": "evenly spread",
        }

    def _outcomes(self, setting: MmluSetting, first: int | None, bar: tqdm) -> dict[str, Outcome]:
        """What a setting does in every language."""
        found: dict[str, Outcome] = {}
        models: dict[int | None, tuple[DynamicModel, Letters]] = {}
        for language, part in self._asked.items():
            number = hypernet_language(self.run.hypernet_languages, setting.rows, language)
            if number not in models:
                models[number] = self._network(setting, number)
            found[language] = self._outcome(*models[number], setting, part.evenly_spaced(first))
        bar.update()
        return found

    def _network(self, setting: MmluSetting, language: int | None) -> tuple[DynamicModel, Letters]:
        """The model with a setting's rows and an empty cache, and the letters' output rows.

        A setting's time has the prediction of its rows in it, but no compiling.
        """
        chosen = setting.rows, language, setting.base_rows
        rehearse(self.model.with_rows(*chosen), next(iter(self._asked.values())).prompts)
        if setting.output == "own":
            return self.model.with_rows(*chosen), Letters.own(self.model, self._letters)
        predicted = self.model.with_rows(setting.rows, language, "predicted")
        return self.model.with_rows(*chosen), Letters.predicted(predicted, self._letters)

    def _outcome(
        self, network: DynamicModel, letters: Letters, setting: MmluSetting, part: Asked
    ) -> Outcome:
        start = clocks()
        tokens = self._tokens(network, setting, part.prompts)
        merging = clocks() - start
        sequences = [[*prompt, *ids] for prompt, ids in zip(tokens, part.targets, strict=True)]
        scores, nats, seconds = answer_scores(
            network, sequences, part.targets, letters, self.run.batch_size, self._shapes
        )
        right = scores.argmax(axis=1) == part.answers
        bits = -nats.astype(np.float64) / math.log(2)
        return Outcome(
            np.stack([right, np.ones(len(right)), bits, part.bytes], axis=1),
            sum(len(prompt.tokens) for prompt in part.prompts),
            sum(map(len, tokens)),
            merging + seconds,
            part.notes,
        )

    def _tokens(
        self, network: DynamicModel, setting: MmluSetting, prompts: Sequence[BaseTokens]
    ) -> list[list[Token]]:
        """The prompts as a setting reads them."""
        if setting.longest_prefix:
            found = self._vocabularies[setting.longest_prefix]
            return [[found.tokens[i] for i in found.tokenize(part)] for part in prompts]
        if setting.rows == "base":
            # By ids, since text that the vocabulary lacks has the unknown token's row.
            return [[*part.ids.tolist()] for part in prompts]
        budget = Budget(reduction=setting.reduction)
        merged = network.merge(prompts, budget, self.run.boundary, per_sample=True)
        return [part.tokens for part in merged.sequences]


if __name__ == "__main__":
    main()
