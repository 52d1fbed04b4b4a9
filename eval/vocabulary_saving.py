"""How much shorter a large vocabulary makes prompts, of what one token per pre-token would save.

    python -m eval.vocabulary_saving --model smollm2-135m-instruct \
      --vocabulary out/vocabulary_smollm2 --text en.txt --mmlu test de_val.json \
      --mt-bench question.jsonl --out out/vocabulary_saving.json

Prompts are cut into longest prefixes, as in generation: a line of a text, a question of MMLU
without solved ones before it, a turn of MT-Bench. Megabytes per second are of the cutting alone,
the base tokens and their pre-tokens given, and of both; units that come again are remembered.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary
from dyntok_jax.model_store import resolve
from dyntok_jax.tasks import mmlu
from dyntok_jax.tasks.source import TaskSource
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.layouts import prompt_layout
from dyntok_jax.types import DyntokError
from eval import mt_bench_answers, record

TOGETHER = 2000
"""Prompts that are laid out at once."""


def main() -> None:
    """Measures, writes the figures as JSON."""
    parser = record.Parser(
        "eval.vocabulary_saving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    files: dict[str, Any] = {"type": Path, "nargs": "+", "default": [], "metavar": "FILE"}
    add("--vocabulary", type=Path, required=True, metavar="DIR", help="a large one")
    add("--text", **files, help="one prompt a line")
    add("--lines", type=record.line_range, metavar="A-B", help="lines of texts to read (all)")
    add("--mmlu", **files, help="of a kind that eval.mmlu reads")
    add("--mt-bench", **files, help="FastChat's question.jsonl")
    record.run(parser, measure)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every file."""

    def texts(path: Path) -> list[str]:
        return record.read_lines(path, options.lines)

    kinds = ((options.text, texts), (options.mmlu, _mmlu), (options.mt_bench, _mt_bench))
    prompts = {str(path): read(path) for paths, read in kinds for path in paths}
    if not prompts:
        raise DyntokError("no prompts: give --text, --mmlu or --mt-bench")
    tokenizer = BaseTokenizer.from_folder(resolve(options.model))
    vocabulary = LargeVocabulary.load(options.vocabulary, tokenizer)
    # What is made once is no part of the time.
    vocabulary.tokenize(prompt_layout(tokenizer, ["a"])[0])
    return {
        "task": "saving",
        "model": options.model,
        "size": len(vocabulary.tokens),
        "files": {name: saving(vocabulary, part) for name, part in prompts.items()},
    }


def _mmlu(path: Path) -> list[str]:
    return [mmlu.prompt(question, []) for question in mmlu.read(TaskSource(files=str(path)))]


def _mt_bench(path: Path) -> list[str]:
    return [turn for question in mt_bench_answers.read(str(path)) for turn in question.turns]


def saving(vocabulary: LargeVocabulary, prompts: Sequence[str]) -> dict[str, Any]:
    """Figures of some prompts.

    Args:
        vocabulary: that they are cut by.
        prompts: texts.
    """
    counts = dict.fromkeys(("bytes", "tokens_static", "tokens_large", "pretokens"), 0)
    cutting, begin = 0.0, time.perf_counter()
    for start in range(0, len(prompts), TOGETHER):
        part = prompts[start : start + TOGETHER]
        base = prompt_layout(vocabulary.tokenizer, part)
        before = time.perf_counter()
        cut = [vocabulary.tokenize(sequence) for sequence in base]
        cutting += time.perf_counter() - before
        counts["bytes"] += sum(len(text.encode()) for text in part)
        counts["tokens_static"] += sum(len(sequence.ids) for sequence in base)
        counts["tokens_large"] += sum(map(len, cut))
        counts["pretokens"] += sum(len(np.unique(sequence.units)) for sequence in base)
    possible = counts["tokens_static"] - counts["pretokens"]
    saved = counts["tokens_static"] - counts["tokens_large"]
    megabytes = counts["bytes"] / 1e6
    return {
        "prompts": len(prompts),
        **counts,
        "share_of_saving": saved / possible if possible else None,
        "mb_per_second": megabytes / cutting,
        "mb_per_second_with_base": megabytes / (time.perf_counter() - begin),
    }


if __name__ == "__main__":
    main()
