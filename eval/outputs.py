"""What an evaluation writes takes the place of nothing but what one wrote: no input is lost."""

from __future__ import annotations

import json
from pathlib import Path

from dyntok_jax.types import DyntokError

BEGINNINGS = {".csv": b"curve,", ".svg": b"<?xml"}
"""Of the files that are written beside a JSON."""


def check_json(path: Path) -> None:
    """Whether a JSON may be written here.

    Raises:
        DyntokError: a file is there that no evaluation wrote.
    """
    if not path.is_file():
        return
    content = path.read_bytes()
    try:
        ours = "commit" in dict(json.loads(content or b'{"commit": ""}'))
    except (ValueError, TypeError, RecursionError):
        ours = False
    _check(path, ours)


def check_companion(path: Path) -> None:
    """Whether a CSV or a plot may be written here.

    Raises:
        DyntokError: a file is there that no evaluation wrote.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        beginning = file.read(6)
    _check(path, not beginning or beginning.startswith(BEGINNINGS[path.suffix]))


def _check(path: Path, ours: bool) -> None:
    if not ours:
        raise DyntokError(f"{path}: is there and no evaluation wrote it; give another file")
