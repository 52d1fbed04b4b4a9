"""JSON Lines in and out: every line is checked before the first one is worked on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dyntok_jax.types import DyntokError, PromptError

_KINDS = {str: "a string", list: "a list", dict: "an object", bool: "true or false"}


class Record(NamedTuple):
    """A line of the input."""

    line: int
    fields: dict[str, Any]


def read_records(path: str, fields: dict[str, Callable[[Any], str | None]]) -> list[Record]:
    """Reads and checks all lines; blank ones are passed over.

    Args:
        path: a file, or ``-`` for standard input.
        fields: for each field a line must have, what is wrong with a value (None: nothing).

    Raises:
        DyntokError: a file that cannot be read; a line that is not UTF-8, not a JSON object, or
            lacks a field, with its number.
    """
    try:
        if path == "-":
            if sys.stdin is None:
                raise DyntokError("standard input is closed; give a file of JSON lines")
            return _parse(sys.stdin.buffer, path, fields)
        with open(path, "rb") as file:
            return _parse(file, path, fields)
    except OSError as error:
        raise DyntokError(f"{path}: {error.strerror} (give a file of JSON lines, or -)") from error


def line_name(path: str, line: int) -> str:
    """What errors call a line of the input."""
    return f"{'standard input' if path == '-' else path}, line {line}"


@contextmanager
def naming_lines(path: str, records: Sequence[Record]) -> Iterator[None]:
    """Within it, an error about one of the prompts says in which line of the input that stands."""
    try:
        yield
    except PromptError as error:
        where = line_name(path, records[error.place].line)
        raise DyntokError(f"{where}: {error.problem}") from error


def _parse(
    file: BinaryIO, path: str, fields: dict[str, Callable[[Any], str | None]]
) -> list[Record]:
    records = []
    for number, raw in enumerate(file, start=1):
        raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if not raw.strip():
            continue
        where = line_name(path, number)
        try:
            record = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            byte = f"byte 0x{raw[error.start]:02x} at position {error.start + 1}"
            raise DyntokError(f"{where}: not UTF-8 ({byte})") from error
        except (ValueError, RecursionError) as error:
            raise DyntokError(f"{where}: not JSON ({error})") from error
        if not isinstance(record, dict):
            needed = f" with {_list(fields)}" if fields else ""
            raise DyntokError(f"{where}: {kind(record)}; valid is an object{needed}")
        for field, wrong in fields.items():
            if field not in record:
                raise DyntokError(f"{where}: no field {field!r}; needed: {_list(fields)}")
            problem = wrong(record[field])
            if problem:
                raise DyntokError(f"{where}: field {field!r} {problem}")
        records.append(Record(number, record))
    return records


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    return "null" if value is None else _KINDS.get(type(value), "a number")


def is_string(value: Any) -> str | None:
    """Checks for a string."""
    return None if isinstance(value, str) else f"is {kind(value)}; valid is a string"


def is_strings(value: Any) -> str | None:
    """Checks for a list of strings."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return None
    return (
        f"is {kind(value)}; valid is a list of strings"
        if not isinstance(value, list)
        else ("holds something else than strings")
    )


def is_choices(value: Any) -> str | None:
    """Checks for a list of strings that is not empty."""
    return "is empty; valid is a list of strings" if value == [] else is_strings(value)


def is_messages(value: Any) -> str | None:
    """Checks for a conversation."""
    fine = isinstance(value, list) and all(
        isinstance(item, dict)
        and {"role", "content"} <= item.keys()
        and all(isinstance(part, str) for part in item.values())
        for item in value
    )
    return None if fine and value else 'is not a list of {"role": string, "content": string}'


def write_line(record: dict[str, Any]) -> None:
    """Writes one line to standard output."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes a file of JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _list(fields: Iterable[str]) -> str:
    return ", ".join(repr(field) for field in fields)
