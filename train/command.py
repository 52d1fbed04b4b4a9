"""The frame of a training command: its options, messages and errors."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from dyntok_jax.command_line import Parser, open_standard_error
from dyntok_jax.host_memory import keep_freed_memory
from dyntok_jax.types import DyntokError


def make_parser(name: str, description: str | None) -> Parser:
    """The parser of ``python -m train.NAME``."""
    return Parser(
        prog=f"python -m train.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a run that a file describes."""
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields of the file")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Adds the option that compiles instead of training."""
    parser.add_argument("--dry-run", action="store_true", help="compile one step and report it")


def add_distributed(parser: argparse.ArgumentParser) -> None:
    """Adds the option of a run of several processes; :func:`join_processes` does what it says."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="one process of several, which jax.distributed finds by itself: on TPU slices and "
        "under Slurm, Open MPI or Kubernetes",
    )


def join_processes() -> None:
    """Finds the other processes of the run.

    Raises:
        DyntokError: they do not find one another.
    """
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise DyntokError(
            f"--distributed: the processes do not find one another ({said})"
        ) from error


def run_command(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None,
    level: int = logging.INFO,
) -> None:
    """Parses and works; an error of this package or of a file ends the process with one line.

    Args:
        parser: with the command's options.
        work: what the command does with them.
        arguments: of the command line; None for those of the process.
        level: least of the messages that are shown; where it is that of warnings they say so.
    """
    open_standard_error()
    # Overrides of a config may stand before, between and behind options.
    options = parser.parse_intermixed_args(arguments)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    form = "%(message)s" if level < logging.WARNING else "%(levelname)s: %(message)s"
    # By force: the library that stores checkpoints has set up its own on import.
    logging.basicConfig(level=level, format=form, force=True)
    # At every start it says which kinds of devices are not there.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    keep_freed_memory()
    try:
        work(options)
    except DyntokError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except OSError as error:
        sys.exit(f"error: {error.filename or 'input or output'}: {error.strerror or error}")
