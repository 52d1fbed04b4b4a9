"""Training curves of runs as one HTML page that needs nothing else.

    python -m eval.curves out/hypernet_e5 out/hypernet_smollm2 --out eval/results/curves.html

A run is its folder or its ``metrics.jsonl``. Every figure that a run recorded has a plot, with all
runs that have it; figures of training are also drawn as running means.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, select_autoescape

from dyntok_jax.command_line import Parser
from dyntok_jax.demo.drawing import label, new_axes, svg
from dyntok_jax.files import atomic_path, refuse_input
from dyntok_jax.types import DyntokError
from eval.report_rows import short_names
from eval.task_config import repeated

KINDS = {"evaluation": "Held-out text", "train": "Training"}
"""Kinds of records, and what the page calls them."""

LOGARITHMIC = ("loss", "grad_norm")
"""Endings of figures that are drawn on a logarithmic axis."""

WINDOWS = 25
"""Running means are over this part of a run's records."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Training curves</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
    padding: 0 1rem; color: #1c2733; }
  table { border-collapse: collapse; }
  td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #dde; }
  td:first-child, th:first-child { text-align: left; font-weight: bold; }
  .plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem; }
  .plots svg { width: 100%; height: auto; }
</style>
<h1>Training curves</h1>
<table>
  <tr><th>run</th><th>steps</th><th>held-out figure</th><th>first</th><th>last</th></tr>
  {% for row in rows %}
  <tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
  {% endfor %}
</table>
{% for title, plots in parts %}
<h2>{{ title }}</h2>
<div class="plots">{% for plot in plots %}<div>{{ plot | safe }}</div>{% endfor %}</div>
{% endfor %}
</html>
"""

Records = Sequence[Mapping[str, Any]]


def main() -> None:
    """The command."""
    parser = Parser(
        prog="eval.curves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder or metrics.jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="HTML to write")
    options = parser.parse_args()
    try:
        files = [path / "metrics.jsonl" if path.is_dir() else path for path in options.runs]
        refuse_input(options.out, *files)
        runs = zip(names(files), map(read_run, files), strict=True)
        text = page(dict(runs))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(options.out) as partial:
            # A folder's name may not be UTF-8.
            partial.write_text(text, "utf-8", errors="backslashreplace")
    except (DyntokError, OSError) as error:
        parser.error(str(error))


def names(files: Sequence[Path]) -> list[str]:
    """What runs are called: as much of their folders as tells them apart.

    Raises:
        DyntokError: a run twice.
    """
    found = [file.resolve() for file in files]
    if twice := repeated(found):
        raise DyntokError(f"{twice}: is there twice; valid are different runs")
    return short_names([str(f.parent if f.name == "metrics.jsonl" else f) for f in found])


def read_run(file: Path) -> Records:
    """Records of a run.

    Raises:
        DyntokError: no such file, or not one of metrics.
    """
    records = []
    try:
        for line in file.read_bytes().splitlines():
            records.append(_checked(json.loads(line.decode("utf-8"))))
    except OSError as error:
        raise DyntokError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        where = f"{file}, line {len(records) + 1}"
        raise DyntokError(f"{where}: not the metrics of a run ({error})") from error
    if not records:
        raise DyntokError(f"{file}: not the metrics of a run (it is empty)")
    return records


def _checked(record: Any) -> Mapping[str, Any]:
    """A record of a step.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(record, dict) or record.get("kind") not in [*KINDS]:
        raise ValueError(f"valid are objects whose kind is one of {', '.join(KINDS)}")
    if type(record.get("step")) is not int:
        raise ValueError(f"step {record.get('step')!r:.50}; valid is a whole number")
    for figure, value in record.items():
        # What cannot be printed cannot be written either, if it is half of a letter.
        if not figure.isprintable():
            raise ValueError(f"figure {figure!r:.50}; valid are names of printable letters")
        if figure != "kind" and value is not None and not _is_finite(value):
            raise ValueError(f"{figure} {value!r:.50}; valid is a finite number or null")
    return record


def _is_finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def page(runs: Mapping[str, Records]) -> str:
    """The HTML page of runs by their names."""
    parts, rows = [], []
    for kind, title in KINDS.items():
        found = {run: _series(records, kind) for run, records in runs.items()}
        figures = dict.fromkeys(figure for series in found.values() for figure in series)
        plots = [_plot(figure, found, kind == "train") for figure in figures]
        parts += [(title, plots)] if plots else []
    for run, records in runs.items():
        steps = max(record["step"] for record in records)
        for figure, (_, values) in (_series(records, "evaluation") or {"": ([], [])}).items():
            ends = [f"{value:.4g}" for value in (values[0], values[-1])] if values else ["", ""]
            rows.append((run, steps, figure, *ends))
    environment = Environment(autoescape=select_autoescape(default=True, default_for_string=True))
    return environment.from_string(PAGE).render(rows=rows, parts=parts)


def _series(records: Records, kind: str) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every figure; null, which stands for what is not finite, is left out."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for record in records:
        for figure, value in record.items() if record["kind"] == kind else ():
            if figure in ("step", "kind") or value is None:
                continue
            steps, values = series.setdefault(figure, ([], []))
            steps.append(record["step"])
            values.append(value)
    return series


def _plot(figure: str, found: Mapping[str, dict[str, Any]], smooth: bool) -> str:
    axes, drawn = new_axes(figure), []
    for number, (run, series) in enumerate(found.items()):
        if figure not in series:
            continue
        steps, values = series[figure]
        colour = f"C{number % 10}"
        drawn += values
        if smooth:
            axes.plot(steps, values, color=colour, alpha=0.3, lw=1)
        means = running_mean(values) if smooth else values
        marker = "" if smooth else "."
        axes.plot(steps, means, color=colour, lw=1.5, marker=marker, label=label(run))
    if figure.endswith(LOGARITHMIC) and min(drawn) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("step", fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    return svg(axes)


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean of the values around each, over a part of all of them; fewer at the ends."""
    reach = math.ceil(len(values) / WINDOWS) // 2
    around = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [float(np.mean(part)) for part in around]


if __name__ == "__main__":
    main()
