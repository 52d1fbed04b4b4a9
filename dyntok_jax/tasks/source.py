"""Where a task's examples come from: a local file, Hugging Face ``datasets`` or TFDS."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import numpy as np

from dyntok_jax.types import DyntokError

T = TypeVar("T")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class TaskSource:
    """Examples of one split; exactly one of ``files``, ``dataset`` and ``tfds`` is given.

    Attributes:
        files: path of a local file, of a kind that the task reads.
        dataset: name of a Hugging Face dataset, or a folder of one.
        tfds: name of a TFDS dataset (``name/config:version``), or a folder of one.
        config_name: configuration of ``dataset``.
        revision: of ``dataset``, such as ``refs/convert/parquet`` where it is a script otherwise.
        split: of ``dataset`` or ``tfds``.
        language: name in reports; also which of a record's translations is read.
        first: only so many examples, from the start; all by default.
    """

    files: str | None = None
    dataset: str | None = None
    tfds: str | None = None
    config_name: str | None = None
    revision: str | None = None
    split: str = "train"
    language: str = ""
    first: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in (self.files, self.dataset, self.tfds) if name]
        if len(given) != 1:
            raise DyntokError(
                f"source {self.language!r}: {len(given)} of files, dataset and tfds are given; "
                "exactly one must be"
            )
        if self.first is not None and self.first < 1:
            raise DyntokError(f"{self}: first is {self.first}; valid is a number from 1")
        if not self.dataset and (self.config_name or self.revision):
            raise DyntokError(f"{self}: config_name and revision go with dataset only")

    def __str__(self) -> str:
        """The file, or the dataset's name, configuration and split."""
        if self.files:
            return self.files
        return " ".join(filter(None, [self.dataset or self.tfds, self.config_name, self.split]))

    def examples(self, found: Iterable[T]) -> list[T]:
        """The first of what was found.

        Raises:
            DyntokError: nothing was found.
        """
        chosen = list(islice(found, self.first))
        if not chosen:
            raise DyntokError(f"{self}: an empty split; valid is one example at least")
        return chosen


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A local file's text, a byte order mark left out.

    Raises:
        DyntokError: no such file, or not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise DyntokError(f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x})") from error
    except OSError as error:
        raise DyntokError(f"{path}: {error.strerror}") from error


def records(source: TaskSource) -> Iterator[tuple[str, Record]]:
    """Records of a ``.jsonl`` file or a dataset, each with where it stands.

    Values of a dataset's class labels are their names, its bytes texts and its arrays lists.

    Raises:
        DyntokError: the file or the dataset cannot be read, or a class label has no name.
    """
    if source.files:
        yield from _json_records(Path(source.files))
        return
    try:
        found, features = _hub(source) if source.dataset else _tfds(source)
        for number, record in enumerate(found, start=1):
            where = f"{source}, record {number}"
            yield (
                where,
                {
                    key: _named(_plain(value), features.get(key), f"{where}: {key}")
                    for key, value in record.items()
                },
            )
    except DyntokError:
        raise
    except Exception as error:  # the libraries raise many kinds; all mean it cannot be had
        said = shorten(" ".join(str(error).split()), 300, placeholder=" ...")
        raise DyntokError(f"{source}: cannot be loaded ({said or type(error).__name__})") from error


def field(record: Record, name: str, where: str) -> Any:
    """A record's field.

    Raises:
        DyntokError: it has none of this name.
    """
    if name not in record:
        raise DyntokError(f"{where}: no field {name!r}; it has {', '.join(map(repr, record))}")
    return record[name]


def listed(record: Record, name: str, where: str) -> list[Any]:
    """A record's field that is a list.

    Raises:
        DyntokError: it has none of this name, or something else there.
    """
    value = field(record, name, where)
    if not isinstance(value, list):
        raise DyntokError(f"{where}: {name} {value!r}; valid is a list")
    return value


def _json_records(path: Path) -> Iterator[tuple[str, Record]]:
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DyntokError(f"{where}: not JSON ({error})") from error
            if not isinstance(record, dict):
                raise DyntokError(f"{where}: not a JSON object")
            yield where, record


def _hub(source: TaskSource) -> tuple[Iterable[Record], Mapping[str, Any]]:
    import datasets

    found: Any = datasets.load_dataset(
        source.dataset or "", source.config_name, split=source.split, revision=source.revision
    )
    return found, found.features or {}


def _tfds(source: TaskSource) -> tuple[Iterable[Record], Mapping[str, Any]]:
    import tensorflow_datasets as tfds

    name = source.tfds or ""
    if Path(name).is_dir():
        builder: Any = tfds.builder_from_directory(name)
    else:
        builder = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare()
    # Its features are no mapping: they have items, and no get.
    return builder.as_data_source(split=source.split), dict(builder.info.features.items())


def _plain(value: Any) -> Any:
    """As JSON has it. Bytes that are not UTF-8 stay bytes, which no task takes for a text."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {_plain(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _named(value: Any, feature: Any, where: str) -> Any:
    """Numbers of class labels to their names, also those of a sequence of labels."""
    inner = getattr(feature, "feature", None)
    if hasattr(inner, "int2str") and isinstance(value, list):
        return [_named(part, inner, where) for part in value]
    # Datasets write -1 where there is no label; whether that may be is for the task to say.
    if not hasattr(feature, "int2str") or type(value) is not int or value < 0:
        return value
    if value >= feature.num_classes:
        raise DyntokError(f"{where}: label {value}; valid are 0 to {feature.num_classes - 1}")
    return feature.int2str(value)
