"""Retrieval of a text's English translation, read dynamically, with different rows.

    python -m eval.retrieval --model multilingual-e5-small --rows static,fvt,weighted,ridge \
      --text FOLDER --lines 501-1000 --skip-lines 681 --languages de ru tr --out out/retrieval.json

FOLDER holds line-aligned files xx.txt, one text a line, and en.txt. Queries are the lines of xx,
merged and embedded by the given rows; candidates are the English lines in base tokens. A query
is right where its own line has the highest cosine among all candidates. A hypernetwork with a table
of languages reads each by the row of its name. With --adapter the last rows are read once more by
the model with it; candidates stay the plain model's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from dyntok_jax.command_line import is_terminal
from dyntok_jax.dynamic_model import DynamicModel, load
from dyntok_jax.encoding import pooled
from dyntok_jax.merging.batch import DynamicTokens
from dyntok_jax.merging.budget import Budget
from dyntok_jax.text.boundaries import capped_units
from dyntok_jax.text.layouts import BaseTokens, text_layout
from dyntok_jax.types import DyntokError
from eval import reading, record
from eval.record import STATIC
from eval.task_config import repeated

BATCH_SIZE = 32
"""Lines that are merged together."""


def main() -> None:
    """Measures, writes the figures as JSON."""
    parser = record.Parser(
        "eval.retrieval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=record.names, default="static,fvt", help="static, fvt, … (static,fvt)")
    add("--text", type=Path, required=True, metavar="FOLDER", help="aligned files xx.txt")
    add("--lines", type=record.line_range, metavar="A-B", help="lines to read (all)")
    add("--skip-lines", type=record.numbers, default=[], metavar="N,N", help="lines left out")
    add("--languages", nargs="+", metavar="XX", help="languages of the queries (all but en)")
    add("--prefix", default="query: ", help="put before every line (default: %(default)r)")
    add("--reduction", type=record.percent, default=100, metavar="PCT", help="of the saving (100)")
    add("--max-pieces", type=record.positive, metavar="N", help="most base tokens of a merged one")
    reading.add_adapter(parser)
    record.run(parser, measure)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every language and all rows, and their means."""
    languages = options.languages or sorted(
        path.stem for path in options.text.glob("*.txt") if path.stem != "en"
    )
    if twice := repeated(languages):
        raise DyntokError(f"--languages: {twice} is there twice; valid are different ones")
    if "en" in languages:
        raise DyntokError("--languages: en is what is searched; name others")
    texts = {name: _lines(options, name) for name in dict.fromkeys(["en", *languages])}
    if not languages:
        raise DyntokError(f"{options.text}: no xx.txt beside en.txt")
    if not texts["en"]:
        raise DyntokError("no lines are left: all of --lines are in --skip-lines")
    if odd := [name for name in texts if len(texts[name]) != len(texts["en"])]:
        raise DyntokError(f"{options.text}: {odd[0]}.txt and en.txt differ in number of lines")
    model = load(options.model, "fvt")
    if model.kind != "encoder":
        raise DyntokError(f"{model.name} is a decoder: retrieval needs an encoder")
    names = [name for name in options.rows if name != STATIC]
    table = {name: {xx: record.language_row(name, xx) for xx in languages} for name in names}
    models = {name: model.with_rows(name, table[name][languages[0]]) for name in names}
    models = reading.with_adapter(models, options.adapter)
    columns = [*options.rows, *(name for name in models if name not in names)]
    candidates = _static(model, _layout(model, options.prefix, texts["en"], None))
    results: dict[str, Any] = {}
    for language in tqdm(languages, "languages", disable=not is_terminal(), leave=False):
        base = _layout(model, options.prefix, texts[language], options.max_pieces)
        tabled = {name: row for name in names if (row := table[name][language]) is not None}
        models |= {name: model.with_rows(name, row) for name, row in tabled.items()}
        if options.adapter and (row := tabled.get(names[-1])) is not None:
            models[columns[-1]] = models[columns[-1]].with_rows(names[-1], row)
        results[language] = _language(model, columns, models, options, base, candidates)
    return {
        "model": options.model,
        "rows": columns,
        "texts": len(texts["en"]),
        "reduction": options.reduction,
        "max_pieces": options.max_pieces,
        "languages": results,
        "mean": averages(list(results.values())),
    } | reading.said_of_adapter(models)


