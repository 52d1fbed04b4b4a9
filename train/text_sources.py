"""Where the texts of a language come from: files, Hugging Face ``datasets`` or TFDS."""

from __future__ import annotations

import glob
import gzip
import json
import mmap
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, overload

from dyntok_jax.types import DyntokError

KINDS = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
"""File name endings that are read."""


@dataclass(frozen=True)
class TextSource:
    """Texts of one language; exactly one of ``files``, ``dataset`` and ``tfds`` is given.

    Attributes:
        language: name, as the model's language table has it.
        files: path or glob: ``.txt`` (a text a line), ``.jsonl``, ``.jsonl.gz`` or ``.parquet``.
        dataset: name of a Hugging Face dataset, or a folder of one.
        tfds: name of a TFDS dataset (``name/config:version``), or a folder of one.
        config_name: configuration of ``dataset``.
        split: split of ``dataset`` or ``tfds``, "train" by default.
        column: the text's name in a record; not for ``.txt``.
        streaming: read ``dataset`` or ``tfds`` as it goes, instead of whole into memory.
        lines: only these of one file's lines or rows, counted from 1: "501-1000" or "1-9,12".
        exclude_lines: not these.
        weight: of these texts against those of other sources.
    """

    language: str
    files: str | None = None
    dataset: str | None = None
    tfds: str | None = None
    config_name: str | None = None
    split: str | None = None
    column: str = "text"
    streaming: bool = False
    lines: str | None = None
    exclude_lines: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        given = [name for name in (self.files, self.dataset, self.tfds) if name]
        if len(given) != 1:
            raise DyntokError(
                f"source of language {self.language!r}: {len(given)} of files, dataset and tfds "
                "are given; exactly one must be"
            )
        if not self.weight > 0:
            raise DyntokError(f"{self}: weight is {self.weight}; it must be above 0")
        misplaced = ("streaming", "split") if self.files else ("lines", "exclude_lines")
        misplaced += () if self.dataset else ("config_name",)
        for name in misplaced:
            if getattr(self, name):
                raise DyntokError(f"{self}: {name} does not go with {self._kind}")
        for spans in (self.lines, self.exclude_lines):
            if spans:
                _spans(spans)

    def __str__(self) -> str:
        return f"{self._kind} {self.files or self.dataset or self.tfds} ({self.language})"

    @property
    def _kind(self) -> str:
        return "files" if self.files else "dataset" if self.dataset else "tfds"


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
    text = text.strip()
    while len(text) > max_chars:
        spaces = [match.start() for match in re.finditer(r"\s", text[: max_chars + 1])]
        cut = spaces[-1] if spaces else max_chars
        while not spaces and cut > 1 and unicodedata.category(text[cut])[0] == "M":
            cut -= 1
        yield text[:cut].rstrip()
        text = text[cut:].lstrip()
    if text:
        yield text


class Stream(Protocol):
    """Texts that are read one after the other; the end is followed by the start."""

    def seek(self, position: Any) -> None:
        """Goes on at a position, or at the start for None."""
        ...

    def position(self) -> Any:
        """JSON value with which :meth:`seek` goes on right after what has been read."""
        ...

    def read(self, count: int) -> list[str]:
        """The next texts: ``count``, or what is left; none at the end."""
        ...


def open_texts(
    source: TextSource, max_chars: int, process_index: int = 0, process_count: int = 1
) -> Texts | Stream:
    """Opens a source, checking it as far as that is possible without reading a stream.

    Args:
        max_chars: longer texts are cut by :func:`windows`; those of a stream are not.
        process_index: which part of a stream is read.
        process_count: how many parts there are.

    Raises:
        DyntokError: a file that is missing, empty or not UTF-8; lines it does not have; a column
            that is not there; a dataset that cannot be loaded; no text at all.
    """
    if source.files:
        texts = _read_files(source, max_chars)
    elif source.dataset:
        records = _hub_records(source)
        if source.streaming:
            return _HubStream(source, records, process_index, process_count)
        texts = _in_memory(_values(source, records), max_chars)
    else:
        records = _tfds_records(source)
        if source.streaming:
            return _TfdsStream(source, records, process_index, process_count)
        texts = _in_memory(_values(source, records), max_chars)
    if not len(texts):
        raise DyntokError(f"{source}: holds no text, only blank lines or values")
    return texts


