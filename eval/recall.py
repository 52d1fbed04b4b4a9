"""How often a ScaNN index of a large vocabulary finds what an exact search finds, and how fast.

    python -m eval.recall --vocabulary out/vocabulary_smollm2 --index out/vocabulary_smollm2/scann \
      --model smollm2-135m-instruct --text en.txt de.txt --leaves 250,500 --out out/recall.json

The texts are read in the tokens of the vocabulary, by longest prefixes, as prompts are; the
queries are the hidden states after tokens that are spread evenly over them. Recall@10 is the share
of the ten best tokens, by the model's own logits, that are among the ten that are found. Times are
medians of searches for one hidden state; beside them stands the exact search among the rows of the
model's own vocabulary.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from dyntok_jax.dynamic_model import load
from dyntok_jax.generation.opening import check_width
from dyntok_jax.large_vocabulary.exact import ExactIndex
from dyntok_jax.large_vocabulary.hidden_states import hidden_states
from dyntok_jax.large_vocabulary.index import Index
from dyntok_jax.large_vocabulary.opening import control_ids
from dyntok_jax.large_vocabulary.scann_index import load_index
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary
from dyntok_jax.types import DyntokError, Rows
from eval import record
from eval.evenly_spaced import evenly_spaced

LONGEST = 256
"""Tokens of a line that are read, at most."""

_TOGETHER = 16  # queries of one exact search, whose scores fill 4 MB each


def main() -> None:
    """Measures, writes the figures as JSON."""
    parser = record.Parser(
        "eval.recall", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--vocabulary", type=Path, required=True, metavar="DIR", help="with its rows")
    add("--index", type=Path, required=True, metavar="DIR", help="a ScaNN index of its rows")
    add("--leaves", type=record.numbers, metavar="N,N", help="leaves searched (the index's own)")
    add("--reorder", type=record.numbers, metavar="N,N", help="rows compared truly (its own)")
    add("--rows", default="default", metavar="NAME", help="that the texts are read by (default)")
    add("--text", type=Path, nargs="+", required=True, metavar="FILE", help="one text a line")
    add(
        "--lines",
        type=record.line_range,
        nargs="+",
        metavar="A-B",
        help="lines to read, of all files or of each (all)",
    )
    add("--queries", type=record.positive, default=500, metavar="N", help="of each file (500)")
    add("--timed", type=record.positive, default=50, metavar="N", help="searches timed (50)")
    add("--k", type=record.positive, default=10, metavar="K", help="of recall@K (10)")
    record.run(parser, measure)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Recall and times of every index."""
    chosen = _texts(options)
    model = load(options.model, options.rows)
    vocabulary = LargeVocabulary.load(options.vocabulary, model.tokenizer)
    check_width(vocabulary, model)
    rows = vocabulary.rows()
    if options.k > len(vocabulary.tokens):
        raise DyntokError(f"k {options.k}: the vocabulary has {len(vocabulary.tokens)} tokens")
    exact, always = ExactIndex.of(rows, model.mesh), control_ids(model)
    indexes = [
        load_index(options.index, rows, vocabulary.made_for, leaves, reorder, always)
        for reorder in options.reorder or [None]
        for leaves in options.leaves or [None]
    ]
    files = {}
    for path, texts in chosen.items():
        hidden = hidden_states(model, vocabulary, texts, options.queries, LONGEST)
        best = _found(exact, hidden, options.k)
        files[path] = [_recall(_found(index, hidden, options.k), best) for index in indexes]
    timed = hidden[: options.timed]
    own = model.source
    original = ExactIndex.of(Rows(own.input, own.output), model.mesh)
    return {
        "model": options.model,
        "size": exact.size,
        "k": options.k,
        "queries": options.queries,
        "leaves": [index.settings.leaves_searched for index in indexes],
        "reorder": [index.settings.reorder for index in indexes],
        "recall": files,
        "milliseconds": [_milliseconds(index, timed, options.k) for index in indexes],
        "milliseconds_exact": _milliseconds(exact, timed, options.k),
        "milliseconds_original": _milliseconds(original, timed, options.k),
        "original_size": original.size,
    }


def _texts(options: argparse.Namespace) -> dict[str, list[str]]:
    """Lines of each file that give the queries, spread evenly."""
    paths, ranges = options.text, options.lines or [None]
    if len(ranges) not in (1, len(paths)):
        raise DyntokError(
            f"--lines: {len(ranges)} for {len(paths)} files; valid is one for all, or one for each"
        )
    ranges = ranges * len(paths) if len(ranges) == 1 else ranges
    texts = {}
    for path, asked in zip(paths, ranges, strict=True):
        lines = [line for line in record.read_lines(path, asked) if line.strip()]
        if not lines:
            raise DyntokError(f"{path}: blank lines only; valid is one text a line")
        # Each gives some tokens at least, so that more lines than queries are not needed.
        texts[str(path)] = [lines[i] for i in evenly_spaced(len(lines), options.queries)]
    return texts


def _found(index: Index, hidden: np.ndarray, k: int) -> Int[np.ndarray, "Q K"]:
    search = _search(index, k)
    parts = [
        np.asarray(search(hidden[i : i + _TOGETHER]).ids) for i in range(0, len(hidden), _TOGETHER)
    ]
    return np.concatenate(parts)


def _search(index: Index, k: int) -> Any:
    if not index.on_device:
        return lambda hidden: index.search(hidden, k)
    return lambda hidden: jax.block_until_ready(_on_device(index, hidden, k))


@partial(jax.jit, static_argnames="k")
def _on_device(index: Any, hidden: np.ndarray, k: int) -> Any:
    return index.search(hidden, k)


def _recall(found: Int[np.ndarray, "Q K"], best: Int[np.ndarray, "Q K"]) -> float:
    """The share of the best that is found, of all queries."""
    return float((found[:, :, None] == best[:, None, :]).any(axis=1).mean())


def _milliseconds(index: Index, hidden: np.ndarray, k: int) -> float:
    search, times = _search(index, k), []
    search(hidden[:1])
    for i in range(len(hidden)):
        start = time.perf_counter()
        search(hidden[i : i + 1])
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    main()