def _lines(options: argparse.Namespace, name: str) -> list[str]:
    lines = record.read_lines(options.text / f"{name}.txt", options.lines)
    first = options.lines[0] if options.lines else 1
    last = first + len(lines) - 1
    if beyond := [number for number in options.skip_lines if not first <= number <= last]:
        raise DyntokError(f"--skip-lines: {beyond[0]} is none of the lines {first} to {last}")
    skipped = {number - first for number in options.skip_lines}
    return [line for place, line in enumerate(lines) if place not in skipped]


def _layout(
    model: DynamicModel, prefix: str, lines: Sequence[str], max_pieces: int | None
) -> list[BaseTokens]:
    texts = [prefix + line for line in lines]
    base = text_layout(model.tokenizer, texts, max_length=model.max_length)
    if max_pieces is None:
        return base
    return [replace(part, units=capped_units(part.units, max_pieces)) for part in base]


def _static(model: DynamicModel, base: Sequence[BaseTokens]) -> Float[np.ndarray, "N D"]:
    return pooled(model, model.merge(base, Budget(reduction=0)).sequences, "mean", BATCH_SIZE)


def _language(
    model: DynamicModel,
    columns: Sequence[str],
    models: dict[str, DynamicModel],
    options: argparse.Namespace,
    base: list[BaseTokens],
    candidates: Float[np.ndarray, "N D"],
) -> dict[str, Any]:
    """Accuracies and lengths of one language."""
    for other in models.values():
        base = other.readable(base)
    merged: list[DynamicTokens] = []
    for start in range(0, len(base), BATCH_SIZE):
        budget = Budget(reduction=options.reduction)
        merged += model.merge(base[start : start + BATCH_SIZE], budget).sequences
    prefix = len(model.tokenizer.encode([options.prefix.rstrip()])[0].ids)
    found: dict[str, Any] = {"accuracy": {}, **lengths(base, merged, prefix)}
    for name in columns:
        vectors = (
            _static(model, base)
            if name == STATIC
            else pooled(models[name], merged, "mean", BATCH_SIZE)
        )
        found["accuracy"][name] = accuracy(vectors, candidates)
    return found | {"gap_closed": gaps(found["accuracy"])}


def accuracy(queries: Float[np.ndarray, "N D"], candidates: Float[np.ndarray, "N D"]) -> float:
    """Percent of the queries whose nearest candidate by cosine is the one of the same place."""

    def unit(vectors: np.ndarray) -> np.ndarray:
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    nearest = (unit(queries) @ unit(candidates).T).argmax(axis=1)
    return 100 * float((nearest == np.arange(len(queries))).mean())


def lengths(
    base: Sequence[BaseTokens], merged: Sequence[DynamicTokens], prefix: int
) -> dict[str, Any]:
    """Tokens before and after merging, with and without the ends and the prefix.

    Args:
        base, merged: sequences with one special token at either end.
        prefix: base tokens of the prefix, behind the opening token.
    """
    before, after = sum(len(s.tokens) for s in base), sum(len(s.tokens) for s in merged)
    text_before = before - (prefix + 2) * len(base)
    text_after = sum(int((s.starts > prefix).sum()) - 1 for s in merged)
    return {
        "tokens_static": before,
        "tokens_dynamic": after,
        "reduction": _saved(before, after),
        "reduction_text_only": _saved(text_before, text_after),
        "truncated": sum(s.truncated for s in base),
    }


def _saved(before: int, after: int) -> float:
    return 100 * (before - after) / before if before else 0.0


def gaps(accuracies: dict[str, float]) -> dict[str, float | None]:
    """Share of the gap between FVT and static that the other rows close, where both are there."""
    if not {STATIC, "fvt"} <= accuracies.keys():
        return {}
    ends = accuracies[STATIC], accuracies["fvt"]
    others = [name for name in accuracies if name not in (STATIC, "fvt")]
    return {name: record.gap_closed(*ends, accuracies[name]) for name in others}


def averages(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over languages; the gap closed is that of the mean accuracies."""
    means = {
        name: float(np.mean([result["accuracy"][name] for result in results]))
        for name in results[0]["accuracy"]
    }
    saved = {
        key: float(np.mean([result[key] for result in results]))
        for key in ("reduction", "reduction_text_only")
    }
    return {"accuracy": means, **saved, "gap_closed": gaps(means)}


if __name__ == "__main__":
    main()