def _read_files(source: TextSource, max_chars: int) -> Texts:
    assert source.files is not None
    names = sorted(glob.glob(source.files, recursive=True)) or [source.files]
    if names == [source.files] and not Path(source.files).exists():
        problem = "matches no file" if glob.has_magic(source.files) else "no such file"
        raise DyntokError(f"{source}: {problem}")
    if len(names) > 1 and (source.lines or source.exclude_lines):
        raise DyntokError(f"{source}: lines are chosen of one file, and {len(names)} match")
    texts = Texts()
    for path in map(Path, names):
        if not path.is_file():
            raise DyntokError(f"{path} ({source.language}): is no file; give a file or a glob")
        if not path.stat().st_size:
            raise DyntokError(f"{path} ({source.language}): the file is empty")
        chosen = _Chosen(source, path)
        if path.name.endswith(".txt"):
            _map_lines(texts, path, chosen, max_chars)
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            _append(texts, chosen.of(_json_values(path, source.column)), max_chars)
        elif path.name.endswith(".parquet"):
            _append(texts, chosen.of(_parquet_values(path, source.column)), max_chars)
        else:
            raise DyntokError(f"{path}: not a kind that is read; valid are {', '.join(KINDS)}")
        chosen.check()
    return texts


def _spans(lines: str) -> list[tuple[int, int]]:
    """Of "1-9,12": (1, 9) and (12, 12)."""
    spans = []
    for part in lines.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last:
            raise DyntokError(f'lines {lines!r}: valid is like "501-1000" or "1-9,12", from 1 on')
        spans.append((first, last))
    return spans


class _Chosen:
    """Which lines or rows of a file are read."""

    def __init__(self, source: TextSource, path: Path):
        self.path = path
        self.wanted = _spans(source.lines) if source.lines else None
        self.unwanted = _spans(source.exclude_lines) if source.exclude_lines else []
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


def _in_memory(values: Iterable[str], max_chars: int) -> Texts:
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
            yield _value(record, column, where)


def _parquet_values(path: Path, column: str) -> Iterator[str]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            _check_column(file.schema_arrow.names, column, str(path))
            for batch in file.iter_batches(columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield _value({column: value}, column, str(path))
    except ArrowException as error:
        raise DyntokError(f"{path}: not readable as parquet ({_line(error)})") from error


def _check_column(columns: Iterable[str], column: str, where: str) -> None:
    if column not in columns:
        raise DyntokError(f"{where}: no column {column!r}; it has {', '.join(sorted(columns))}")


def _value(record: Any, column: str, where: str) -> str:
    """A record's text; missing values are empty."""
    _check_column(record, column, where)
    value = record[column]
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if not isinstance(value, str | None):
        raise DyntokError(f"{where}: column {column!r} holds {type(value).__name__}, not strings")
    return value or ""


def _values(source: TextSource, records: Iterable[Any]) -> Iterator[str]:
    return (_value(record, source.column, str(source)) for record in records)


def _hub_records(source: TextSource) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            source.dataset or "",
            source.config_name,
            split=source.split or "train",
            streaming=source.streaming,
        )
    except Exception as error:  # the library raises many kinds; all mean it cannot be had
        raise DyntokError(f"{source}: cannot be loaded ({_line(error)})") from error


def _tfds_records(source: TextSource) -> Any:
    import tensorflow_datasets as tfds

    name, split = source.tfds or "", source.split or "train"
    try:
        if Path(name).is_dir():
            builder: Any = tfds.builder_from_directory(name)
            return builder.as_data_source(split=split)
        return tfds.data_source(name, split=split)
    except Exception as error:  # the library raises many kinds; all mean it cannot be had
        raise DyntokError(f"{source}: cannot be loaded ({_line(error)})") from error


class _HubStream:
    """A Hugging Face dataset read as it comes, every process its own part."""

    def __init__(self, source: TextSource, records: Any, process_index: int, process_count: int):
        from datasets.distributed import split_dataset_by_node

        self.source = source
        self.records = split_dataset_by_node(records, process_index, process_count)
        self.start = self.records.state_dict()
        self.values = _values(source, self.records)

    def seek(self, position: Any) -> None:
        self.records.load_state_dict(position or self.start)
        self.values = _values(self.source, self.records)

    def position(self) -> Any:
        return self.records.state_dict()

    def read(self, count: int) -> list[str]:
        return list(islice(self.values, count))


class _TfdsStream:
    """A TFDS dataset read from the start to the end, every process its own part."""

    def __init__(self, source: TextSource, records: Any, process_index: int, process_count: int):
        self.source = source
        self.records = records
        self.own = range(process_index, len(records), process_count)
        self.next = 0

    def seek(self, position: Any) -> None:
        self.next = position or 0

    def position(self) -> Any:
        return self.next

    def read(self, count: int) -> list[str]:
        own = self.own[self.next : self.next + count]
        self.next += len(own)
        return list(_values(self.source, (self.records[i] for i in own)))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
