"""The README's tables of task adapters and of fairness, from their run files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.report_rows import ends, table


def settings(run: dict[str, Any]) -> str:
    """A line a setting: the metric by language, its mean and the difference to the first one."""
    rows = run["settings"]
    languages = list(rows[0]["languages"])
    counts = [len(row["average"]["by_seed"]) for row in rows]
    several = max(counts) > 1
    over = f"means over seeds ± their standard deviation, {_pairs(rows)}, " if several else ""
    examples = ", ".join(f"{name} {count}" for name, count in run["examples"].items())
    head = (
        f"{run['model']}, {run['metric']} in percent ({over}95 % intervals of examples "
        f"drawn again; commit {run['commit']}, {run['machine']}, "
        f"{run['seconds'] / 60:.0f} min):\n\n"
        f"`{run['command']}`"
    )
    # Older runs have no time of the processor.
    times = [key for key in ("seconds", "processor_seconds") if key in rows[0]["average"]]
    columns = ["", *["seeds"] * several, *languages, "mean", "Δ", "tokens saved"]
    columns += [key.replace("_", " ") for key in times]
    lines = [
        [
            row["name"],
            *[str(count)] * several,
            *(_cell(row["languages"][name]) for name in languages),
            _mean(row["average"]),
            _delta(row["average"]) if row is not rows[0] else "",
            f"{row['average']['shorter_percent']:.1f} %",
            *(f"{row['average'][key]:.0f}" for key in times),
        ]
        for row, count in zip(rows, counts, strict=True)
    ]
    tail = f"The mean is over {', '.join(run['average_of'])}. Examples: {examples}."
    if counted := _counted(rows):
        tail += f" {counted}"
    parts = [head, table(columns, lines), tail]
    if merging := [row for row in rows[1:] if row.get("reduction")]:
        parts.append(_by_language(merging, languages))
    parts += controls(run)
    if run["sweep"]:
        parts.append(_sweep(run))
    return "\n\n".join(parts)


def _cell(row: dict[str, Any]) -> str:
    return f"{row['value']:.1f}"


def _mean(row: dict[str, Any]) -> str:
    std = "" if row["spread"] is None else f" ± {row['spread']:.1f}"
    return f"{row['value']:.1f}{std}{ends(row['interval'], '.1f')}"


def _delta(row: dict[str, Any]) -> str:
    return f"{row['delta']:+.1f}{ends(row['delta_interval'], '+.1f')}"


def _pairs(rows: Sequence[dict[str, Any]]) -> str:
    """Which seeds the differences are over."""
    if all(row["average"].get("delta_seeds") for row in rows):
        return "Δ over the seeds shared with the first line"
    return "Δ between means over all seeds where none is known to be shared"


def _by_language(rows: Sequence[dict[str, Any]], languages: Sequence[str]) -> str:
    lines = [
        [
            row["name"],
            *(
                f"{part['delta']:+.1f} ({part['shorter_percent']:.0f} %)"
                for part in map(row["languages"].get, languages)
            ),
        ]
        for row in rows
    ]
    return f"Δ by language (tokens saved):\n\n{table(['', *languages], lines)}"


def controls(run: dict[str, Any]) -> list[str]:
    """A line for each setting that has a control: the difference to it."""
    said = []
    for row in run["settings"]:
        if row.get("control"):
            average = row["average"]
            interval = ends(average["control_interval"], "+.1f")
            seeds = "the seeds that both have" if average["control_seeds"] else "all seeds of each"
            difference = f"{average['control_delta']:+.1f}{interval}, over {seeds}"
            said.append(f"{row['name']} against {row['control']}: {difference}.")
    return said


def _counted(rows: Sequence[dict[str, Any]]) -> str:
    """What could not be read, in the words of the run; by line where lines differ."""
    names = {
        "truncated_tokens": "tokens cut off",
        "unread_words": "words without a token, read as O",
        "mapped_tags": "tags of other kinds, read as O",
        "cut_rows": "rows of the first pieces only",
        "unknown_rows": "rows of the unknown token",
        "missing_shots": "solved questions missing, where a subject has fewer than five",
    }
    said = []
    for key, words in names.items():
        if not all(key in part for row in rows for part in row["languages"].values()):
            continue
        sums = {row["name"]: sum(p[key] for p in row["languages"].values()) for row in rows}
        if len({*sums.values()}) == 1:
            said.append(f"{sums[rows[0]['name']]} {words}")
        else:
            each = ", ".join(f"{count} in {name}" for name, count in sums.items() if count)
            said.append(f"{words}: {each}")
    return f"In all {'; '.join(said)}." if said else ""


def _sweep(run: dict[str, Any]) -> str:
    """The means of all curves, by reduction."""
    limit = run["sweep_examples"]
    over = f", {run.get('sweep_choice', 'the first')} {limit} examples of each" if limit else ""
    reductions = [point["reduction"] for point in run["sweep"][0]["points"]]
    lines = [
        [curve["name"], *(f"{point['average']['value']:.1f}" for point in curve["points"])]
        for curve in run["sweep"]
    ]
    several = any(len(c["points"][0]["average"].get("by_seed", ())) > 1 for c in run["sweep"])
    head = f"Mean {run['metric']} by reduction{', means over seeds' * several}{over}:"
    columns = ["", *(f"{value:g} %" for value in reductions)]
    return f"{head}\n\n{table(columns, lines)}\n\n![{run['task']} by reduction]({run['plot']})"


def fairness(run: dict[str, Any]) -> str:
    """A line a language, relative to English, and the spread."""
    head = (
        f"Tokens of the same {run['texts']} sentences relative to English, before and after "
        f"merging to {run['reduction']:g} % (commit {run['commit']}):\n\n`{run['command']}`"
    )
    models = run["fairness"]
    names = [Path(model["model"]).name for model in models]
    timed = [any("time_saved_percent" in r for r in m["languages"].values()) for m in models]
    columns = [""]
    for name, with_time in zip(names, timed, strict=True):
        columns += [f"{name} static", "dynamic", "tokens saved"] + ["time saved"] * with_time
    order = sorted(
        models[0]["languages"], key=lambda n: -models[0]["languages"][n]["static_to_english"]
    )
    lines = [
        [
            language,
            *(cell for m, t in zip(models, timed, strict=True) for cell in _row(m, language, t)),
        ]
        for language in order
    ]
    for which, where in (("spread", ""), ("spread_spaced", " of spaced languages")):
        for key, words in (("max_over_min", "max ÷ min"), ("gini", "Gini")):
            line = [words + where]
            for model, with_time in zip(models, timed, strict=True):
                line += [f"{model[which][kind][key]:.2f}" for kind in ("static", "dynamic")]
                line += [""] * (1 + with_time)
            lines.append(line)
    parts = [head, table(columns, lines)]
    parts.append(f"![tokens relative to English]({run['plot']})")
    return "\n\n".join(parts)


def _row(model: dict[str, Any], language: str, timed: bool) -> list[str]:
    row = model["languages"][language]
    cells = [f"{row[f'{kind}_to_english']:.2f}" for kind in ("static", "dynamic")]
    cells.append(f"{row['shorter_percent']:.0f} %")
    return cells + ([f"{row['time_saved_percent']:.0f} %"] if timed else [])
