"""XNLI: does a premise entail, contradict or leave open a hypothesis."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dyntok_jax.tasks.source import Record, TaskSource, field, opened, records
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens, pair_layout
from dyntok_jax.types import DyntokError

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


class Pair(NamedTuple):
    """A premise, a hypothesis and the number of their label in ``LABELS``."""

    premise: str
    hypothesis: str
    label: int


def read(source: TaskSource) -> list[Pair]:
    """Pairs of a local file (``.tsv``, ``.jsonl``) or of a dataset (``facebook/xnli``, TFDS's).

    A ``.tsv`` without a header has premise, hypothesis and label, and quotation marks are text; one
    with a header (``premise hypothesis label`` or ``sentence1 sentence2 gold_label``) is quoted as
    spreadsheets do. Of records with translations the source's language is read.

    Raises:
        DyntokError: nothing there, not of this form, or a label that is none of ``SPELLINGS``;
            with the line or record.
    """
    if source.files and Path(source.files).suffix == ".tsv":
        return source.examples(_tsv_pairs(Path(source.files)))
    if source.files and Path(source.files).suffix != ".jsonl":
        raise DyntokError(f"{source}: not a kind that is read; valid are .tsv and .jsonl")
    return source.examples(_pair(record, where, source) for where, record in records(source))


def layout(
    tokenizer: BaseTokenizer,
    examples: Sequence[Pair],
    boundary: Boundary = Boundary.PRETOKEN,
    max_length: int | None = None,
) -> list[BaseTokens]:
    """``<s> premise </s></s> hypothesis </s>``; what is cut off is counted in each."""
    premises, hypotheses = [pair.premise for pair in examples], [p.hypothesis for p in examples]
    return pair_layout(tokenizer, premises, hypotheses, boundary, max_length)


def _tsv_pairs(path: Path) -> Iterator[Pair]:
    with opened(path) as file:
        first = file.readline().rstrip("\r\n").split("\t")
        headed = set(first) >= HEADERS[0] or set(first) >= HEADERS[1]
        names = first if headed else list(_FIELDS)
        if not headed:
            file.seek(0)
        quoting = csv.QUOTE_MINIMAL if headed else csv.QUOTE_NONE
        rows = csv.reader(file, delimiter="\t", quoting=quoting, strict=True)
        try:
            for row in rows:
                where = f"{path}, line {rows.line_num + headed}"
                if len(row) != len(names):
                    raise DyntokError(
                        f"{where}: {len(row)} columns; valid are {len(names)}: {', '.join(names)}"
                    )
                yield _pair(dict(zip(names, row, strict=True)), where)
        except csv.Error as error:
            raise DyntokError(f"{path}, line {rows.line_num + headed}: {error}") from error


def _pair(record: Record, where: str, source: TaskSource | None = None) -> Pair:
    if "sentence1" in record:
        record = {name: record.get(other) for name, other in _FIELDS.items()}
    language = source.language if source else ""
    premise, hypothesis = (
        _text(field(record, name, where), language, f"{where}: {name}")
        for name in ("premise", "hypothesis")
    )
    label = field(record, "label", where)
    if not isinstance(label, str | int) or label not in SPELLINGS:
        raise DyntokError(
            f"{where}: label {label!r}; valid are {', '.join(LABELS)}, their first letters and 0-2"
        )
    return Pair(premise, hypothesis, SPELLINGS[label])


def _text(value: Any, language: str, where: str) -> str:
    """A text, or the one in this language of a record of translations."""
    if isinstance(value, Mapping):
        translations = value
        if "translation" in value:
            names = [_plain(name) for name in value["language"]]
            translations = dict(zip(names, value["translation"], strict=True))
        if language not in translations:
            raise DyntokError(
                f"{where}: not in {language!r}; valid languages are {', '.join(translations)}"
            )
        value = translations[language]
    value = _plain(value)
    if not isinstance(value, str):
        raise DyntokError(f"{where}: {value!r}; valid is a text")
    return value


def _plain(value: Any) -> Any:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
