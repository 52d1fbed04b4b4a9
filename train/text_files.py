"""Texts of local files, in random order and with little memory."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import mmap
import os
import re
import unicodedata
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, overload

from dyntok_jax.types import DyntokError

KINDS = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
"""File name endings that are read."""

_HASHED = 1 << 16

_SPACE = re.compile(r"\s")


class Texts(Sequence[str]):
    """Texts in memory or in a mapped file: a few bytes a text beside them."""

    def __init__(self) -> None:
        self._buffers: list[bytes | bytearray | mmap.mmap] = []
        self._places = [array("i"), array("q"), array("q")]

    def add_buffer(self, buffer: bytes | bytearray | mmap.mmap) -> None:
        """Opens a buffer of UTF-8 that the next texts are in."""
        self._buffers.append(buffer)

    def add(self, start: int, end: int) -> None:
        """A text: bytes of the last buffer."""
        for places, value in zip(self._places, (len(self._buffers) - 1, start, end), strict=True):
            places.append(value)

    def __len__(self) -> int:
        return len(self._places[0])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        buffer, start, end = (places[index] for places in self._places)
        return self._buffers[buffer][start:end].decode("utf-8")


def windows(text: str, max_chars: int) -> Iterator[str]:
    """Cuts a text into stretches of ``max_chars`` at most, without the white space around them.

    A cut is at the last white space that leaves room; where there is none, before the last
    character that is no mark of the one before it.
    """
    start, end = _after_space(text, 0), len(text.rstrip())
    while end - start > max_chars:
        spaces = [match.start() for match in _SPACE.finditer(text, start, start + max_chars + 1)]
        cut = spaces[-1] if spaces else start + max_chars
        while not spaces and cut > start + 1 and unicodedata.category(text[cut])[0] == "M":
            cut -= 1
        yield text[start:cut].rstrip()
        start = _after_space(text, cut)
    if start < end:
        yield text[start:end]


def _after_space(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def read_files(
    pattern: str,
    column: str,
    lines: str | None,
    exclude_lines: str | None,
    max_chars: int,
    name: str,
) -> Texts:
    """Reads and checks files whole; those of lines stay on disk, the others fill memory.

    Args:
        pattern: path or glob.
        column: where the text of a JSON object or of a row is.
        lines: which lines or rows of the one file are read, or None for all.
        exclude_lines: which are not.
        max_chars: longer texts are cut by :func:`windows`.
        name: of the source, for errors.

    Raises:
        DyntokError: no such file, or one that is empty, not UTF-8, not of its kind, or has not
            the lines or the column.
    """
    paths = matching_files(pattern, name)
    if len(paths) > 1 and (lines or exclude_lines):
        raise DyntokError(f"{name}: lines are chosen of one file, and {len(paths)} match")
    texts = Texts()
    for path in paths:
        if not path.stat().st_size:
            raise DyntokError(f"{name}: {path} is empty")
        chosen = _Chosen(path, lines, exclude_lines)
        try:
            _read_file(texts, path, column, chosen, max_chars)
        except (OSError, EOFError, zlib.error) as error:
            raise DyntokError(f"{name}: {path} cannot be read ({one_line(error)})") from error
        chosen.check()
    return texts


def matching_files(pattern: str, name: str) -> list[Path]:
    """The files that a path or glob means, sorted.

    Raises:
        DyntokError: there is none; it calls the source by ``name``.
    """
    names = sorted(glob.glob(pattern, recursive=True)) or [pattern]
    # Unlike Path.exists, which raises where a name is too long.
    if names == [pattern] and not os.path.exists(pattern):
        problem = "matches no file" if glob.has_magic(pattern) else "no such file"
        raise DyntokError(f"{name}: {problem}")
    for path in names:
        if not os.path.isfile(path):
            raise DyntokError(f"{name}: {path} is no file; give files or a glob of files")
    return [*map(Path, names)]


def file_identity(path: Path) -> str:
    """By which a changed file is told: its size, and a hash of how it begins and ends.

    Files may have gigabytes, which are not read for it.

    Raises:
        DyntokError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256()
            for place in (0, max(0, size - _HASHED)):
                file.seek(place)
                digest.update(file.read(_HASHED))
    except OSError as error:
        raise DyntokError(f"{path}: cannot be read ({error.strerror})") from error
    return f"{size} bytes, {digest.hexdigest()[:16]}"


def _read_file(texts: Texts, path: Path, column: str, chosen: _Chosen, max_chars: int) -> None:
    if path.name.endswith(".txt"):
        _map_lines(texts, path, chosen, max_chars)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        _append(texts, chosen.of(_json_values(path, column)), max_chars)
    elif path.name.endswith(".parquet"):
        _append(texts, chosen.of(_parquet_values(path, column)), max_chars)
    else:
        raise DyntokError(f"{path}: not a kind that is read; valid are {', '.join(KINDS)}")


