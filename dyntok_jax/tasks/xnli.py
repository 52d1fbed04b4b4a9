"""XNLI: does a premise entail, contradict or leave open a hypothesis."""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from dyntok_jax.tasks.source import Record, TaskSource, field, listed, opened, records
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens, pair_layout
from dyntok_jax.types import DyntokError

logger = logging.getLogger(__name__)

LABELS = ("entailment", "neutral", "contradiction")
"""In the order of the dataset's own numbers."""

SPELLINGS = {
    spelling: number
    for number, name in enumerate(LABELS)
    for spelling in (name, name[0], str(number), number)
} | {"contradictory": 2}
"""What a label may be written as -> its number."""

HEADERS = ({"premise", "hypothesis", "label"}, {"sentence1", "sentence2", "gold_label"})
_FIELDS = {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}

_COLUMN = r'(?:"(?:[^"]|"")*"|[^"\t]*)'
_ENCLOSED = re.compile(f"{_COLUMN}(?:\t{_COLUMN})*")
"""A line whose quotation marks all enclose a column, or are doubled in one that is enclosed."""


class Pair(NamedTuple):
    """A premise, a hypothesis and the number of their label in ``LABELS``."""

    premise: str
    hypothesis: str
    label: int


def read(source: TaskSource) -> list[Pair]:
    """Pairs of a local file (``.tsv``, ``.jsonl``) or of a dataset (``facebook/xnli``, TFDS's).

    A ``.tsv`` without a header has premise, hypothesis and label, and quotation marks are text; one
    with a header (``premise hypothesis label`` or ``sentence1 sentence2 gold_label``) may be quoted
    as spreadsheets do. Each line is a pair. Of records with translations the source's language is
    read, and of records with a ``language`` those of the source's.

    Raises:
        DyntokError: nothing there, not of this form, or a label that is none of ``SPELLINGS``;
            with the line or record.
    """
    if source.files and Path(source.files).suffix == ".tsv":
        found = _tsv_records(Path(source.files))
    elif source.files and Path(source.files).suffix != ".jsonl":
        raise DyntokError(f"{source}: not a kind that is read; valid are .tsv and .jsonl")
    else:
        found = records(source)
    language = source.language
    return source.examples(
        _pair(record, where, language) for where, record in _of_language(found, source)
    )


def layout(
    tokenizer: BaseTokenizer,
    examples: Sequence[Pair],
    boundary: Boundary = Boundary.PRETOKEN,
    max_length: int | None = None,
) -> list[BaseTokens]:
    """``<s> premise </s></s> hypothesis </s>``; what is cut off is counted in each."""
    premises, hypotheses = [pair.premise for pair in examples], [p.hypothesis for p in examples]
    return pair_layout(tokenizer, premises, hypotheses, boundary, max_length)


def _tsv_records(path: Path) -> Iterator[tuple[str, Record]]:
    with opened(path) as file:
        first = file.readline().rstrip("\r\n").split("\t")
        headed = any(set(first) >= header for header in HEADERS)
        names = first if headed else list(_FIELDS)
        quoted = headed and _is_quoted(file)
        file.seek(0)
        for number, line in islice(enumerate(file, start=1), headed, None):
            where = f"{path}, line {number}"
            row = _columns(line.rstrip("\r\n"), quoted, where)
            if len(row) != len(names):
                raise DyntokError(
                    f"{where}: {len(row)} columns; valid are {len(names)}: {', '.join(names)}"
                )
            yield where, dict(zip(names, row, strict=True))


def _is_quoted(lines: Iterable[str]) -> bool:
    """Whether quotation marks enclose columns here, or are text.

    A spreadsheet doubles the marks within a column that it encloses and leaves none outside, which
    plain text does by chance at most: what most lines with marks show counts.
    """
    balance = 0
    for line in lines:
        if '"' in line:
            enclosed = _ENCLOSED.fullmatch(line.rstrip("\r\n"))
            balance += ('""' in line) if enclosed else -1
    return balance > 0


def _columns(line: str, quoted: bool, where: str) -> list[str]:
    if not quoted:
        return line.split("\t")
    try:
        # Of this line alone: a mark that is not closed must not take in the lines that follow.
        return next(csv.reader([line], delimiter="\t", strict=True), [])
    except csv.Error as error:
        raise DyntokError(
            f"{where}: a quotation mark is not closed at a column's end; valid are columns "
            "quoted whole, on one line"
        ) from error


def _of_language(
    found: Iterable[tuple[str, Record]], source: TaskSource
) -> Iterator[tuple[str, Record]]:
    """Those whose ``language`` is the source's, where both have one; else all."""
    wanted, read, others = source.language, False, Counter[str]()
    for where, record in found:
        language = record.get("language", wanted)
        if not wanted or language == wanted:
            read = True
            yield where, record
        else:
            others[str(language)] += 1
    if others and not read:
        raise DyntokError(
            f"{source}: none in {wanted!r}; valid languages are {', '.join(sorted(others))}"
        )
    if others:
        logger.info("%s: %d records in other languages left out", source, others.total())


def _pair(record: Record, where: str, language: str) -> Pair:
    if "sentence1" in record:
        record = {name: field(record, other, where) for name, other in _FIELDS.items()}
    premise, hypothesis = (
        _text(field(record, name, where), language, f"{where}: {name}")
        for name in ("premise", "hypothesis")
    )
    label = field(record, "label", where)
    if type(label) not in (str, int) or label not in SPELLINGS:  # True would be 1
        raise DyntokError(
            f"{where}: label {label!r}; valid are {', '.join(LABELS)}, their first letters and 0-2"
        )
    return Pair(premise, hypothesis, SPELLINGS[label])


def _text(value: Any, language: str, where: str) -> str:
    """A text, or the one in this language of a record of translations."""
    if isinstance(value, Mapping):
        names, texts = list(value), list(value.values())
        if "translation" in value:
            names, texts = (listed(value, name, where) for name in ("language", "translation"))
        if len(names) != len(texts):
            raise DyntokError(
                f"{where}: {len(names)} languages and {len(texts)} translations; valid is one each"
            )
        if language not in names:
            raise DyntokError(
                f"{where}: not in {language!r}; valid languages are {', '.join(map(str, names))}"
            )
        value = texts[names.index(language)]
    if not isinstance(value, str):
        raise DyntokError(f"{where}: {value!r}; valid is a text")
    return value
