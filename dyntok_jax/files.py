"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dyntok_jax.types import DyntokError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes its place at the end, or is removed on error.

    Raises:
        DyntokError: not a regular file, or in a folder that is missing or cannot be written to.
    """
    # A link's target is replaced, not the link; a device or a pipe would be lost.
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise DyntokError(f"{path}: is no regular file; give a file to write")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
    except OSError as error:
        raise DyntokError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder beside ``path`` to fill; it takes its place at the end, or is removed on error.

    Raises:
        DyntokError: ``path`` is there and is no empty folder, or cannot be made.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DyntokError(f"{path}: is there and is no empty folder; give a new one to write")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise DyntokError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