def parse_lines(lines: str) -> list[tuple[int, int]]:
    """Of "1-9,12": (1, 9) and (12, 12).

    Raises:
        DyntokError: it is not of this form.
    """
    spans = []
    for part in lines.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,18})(?:-([0-9]{1,18}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last:
            said = shorten(lines, 50, placeholder=" ...")
            raise DyntokError(f'lines {said!r}: valid is like "501-1000" or "1-9,12", from 1 on')
        spans.append((first, last))
    return spans


class _Chosen:
    """Which lines or rows of a file are read."""

    def __init__(self, path: Path, lines: str | None, exclude_lines: str | None):
        self.path = path
        self.wanted = parse_lines(lines) if lines else None
        self.unwanted = parse_lines(exclude_lines) if exclude_lines else []
        self.count = 0

    def next(self) -> bool:
        """Whether the next line is read."""
        self.count += 1
        wanted = self.wanted is None or any(a <= self.count <= b for a, b in self.wanted)
        return wanted and not any(a <= self.count <= b for a, b in self.unwanted)

    def of(self, values: Iterable[str]) -> Iterator[str]:
        """The values that are read."""
        return (value for value in values if self.next())

    def check(self) -> None:
        """Refuses lines beyond the end: the file is not the one that was meant."""
        last = max((b for _, b in [*(self.wanted or []), *self.unwanted]), default=0)
        if last > self.count:
            raise DyntokError(f"{self.path}: line {last} is asked for; it has {self.count} lines")


def _map_lines(texts: Texts, path: Path, chosen: _Chosen, max_chars: int) -> None:
    with path.open("rb") as file:
        texts.add_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        offset = 0
        for raw in file:
            line = _decode(raw, path, chosen.count + 1)
            if chosen.next():
                _add_windows(texts, line, offset, max_chars)
            offset += len(raw)


def _add_windows(texts: Texts, line: str, offset: int, max_chars: int) -> None:
    done = 0
    for window in windows(line.removeprefix("\ufeff"), max_chars):
        start = line.index(window, done)
        offset += len(line[done:start].encode())
        size = len(window.encode())
        texts.add(offset, offset + size)
        done, offset = start + len(window), offset + size


def _decode(raw: bytes, path: Path, number: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{raw[error.start]:02x} at position {error.start + 1}"
        raise DyntokError(f"{path}, line {number}: not UTF-8 ({byte})") from error


def in_memory(values: Iterable[str], max_chars: int) -> Texts:
    """Texts of any origin, cut by :func:`windows`."""
    texts = Texts()
    _append(texts, values, max_chars)
    return texts


def _append(texts: Texts, values: Iterable[str], max_chars: int) -> None:
    buffer = bytearray()
    texts.add_buffer(buffer)
    for value in values:
        for window in windows(value, max_chars):
            start = len(buffer)
            # A lone surrogate, which JSON can spell, has no bytes.
            buffer += window.encode("utf-8", errors="replace")
            texts.add(start, len(buffer))


def _json_values(path: Path, column: str) -> Iterator[str]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}, line {number}"
            line = _decode(raw, path, number).removeprefix("\ufeff")
            if not line.strip():
                yield ""
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DyntokError(f"{where}: not JSON ({error})") from error
            if not isinstance(record, dict):
                raise DyntokError(f"{where}: not a JSON object with a column {column!r}")
            yield text_of(record, column, where)


def _parquet_values(path: Path, column: str) -> Iterator[str]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            parts = [file.schema.column(i).path for i in range(len(file.schema))]
            _check_column({*file.schema_arrow.names, *parts}, column, str(path))
            for batch in file.iter_batches(columns=[column]):
                for record in batch.to_pylist():
                    yield text_of(record, column, str(path))
    except ArrowException as error:
        raise DyntokError(f"{path}: not readable as parquet ({one_line(error)})") from error


def _check_column(columns: Iterable[str], column: str, where: str) -> None:
    if column not in columns:
        raise DyntokError(f"{where}: no column {column!r}; it has {', '.join(sorted(columns))}")


def text_of(record: Any, column: str, where: str) -> str:
    """The text of a record; that of a missing value is empty.

    Args:
        column: its name; ``a.b`` is ``b`` in what stands in column ``a``.

    Raises:
        DyntokError: no such column, or it holds something else.
    """
    value = record
    for part in [column] if column in record else column.split("."):
        _check_column(value if isinstance(value, Mapping) else (), part, where)
        if (value := value[part]) is None:
            return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if not isinstance(value, str):
        raise DyntokError(f"{where}: column {column!r} holds {type(value).__name__}, not strings")
    return value


def one_line(error: Exception) -> str:
    """What an error of another library says, in one line that can be read."""
    return shorten(" ".join(str(error).split()), 300, placeholder=" ...") or type(error).__name__
