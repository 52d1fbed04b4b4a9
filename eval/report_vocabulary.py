"""The README's tables of large vocabularies and of rewritten caches, from their run files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.report_rows import above, closed, ends, short_names, table


def recall(run: dict[str, Any]) -> str:
    """A line a setting of the index: what it finds of the best, and how long that takes."""
    names = list(run["recall"])
    lines = [
        [
            f"{run['leaves'][i]} leaves, {run['reorder'][i]} compared",
            *(f"{run['recall'][n][i]:.3f}" for n in names),
            ms,
        ]
        for i, ms in enumerate(_milliseconds(run["milliseconds"]))
    ]
    exact, own = _milliseconds([run["milliseconds_exact"], run["milliseconds_original"]])
    lines.append(["exact", *("1" for _ in names), exact])
    lines.append([f"exact, {run['original_size']} of the model's own", *("" for _ in names), own])
    head = _head(run, f"recall@{run['k']} among {run['size']} rows, {run['queries']} hidden states")
    return f"{head}\n\n{table(['', *map(_short, names), 'ms a search'], lines)}"


def _milliseconds(values: list[float]) -> list[str]:
    return [f"{value:.1f}" for value in values]


def saving(run: dict[str, Any]) -> str:
    """A line a file of prompts."""
    columns = [
        "prompts",
        "base tokens",
        "large",
        "pre-tokens",
        "of the saving",
        "MB/s",
        "all",
    ]
    lines = [
        [
            _short(name),
            *(str(row[key]) for key in ("tokens_static", "tokens_large", "pretokens")),
            "" if row["share_of_saving"] is None else f"{100 * row['share_of_saving']:.1f} %",
            f"{row['mb_per_second']:.2f}",
            f"{row['mb_per_second_with_base']:.2f}",
        ]
        for name, row in run["files"].items()
    ]
    what = f"prompts cut into the longest of {run['size']} tokens; MB/s of that alone and of all"
    head = _head(run, what)
    return f"{head}\n\n{table(columns, lines)}"


def likelihood(run: dict[str, Any]) -> str:
    """A line a text and kind of rows."""
    columns = ["text", "rows", "tokens", "bits per byte", "above static", "of FVT's gap closed"]
    lines = []
    for name, part in run["files"].items():
        static = f"{part['static_bits_per_byte']:.3f}"
        lines.append([_short(name), "static", str(part["tokens_static"]), static, "", ""])
        short = dict(zip(part["rows"], short_names([*part["rows"]]), strict=True))
        for rows, row in part["rows"].items():
            cells = [short[rows], str(part["tokens_large"]), f"{row['bits_per_byte']:.3f}"]
            lines.append([_short(name), *cells, above(row), closed(row)])
    what = (
        f"an exact softmax over {run['size']} tokens, the {run['continuation_tokens']} base tokens "
        f"after {run['windows']} prefixes of {run['prefix_tokens']}"
    )
    return f"{_head(run, what)}\n\n{table(columns, lines)}"


def diversity(run: dict[str, Any]) -> str:
    """A line a text."""
    lines = []
    for name, row in run["files"].items():
        difference = f"{row['difference']:+.3f}{ends(row['difference_interval'], '+.3f')}"
        shares = (f"{row[key]:.3f}" for key in ("static_distinct_4", "large_distinct_4"))
        counts = str(row["words"]), str(row["left_out"])
        lines.append([_short(name), *counts, *shares, difference])
    what = f"distinct-4 of {run['prompts']} continuations at temperature {run['temperature']:g}"
    columns = ["text", "words", "left out", "own vocabulary", "large", "difference"]
    return f"{_head(run, what)}\n\n{table(columns, lines)}"


def rewriting(run: dict[str, Any]) -> str:
    """A line a text and number of words that are rewritten together."""
    lines = []
    for name, part in run["files"].items():
        for words, row in part["words"].items():
            over = f"{row['above_percent']:+.1f} %{ends(row['above_interval'], '+.1f')}"
            cells = [f"{row['bits_per_byte']:.3f}", over, f"{row['cache_shorter_percent']:.0f} %"]
            lines.append([_short(name), words, *cells])
    what = f"finished words rewritten in the cache, {run['windows']} windows"
    columns = ["text", "words together", "bits per byte", "above the cache as it was", "shorter by"]
    return f"{_head(run, what)}\n\n{table(columns, lines)}"


def _head(run: dict[str, Any], what: str) -> str:
    made = f"commit {run['commit']}, {run['machine']}, {run['seconds'] / 60:.0f} min"
    return f"{run['model']}, {what} ({made}):\n\n`{run['command']}`"


def _short(name: str) -> str:
    return "/".join(Path(name).parts[-2:])
