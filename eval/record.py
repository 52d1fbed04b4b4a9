"""The frame of an evaluation command: its errors, line ranges, models and the file it writes."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from dyntok_jax.command_line import Parser
from dyntok_jax.embed import shipped
from dyntok_jax.embed.zett import table_size
from dyntok_jax.files import atomic_path
from dyntok_jax.host_memory import keep_freed_memory
from dyntok_jax.types import DyntokError
from eval import outputs, report

STATIC = "static"
"""The name, among rows, of reading base tokens by the model's own rows."""


def run(
    parser: Parser,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    names_model: bool = True,
) -> None:
    """Parses, measures, writes ``--out`` atomically with what made it, and prints its table.

    The table is the one that ``eval.report`` makes of the file.

    Args:
        parser: with the command's options; ``--model`` and ``--out`` are added.
        measure: figures of the parsed options, JSON values.
        names_model: whether ``--model`` is an option of this command.
    """
    if names_model:
        parser.add_argument("--model", required=True, metavar="NAME", help="its name or folder")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="JSON to write")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Overrides of a config may stand before, between and behind options.
    options = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    keep_freed_memory()
    commit, start = git_commit(), time.perf_counter()
    try:
        _check_different(options)
        outputs.check_json(options.out)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(options.out) as partial:
            figures = measure(options)
            figures |= {
                "command": _command(parser.prog),
                "commit": commit,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "seconds": round(time.perf_counter() - start, 1),
            }
            text = json.dumps(figures, ensure_ascii=False, indent=1) + "\n"
            # A file's name that is not UTF-8 is in the command.
            partial.write_text(text, "utf-8", errors="backslashreplace")
    except DyntokError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename or options.out}: {error.strerror}")
    try:
        _show(report.markdown(json.loads(text), options.out))
        if sys.stdout:
            sys.stdout.flush()
    except OSError as error:
        # What is left is not written at the end, which would fail again.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        parser.error(f"{options.out} is written, its table not shown: {error.strerror}")


def _check_different(options: argparse.Namespace) -> None:
    """Refuses a file that options name twice: figures stand under its name."""
    lists = [value for value in vars(options).values() if isinstance(value, list)]
    seen = set()
    for path in (part for value in lists for part in value if isinstance(part, Path)):
        # By where they lead, since one file may be written in several ways.
        if (place := os.path.realpath(path)) in seen:
            raise DyntokError(f"{path}: is given twice; give each file once")
        seen.add(place)


def _show(text: str) -> None:
    """Prints Markdown; tables as wide as they are, since cells that are cut say nothing."""
    console, wide = Console(), Console(width=1000)
    for block in text.encode("utf-8", "backslashreplace").decode("utf-8").split("\n\n"):
        (wide if block.startswith("|") else console).print(Markdown(block))


def git_commit() -> str:
    """The checkout's commit, ``+changes`` where files differ from it.

    Of a copy without history ``DYNTOK_COMMIT`` says it, as ``launch_tpu.sh`` does; else it is
    ``unknown``.
    """
    folder, said = Path(__file__).parents[1], os.environ.get("DYNTOK_COMMIT", "unknown")
    # Elsewhere a folder further up may be a checkout of something else.
    if not (folder / ".git").exists():
        return said

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, cwd=folder, check=True
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        return commit + ("+changes" if git("status", "--short") else "")
    except (OSError, subprocess.CalledProcessError):
        return said


def names(text: str) -> list[str]:
    """An option's list of names, separated by commas.

    Raises:
        argparse.ArgumentTypeError: an empty name, or one twice.
    """
    found = [name.strip() for name in text.split(",")]
    if "" in found or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: valid are different names between commas")
    return found


def numbers(text: str) -> list[int]:
    """An option's list of whole numbers from 1, separated by commas."""
    found = [int(word) if word.isdecimal() else 0 for word in names(text)]
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(
            f"{text!r}: valid are different numbers from 1 between commas"
        )
    return found


def positive(text: str) -> int:
    """An option's whole number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: valid is a number from 1")
    return int(text)


def from_zero(text: str) -> int:
    """An option's whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: valid is a number from 0")
    return int(text)


def percents(text: str) -> list[float]:
    """An option's list of percentages, separated by commas."""
    try:
        found = [float(word) for word in names(text)]
    except ValueError:
        found = []
    different = len(set(found)) == len(found)
    if not found or not different or not all(0 <= value <= 100 for value in found):
        raise argparse.ArgumentTypeError(f"{text!r}: valid are different percentages from 0 to 100")
    return found


def percent(text: str) -> float:
    """An option's percentage."""
    found = percents(text)
    if len(found) > 1:
        raise argparse.ArgumentTypeError(f"{text!r}: valid is one percentage from 0 to 100")
    return found[0]


def line_range(text: str) -> tuple[int, int]:
    """An option's range of lines, A-B: counted from 1, both ends included."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r}: valid is A-B, lines A to B counted from 1")
    return int(first), int(last)


def language_row(rows: str, language: str | None) -> int | None:
    """Row of a language, by name or number; None for rows without a table of languages.

    Raises:
        DyntokError: a name that a table does not have.
    """
    return shipped.language_row(rows, language) if has_languages(rows) else None


def has_languages(rows: str) -> bool:
    """Whether rows are a hypernetwork's that has a table of languages."""
    return Path(rows).is_dir() and table_size(Path(rows)) > 0


def _command(program: str) -> str:
    """What was typed, with JAX's precision of products if the environment sets one."""
    name = "JAX_DEFAULT_MATMUL_PRECISION"
    set_here = [f"{name}={os.environ[name]}"] if os.environ.get(name) else []
    return shlex.join([*set_here, "python", "-m", program, *sys.argv[1:]])


def read_lines(path: Path, lines: tuple[int, int] | None) -> list[str]:
    """The lines of a text file, or those of a range; a byte order mark is none of the text.

    Raises:
        DyntokError: no such file, not UTF-8, or without some of the lines.
    """
    try:
        text = path.read_text("utf-8").removeprefix("\ufeff")
        found = text.removesuffix("\n").split("\n")
    except OSError as error:
        raise DyntokError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DyntokError(f"{path}: not UTF-8 (byte {error.start + 1})") from error
    if found == [""]:
        raise DyntokError(f"{path}: an empty file; valid is one text a line")
    first, last = lines or (1, len(found))
    if last > len(found):
        raise DyntokError(f"{path}: has {len(found)} lines; lines {first}-{last} are asked for")
    return found[first - 1 : last]


def gap_closed(static: float, fvt: float, other: float) -> float | None:
    """The share of the way from FVT to static that other rows go; None where there is no way."""
    return (other - fvt) / (static - fvt) if static != fvt else None
