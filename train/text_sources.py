"""Where the texts of a language come from: files, Hugging Face ``datasets`` or TFDS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from dyntok_jax.types import DyntokError
from train.text_files import (
    Texts,
    file_identity,
    in_memory,
    matching_files,
    one_line,
    parse_lines,
    read_files,
    text_of,
)


@dataclass(frozen=True)
class TextSource:
    """Texts of one language; exactly one of ``files``, ``dataset`` and ``tfds`` is given.

    Attributes:
        language: name, as the model's language table has it.
        files: path or glob: ``.txt`` (a text a line), ``.jsonl``, ``.jsonl.gz`` or ``.parquet``.
        dataset: name of a Hugging Face dataset, a folder of one, or a glob of one's ``.jsonl.gz``,
            ``.jsonl`` or ``.parquet`` files, ``hf://datasets/NAME/…`` (all there is to a dataset
            that would be read by a script of its own).
        tfds: name of a TFDS dataset (``name/config:version``), or a folder of one.
        config_name: configuration of ``dataset``.
        split: split of ``dataset`` or ``tfds``, "train" by default.
        column: the text's name in a record, ``a.b`` where it is a part of column ``a``; not for
            ``.txt``.
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
        misplaced += () if self.dataset and not self.file_kind else ("config_name",)
        for name in misplaced:
            if getattr(self, name):
                raise DyntokError(f"{self}: {name} does not go with {self._kind}")
        for spans in (self.lines, self.exclude_lines):
            if spans:
                parse_lines(spans)

    def __str__(self) -> str:
        return f"{self._kind} {self.files or self.dataset or self.tfds} ({self.language})"

    @property
    def file_kind(self) -> str | None:
        """How files on the hub are read; None for a dataset by name."""
        name = self.dataset or ""
        if not name.startswith("hf://"):
            return None
        for kind, endings in (("json", (".jsonl", ".jsonl.gz")), ("parquet", (".parquet",))):
            if name.endswith(endings):
                return kind
        raise DyntokError(f"{self}: valid are files .jsonl, .jsonl.gz and .parquet")

    @property
    def contents(self) -> dict[str, str]:
        """The identity of each local file; nothing of a dataset.

        Raises:
            DyntokError: there is no such file, or it cannot be read.
        """
        if not self.files:
            return {}
        return {str(path): file_identity(path) for path in matching_files(self.files, str(self))}

    @property
    def _kind(self) -> str:
        return "files" if self.files else "dataset" if self.dataset else "tfds"


class Stream(Protocol):
    """Texts that are read one after the other; the end is followed by the start."""

    def seek(self, position: Any) -> None:
        """Goes on at a position, or at the start for None."""
        ...

    def position(self) -> Any:
        """JSON value with which :meth:`seek` goes on right after what has been read."""
        ...

    def read(self, count: int) -> list[str]:
        """The next texts: ``count``, or what is left; none at the end.

        Raises:
            DyntokError: a record that cannot be read, or whose column is not there or not text.
        """
        ...


def open_texts(source: TextSource, max_chars: int) -> Texts:
    """Opens and checks a source that is not streaming.

    Args:
        max_chars: longer texts are cut, by ``text_files.windows``.

    Raises:
        DyntokError: a file that is missing, empty or not UTF-8; lines it does not have; a column
            that is not there; a dataset that cannot be loaded; no text at all.
    """
    if source.files:
        lines = source.lines, source.exclude_lines
        texts = read_files(source.files, source.column, *lines, max_chars, str(source))
    else:
        texts = in_memory(_values(source, _records(source)), max_chars)
    if not len(texts):
        raise DyntokError(f"{source}: holds no text, only blank lines or values")
    return texts


def check_readable(sources: Sequence[TextSource], max_chars: int) -> None:
    """Opens all sources that are not streaming, to see early that they can be.

    Raises:
        DyntokError: as :func:`open_texts`.
    """
    for source in sources:
        if not source.streaming:
            open_texts(source, max_chars)


def open_stream(source: TextSource, process_index: int = 0, process_count: int = 1) -> Stream:
    """Opens a streaming source.

    Args:
        process_index: which part of it is read.
        process_count: how many parts there are.

    Raises:
        DyntokError: it cannot be loaded.
    """
    kind = _HubStream if source.dataset else _TfdsStream
    return kind(source, _records(source), process_index, process_count)


def _records(source: TextSource) -> Any:
    try:
        return _hub_records(source) if source.dataset else _tfds_records(source)
    except Exception as error:  # the libraries raise many kinds; all mean it cannot be had
        raise DyntokError(f"{source}: cannot be loaded ({one_line(error)})") from error


def _hub_records(source: TextSource) -> Any:
    import datasets
    from datasets.exceptions import DatasetGenerationError

    options = {"split": source.split or "train", "streaming": source.streaming}
    try:
        if source.file_kind:
            return datasets.load_dataset(source.file_kind, data_files=source.dataset, **options)
        return datasets.load_dataset(source.dataset or "", source.config_name, **options)
    except DatasetGenerationError as error:
        # It says that there is an error, and its cause says which.
        raise DyntokError(f"{error}: {error.__cause__}") from error


def _tfds_records(source: TextSource) -> Any:
    import tensorflow_datasets as tfds

    name, split = source.tfds or "", source.split or "train"
    if Path(name).is_dir():
        builder: Any = tfds.builder_from_directory(name)
        return builder.as_data_source(split=split)
    return tfds.data_source(name, split=split)


def _values(source: TextSource, records: Iterable[Any]) -> Iterator[str]:
    try:
        for record in records:
            yield text_of(record, source.column, str(source))
    except DyntokError:
        raise
    except Exception as error:  # likewise of many kinds, for what is not UTF-8 or damaged
        raise DyntokError(f"{source}: cannot be read ({one_line(error)})") from error


class _HubStream:
    """A Hugging Face dataset read as it comes, every process its own part."""

    def __init__(self, source: TextSource, records: Any, process_index: int, process_count: int):
        from datasets.distributed import split_dataset_by_node

        self.source = source
        self.records = split_dataset_by_node(records, process_index, process_count)
        self.start = self.records.state_dict()
        self.seek(None)

    def seek(self, position: Any) -> None:
        # The dataset tells its new state only once something has been read.
        self.at = position or self.start
        self.records.load_state_dict(self.at)
        self.values = _values(self.source, self.records)

    def position(self) -> Any:
        return self.at

    def read(self, count: int) -> list[str]:
        texts = list(islice(self.values, count))
        self.at = self.records.state_dict()
        return texts


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
