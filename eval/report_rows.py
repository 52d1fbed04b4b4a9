"""The README's tables of rows against each other, from run files of retrieval and continuation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def retrieval(run: dict[str, Any]) -> str:
    """Accuracies by language, with the share of the gap between FVT and static that is closed."""
    names = run["rows"]
    cap = f", at most {run['max_pieces']} pieces a token" if run["max_pieces"] else ""
    head = (
        f"{run['model']}, accuracy@1 xx→en on {run['texts']} texts, percent; merged to "
        f"{run['reduction']:g} %{cap} (commit {run['commit']}, {run['seconds'] / 60:.0f} min):\n\n"
        f"`{run['command']}`"
    )
    closed = [name for name in names if run["mean"]["gap_closed"].get(name) is not None]
    short = dict(zip(names, short_names(names), strict=True))
    columns = ["", *short.values(), *(f"{short[n]} closes" for n in closed), "tokens saved"]
    rows = [*run["languages"].items(), ("mean", run["mean"])]
    lines = [
        [
            language,
            *(f"{row['accuracy'][name]:.1f}" for name in names),
            *(_percent(row["gap_closed"].get(name)) for name in closed),
            f"{row['reduction_text_only']:.0f} %",
        ]
        for language, row in rows
    ]
    return f"{head}\n\n{table(columns, lines)}"


def continuation(runs: Sequence[dict[str, Any]]) -> str:
    """Bits per byte of what follows a merged prefix, a line for each text and reduction."""
    first = runs[0]
    commits = ", ".join(dict.fromkeys(run["commit"] for run in runs))
    kept = f"the last {first['kept_words']} words" if first["kept_words"] != 1 else "the last word"
    head = (
        f"{first['model']}, bits per byte of the {first['continuation_tokens']} base tokens after "
        f"{first['prefix_tokens']}, merged but for {kept}, above static (95 % interval; "
        f"commit {commits}):"
    )
    parts = [
        (run, path, figures, part)
        for run in runs
        for path, figures in run["files"].items()
        for part in figures["reductions"]
    ]
    if not parts:
        raise ValueError("no file was measured")
    # Runs may have other rows than the first one.
    names = [*dict.fromkeys(name for *_, part in parts for name in part["rows"])]
    texts = [*dict.fromkeys(path for _, path, *_ in parts)]
    parts.sort(key=lambda part: (texts.index(part[1]), part[3]["reduction"]))
    closing = [
        name for name in names if any("gap_closed" in p["rows"].get(name, {}) for *_, p in parts)
    ]
    lines = []
    for run, path, figures, part in parts:
        rows = part["rows"]
        cells = [above(rows[name]) if name in rows else "" for name in names]
        cells += [closed(rows[name]) if name in rows else "" for name in closing]
        static = f"{figures['static_bits_per_byte']:.3f}"
        saved = f"{part['prefix_shorter_percent']:.0f} %"
        place = "/".join(Path(path).parts[-2:])
        windows = str(run["windows"])
        lines.append([place, windows, f"{part['reduction']:g} %", saved, static, *cells])
    short = dict(zip(names, short_names(names), strict=True))
    columns = ["text", "windows", "reduction", "tokens saved", "static", *short.values()]
    columns += [f"{short[name]} closes" for name in closing]
    commands = "\n".join(run["command"] for run in runs)
    return f"{head}\n\n```\n{commands}\n```\n\n{table(columns, lines)}"


def above(row: dict[str, Any]) -> str:
    """How far some rows' bits are above static ones, in percent, with its interval."""
    return f"{row['above_static_percent']:+.1f} %{ends(row['above_static_interval'], '+.1f')}"


def closed(row: dict[str, Any]) -> str:
    """The share of FVT's gap that some rows close; empty where there is none to close."""
    if row.get("gap_closed") is None:
        return ""
    return _percent(row["gap_closed"]) + ends(row["gap_closed_interval"], ".0f", 100)


def short_names(names: Sequence[str]) -> list[str]:
    """Names of rows for a table: the ends of paths, as many parts of them as tell all apart."""
    longest = max((len(Path(name).parts) for name in names), default=1)
    for count in range(1, longest + 1):
        short = ["/".join(Path(name).parts[-count:]) for name in names]
        if len(set(short)) == len(short):
            return short
    return [*names]


def ends(interval: Sequence[float] | None, form: str, factor: float = 1) -> str:
    """An interval behind its figure; nothing where there is none."""
    if interval is None:
        return ""
    low, high = (factor * end for end in interval)
    return f" ({low:{form}} to {high:{form}})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; what would end a cell or a line of it is escaped."""
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)


def _cell(text: str) -> str:
    return re.sub(r"([\\`*<[|])", r"\\\1", " ".join(text.splitlines()))
