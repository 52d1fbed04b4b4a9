"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from dyntok_jax.types import DyntokError

_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""Errors of writing alone: any other may be of a file that is read meanwhile."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes its place at the end, or is removed on error.

    Raises:
        DyntokError: not a regular file, or in a folder that is missing or cannot be written to; no
            room for what is written.
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
        with _room_for(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder beside ``path`` to fill; it takes its place at the end, or is removed on error.

    Folders above it are made where they are missing, and removed with it.

    Raises:
        DyntokError: ``path`` is there and is no empty folder, or cannot be made; no room for what
            is written.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DyntokError(f"{path}: is there and is no empty folder; give a new one to write")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        _make(partial, path)
        with _room_for(path):
            yield partial
            os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        # Those that hold something stay, as all do above the folder that took its place.
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()


def refuse_input(output: str | Path | None, *inputs: str | Path | None) -> None:
    """Refuses to write over what is read.

    Raises:
        DyntokError: the output is one of the inputs, by where they lead; ``-`` is none.
    """
    for name in inputs:
        if output and name and name != "-" and os.path.realpath(output) == os.path.realpath(name):
            raise DyntokError(f"{output}: is read too; give another file to write")


def folder_digest(folder: Path) -> str:
    """SHA-256 of the files in a folder, in hexadecimal; hidden ones do not count."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _make(partial: Path, path: Path) -> None:
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise DyntokError(f"{path}: cannot be written ({error.strerror})") from error


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Says in one line that there is no room for what is written in this context."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _number(error)
        if number not in _NO_ROOM:
            raise
        raise DyntokError(f"{path}: cannot be written ({os.strerror(number)})") from error


def _number(error: OSError | SafetensorError) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # The library has the system's number only at the end of what it says.
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
