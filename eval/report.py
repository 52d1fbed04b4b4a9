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
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dyntok_jax.command_line import Parser
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
    parser = Parser(
        "eval.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="JSON files of runs")
    parser.add_argument("readme", type=Path, help="file with the marks")
    options = parser.parse_args()
    found: dict[str, list[Run]] = {}
    try:
        refuse_input(options.readme, *options.runs)
        for path, count in Counter(map(os.path.realpath, options.runs)).items():
            if count > 1:
                raise DyntokError(f"{path}: is given twice; give each run once")
        for path in options.runs:
            name, run = _read(path, options.readme)
            found.setdefault(name, []).append(run)
        text = _text(options.readme)
        for name, runs in found.items():
            text = _filled(text, name, TABLES[name](runs), options.readme)
        with atomic_path(options.readme) as partial:
            # A file's name that is not UTF-8 is in a command.
            partial.write_bytes(text.encode("utf-8", "backslashreplace"))
    except (DyntokError, OSError) as error:
        parser.error(str(error))


def _read(path: Path, readme: Path) -> tuple[str, Run]:
    """A run, of which its table can be made, and the table's name.

    Raises:
        DyntokError: no such run.
    """
    try:
        run = json.loads(_text(path).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise DyntokError(f"{path}: not JSON ({error})") from error
    name = kind(run, path)
    try:
        run = _with_plots(run, path, readme)
        TABLES[name]([run])
    except Exception as error:  # of any kind, since fields may hold anything
        raise DyntokError(f"{path}: no whole run of {name} ({error!r:.200})") from error
    return name, run


def _text(path: Path) -> str:
    """A file's text, with its own ends of lines."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DyntokError(f"{path}: not UTF-8 (byte {error.start + 1})") from error


def _filled(text: str, name: str, table: str, readme: Path) -> str:
    """The text with a table between its marks.

    Raises:
        DyntokError: not one mark of the beginning and then one of the end, with none between.
    """
    marks = [*re.finditer(rf"<!-- (/?(?:{'|'.join(TABLES)})) -->", text)]
    places = [i for i, mark in enumerate(marks) if mark[1].removeprefix("/") == name]
    valid = f"valid is one <!-- {name} --> … <!-- /{name} --> without a mark between"
    if not places:
        raise DyntokError(f"{readme}: no <!-- {name} --> in it; {valid}")
    first = places[0]
    if places != [first, first + 1] or [marks[i][1] for i in places] != [name, f"/{name}"]:
        lines = ", ".join(str(text.count("\n", 0, marks[i].start()) + 1) for i in places)
        raise DyntokError(f"{readme}: marks of {name} in line {lines}; {valid}")
    line_end = "\r\n" if "\r\n" in text else "\n"
    filled = f"\n{table}\n".replace("\n", line_end)
    return text[: marks[first].end()] + filled + text[marks[first + 1].start() :]


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
        DyntokError: as :func:`kind`.
    """
    return TABLES[kind(run, path)]([run])


def kind(run: Any, path: Path) -> str:
    """Which table a run belongs to.

    Raises:
        DyntokError: to none.
    """
    run = run if isinstance(run, dict) else {}
    if (task := run.get("task")) in [*TABLES]:
        return task
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
        if key in run:
            return name
    raise DyntokError(f"{path}: not a run of one of {', '.join(TABLES)}")


if __name__ == "__main__":
    main()
