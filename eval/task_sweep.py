"""Sweeps over reductions: curves, their CSV and plot."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dyntok_jax.demo.drawing import label
from dyntok_jax.files import atomic_path
from dyntok_jax.types import DyntokError
from eval.mmlu_config import MmluSetting
from eval.mt_bench_config import MtBenchSetting
from eval.outputs import check_companion
from eval.task_config import Setting
from eval.task_figures import AnySetting, Figure, Outcome, by_seed, seconds, shorter, std, value

S = TypeVar("S", Setting, MmluSetting, MtBenchSetting)
"""A setting: a dataclass with a name and a reduction."""

Points = Mapping[str, Mapping[float, Sequence[Mapping[str, Outcome]]]]
"""Curve -> reduction -> seed -> language."""


def swept(settings: Sequence[S], reductions: Sequence[float]) -> list[S]:
    """The first of settings that differ in their reduction only, names and controls aside.

    Args:
        settings: that merge.
        reductions: of the sweeps.

    Raises:
        DyntokError: there are none of either.
    """
    if not (settings and reductions):
        raise DyntokError("--sweep: no setting merges, or sweep is empty; valid is one of each")
    found: dict[tuple[Any, ...], S] = {}
    for setting in settings:
        values = asdict(setting).items()
        key = tuple(pair for pair in values if pair[0] not in ("name", "reduction", "control"))
        found.setdefault(key, setting)
    return [*found.values()]


def curves(
    points: Points, figure: Figure, average: Sequence[str], settings: Sequence[AnySetting]
) -> list[dict[str, Any]]:
    """Every curve with what its settings share and its points, as JSON values."""
    found = []
    for setting in settings:
        shared = asdict(setting)
        # Of the table only.
        del shared["reduction"]
        shared.pop("control", None)
        by_reduction = points[setting.name].items()
        shared["points"] = [_point(value, seeds, figure, average) for value, seeds in by_reduction]
        found.append(shared)
    return found


def _point(
    reduction: float, seeds: Sequence[Mapping[str, Outcome]], figure: Figure, average: Sequence[str]
) -> dict[str, Any]:
    languages = {name: _values([seed[name] for seed in seeds], figure) for name in seeds[0]}
    chosen = [languages[name] for name in average]
    means = {key: np.mean([row[key] for row in chosen], axis=0).tolist() for key in chosen[0]}
    return {"reduction": reduction, "average": means, "languages": languages}


def _values(seeds: Sequence[Outcome], figure: Figure) -> dict[str, Any]:
    return {
        "value": value(seeds, figure),
        "by_seed": by_seed(seeds, figure),
        "shorter_percent": shorter(seeds[0]),
        **seconds(seeds),
    }


@contextmanager
def companions(out: Path, of: Path | None = None) -> Iterator[tuple[Path, Path]]:
    """Where to write ``.csv`` and ``.svg`` to, which at the end take their places beside a JSON.

    An older JSON is removed just before: killed until the new one is there, a run leaves none that
    these are not of.

    Args:
        out: they are named as this.
        of: the JSON; by default the same.

    Raises:
        DyntokError: they cannot be written, would take the JSON's name, or the place of files that
            no evaluation wrote.
    """
    if out.suffix != ".json":
        raise DyntokError(f"{out}: with --sweep a CSV and a plot stand beside a .json")
    table, drawn = out.with_suffix(".csv"), out.with_suffix(".svg")
    for path in (table, drawn):
        check_companion(path)
    with atomic_path(table) as lines, atomic_path(drawn) as drawing:
        yield lines, drawing
        (of or out).resolve().unlink(missing_ok=True)


def remove_companions(out: Path, *others: Path) -> None:
    """Removes an older JSON that has sweeps and its companions, for a run that has none.

    Where no such JSON stands there, files of these names are not of an evaluation, and stay.

    Args:
        out: the JSON that is about to be written.
        others: further paths whose ``.csv`` and ``.svg`` were written with it.
    """
    try:
        older = json.loads(out.read_text("utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(older, dict) and older.get("sweep"):
        files = [path.with_suffix(suffix) for path in (out, *others) for suffix in (".csv", ".svg")]
        for path in files:
            check_companion(path)
        for path in (out.resolve(), *filter(Path.is_file, files)):
            path.unlink()


def fill(lines: Path, drawing: Path, run: dict[str, Any]) -> None:
    """Writes a run's sweeps as CSV and as plot."""
    _table(lines, run)
    plot(run).savefig(drawing, format="svg", metadata={"Date": None})


def _table(path: Path, run: dict[str, Any]) -> None:
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        head = [name for name in run["sweep"][0] if name != "points"]
        columns = ["curve" if name == "name" else name for name in head]
        columns += ["reduction", "language", "shorter_percent", run["metric"]]
        columns += ["spread", "seconds", "processor_seconds"]
        lines.writerow(columns)
        for curve in run["sweep"]:
            for point in curve["points"]:
                for language, row in [("average", point["average"]), *point["languages"].items()]:
                    names = [*(curve[name] for name in head), point["reduction"], language]
                    figures = [row["shorter_percent"], row["value"], std(row["by_seed"])]
                    figures += [row["seconds"], row["processor_seconds"]]
                    lines.writerow([*names, *("" if f is None else f"{f:.3f}" for f in figures)])


def plot(run: dict[str, Any]) -> Any:
    """A matplotlib figure: the metric's average against the reduction, a line for each curve.

    Where a curve has several seeds, a band of their standard deviation lies around it.
    """
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(6.4, 4.2), layout="constrained")
    axes = canvas.subplots()
    for curve in run["sweep"]:
        points = sorted(curve["points"], key=lambda point: point["reduction"])
        reductions = [point["reduction"] for point in points]
        means = np.array([point["average"]["value"] for point in points])
        (line,) = axes.plot(reductions, means, marker="o", label=label(curve["name"]))
        stds = [std(point["average"]["by_seed"]) for point in points]
        if None not in stds:
            ends = means - stds, means + stds
            axes.fill_between(reductions, *ends, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("reduction, % of the largest possible saving")
    axes.set_ylabel(f"{run['metric']}, mean of {len(run['average_of'])} sets")
    axes.set_title(label(f"{run['task']}, {Path(run['model']).name}"))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return canvas
