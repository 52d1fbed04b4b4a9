"""Writes the README's tables from run files, each between its marks.

    python -m eval.report eval/results/*.json README.md

The marks are ``<!-- bench -->`` and so on, named as in ``TABLES``, each with an end mark such as
``<!-- /bench -->``.

    python -m eval.report fairness --models NAME,… --text FOLDER --out FILE.json

makes the run of the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dyntok_jax.files import atomic_path, refuse_input
from dyntok_jax.types import DyntokError
from eval import report_bench, report_decoder, report_rows, report_tasks, report_vocabulary

Run = dict[str, Any]


def _each(table: Callable[[Run], str]) -> Callable[[Sequence[Run]], str]:
    """A table of each run, one under the other."""
    return lambda runs: "\n\n".join([table(run) for run in runs])


TABLES: dict[str, Callable[[Sequence[Run]], str]] = {
    "bench": _each(report_bench.markdown),
    "distill": _each(report_bench.distill),
    "lora": _each(report_bench.lora),
    "generation": _each(report_bench.generation),
    "retrieval": _each(report_rows.retrieval),
    "continuation": report_rows.continuation,
    "xnli": _each(report_tasks.settings),
    "uner": _each(report_tasks.settings),
    "recall": _each(report_vocabulary.recall),
    "saving": _each(report_vocabulary.saving),
    "likelihood": _each(report_vocabulary.likelihood),
    "diversity": _each(report_vocabulary.diversity),
    "rewriting": _each(report_vocabulary.rewriting),
    "mmlu": _each(report_decoder.mmlu),
    "mt_bench": _each(report_decoder.mt_bench),
    "efficiency": _each(report_decoder.efficiency),
    "fairness": _each(report_tasks.fairness),
}
"""Mark of a table -> what makes it of its runs."""


def main() -> None:
    """Replaces what stands between the marks; or measures, as ``eval.fairness`` says."""
    if sys.argv[1:2] == ["fairness"]:
        from eval import fairness  # here because it loads models, which tables do not need

        fairness.main()
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="JSON files of runs")
    parser.add_argument("readme", type=Path, help="file with the marks")
    options = parser.parse_args()
    found: dict[str, list[Run]] = {}
    try:
        refuse_input(options.readme, *options.runs)
        for path in options.runs:
            run = json.loads(path.read_text("utf-8"))
            name = kind(run, path)
            run = _with_plots(run, path, options.readme)
            _check_whole(name, run, path)
            found.setdefault(name, []).append(run)
        text = options.readme.read_text("utf-8")
    except (DyntokError, OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    for name, runs in found.items():
        pattern = re.escape(f"<!-- {name} -->") + ".*?" + re.escape(f"<!-- /{name} -->")
        if not re.search(pattern, text, re.DOTALL):
            parser.error(f"{options.readme}: no <!-- {name} --> … <!-- /{name} --> in it")
        filled = f"<!-- {name} -->\n{TABLES[name](runs)}\n<!-- /{name} -->"
        text = re.sub(pattern, lambda _, filled=filled: filled, text, flags=re.DOTALL)
    with atomic_path(options.readme) as partial:
        partial.write_text(text, "utf-8")


def _check_whole(name: str, run: Run, path: Path) -> None:
    """Raises ValueError where a run lacks what its table is made of."""
    try:
        TABLES[name]([run])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path}: no whole run of {name} ({error!r})") from error


def _with_plots(run: Run, path: Path, readme: Path) -> Run:
    """The run with its plots as the README reaches them: they stand beside the run's file."""
    folder = os.path.relpath(path.parent, readme.parent)
    drawn = {
        name: (Path(folder) / Path(run[name]).name).as_posix()
        for name in ("plot", "likelihood_plot")
        if name in run
    }
    return run | drawn


def markdown(run: Run, path: Path) -> str:
    """The table of a run.

    Raises:
        ValueError: as :func:`kind`.
    """
    return TABLES[kind(run, path)]([run])


def kind(run: Run, path: Path) -> str:
    """Which table a run belongs to.

    Raises:
        ValueError: to none.
    """
    if isinstance(run, dict) and run.get("task") in TABLES:
        return run["task"]
    marks = {
        "merging": "bench",
        "idle_share": "distill",
        "adapter": "lora",
        "generation": "generation",
        "max_pieces": "retrieval",
        "recall": "recall",
        "continuation_tokens": "continuation",
        "mt_bench": "mt_bench",
        "efficiency": "efficiency",
        "fairness": "fairness",
    }
    for key, name in marks.items():
        if isinstance(run, dict) and key in run:
            return name
    raise ValueError(f"{path}: not a run of one of {', '.join(TABLES)}")


if __name__ == "__main__":
    main()
