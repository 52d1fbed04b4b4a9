"""MMLU: questions with four choices, and the prompt that puts solved ones of the subject first.

The prompt is the paper's: a header that names the subject, then blocks of a line that says what
follows, the question, its choices by letter and ``Answer:``, with the letter in the solved ones.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dyntok_jax.tasks.source import Record, TaskSource, field, opened, records
from dyntok_jax.types import DyntokError

LETTERS = "ABCD"
INFORMATION = "This question refers to the following information."
SHOTS = 5

QUESTION_NAMES = ("question", "instruction")
CHOICE_NAMES = (
    tuple(f"option_{letter.lower()}" for letter in LETTERS),
    tuple(f"choice{i}" for i in range(4)),
    tuple(LETTERS),
)
"""What the fields are called: Global-MMLU and translated MMLU, CSV copies of MMLU, and others."""

_ANSWERS = {spelling: i for i, letter in enumerate(LETTERS) for spelling in (letter, str(i), i)}
_CSV = ("question", *CHOICE_NAMES[1], "answer")
_SPLITS = ("_dev", "_val", "_test")


class Question(NamedTuple):
    """A question, its four choices and the number of the right one.

    Attributes:
        subject: in words.
        text: the question.
        choices: four of them.
        answer: number of the right one, from 0.
    """

    subject: str
    text: str
    choices: tuple[str, ...]
    answer: int


def read(source: TaskSource) -> list[Question]:
    """Questions of local files or of a dataset on the hub.

    Local files are a folder of ``SUBJECT_SPLIT.csv`` or one of them (with a header, ``question,
    choice0,…,choice3,answer``, or without, as MMLU was published), a ``.json`` list or ``.jsonl``.
    Records have ``question`` or ``instruction``; ``choices``, ``option_a`` to ``option_d`` or
    ``choice0`` to ``choice3``; ``answer``, a letter or a number from 0; and ``subject``, or an
    ``id`` that begins with it: so ``cais/mmlu``, ``CohereForAI/Global-MMLU-Lite`` and
    ``alexandrainst/m_mmlu``.

    Raises:
        DyntokError: nothing there, or not of this form; with the line or record.
    """
    path = Path(source.files or "")
    if source.files and path.is_dir():
        files = sorted(path.glob("*.csv"))
        if not files:
            raise DyntokError(f"{path}: no .csv in it; valid are files SUBJECT_SPLIT.csv")
        return source.examples(question for file in files for question in _csv(file))
    if path.suffix == ".csv":
        return source.examples(_csv(path))
    if path.suffix == ".json":
        return source.examples(_question(*pair) for pair in _json(path))
    if source.files and path.suffix != ".jsonl":
        raise DyntokError(
            f"{source}: not a kind that is read; valid are a folder of .csv, .csv, .json and .jsonl"
        )
    return source.examples(_question(where, record) for where, record in records(source))


def by_subject(questions: Sequence[Question], most: int = SHOTS) -> dict[str, list[Question]]:
    """The first questions of each subject, to be shown solved."""
    found: dict[str, list[Question]] = {}
    for question in questions:
        found.setdefault(question.subject, []).append(question)
    return {subject: part[:most] for subject, part in found.items()}


def prompt(question: Question, shots: Sequence[Question]) -> str:
    """The paper's prompt: header, solved questions, question, up to ``Answer:``.

    A question that begins with the information line by itself does not get it again.
    """
    header = f"The following are multiple choice questions (with answers) about {question.subject}."
    solved = [f"{_block(shot)} {LETTERS[shot.answer]}" for shot in shots]
    return "\n\n".join([header, *solved, _block(question)])


def _block(question: Question) -> str:
    choices = [f"{letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=True)]
    begins = question.text.startswith(INFORMATION)
    lines = [question.text] if begins else [INFORMATION, question.text]
    return "\n".join([*lines, *choices, "Answer:"])


def _csv(path: Path) -> Iterator[Question]:
    subject = path.stem
    for split in _SPLITS:
        subject = subject.removesuffix(split)
    with opened(path) as file:
        rows = csv.reader(file, strict=True)
        try:
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if tuple(row) == _CSV:
                    continue
                if len(row) != len(_CSV):
                    raise DyntokError(
                        f"{where}: {len(row)} columns; valid are {len(_CSV)}: {', '.join(_CSV)}"
                    )
                yield _question(where, dict(zip(_CSV, row, strict=True)) | {"subject": subject})
        except csv.Error as error:
            raise DyntokError(f"{path}, line {rows.line_num}: {error}") from error


def _json(path: Path) -> Iterator[tuple[str, Record]]:
    with opened(path) as file:
        try:
            found = json.load(file)
        except ValueError as error:
            raise DyntokError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, list) or not all(isinstance(record, Mapping) for record in found):
        raise DyntokError(f"{path}: valid is a list of records")
    yield from ((f"{path}, record {i}", record) for i, record in enumerate(found, start=1))


def _question(where: str, record: Record) -> Question:
    name = next((name for name in QUESTION_NAMES if name in record), QUESTION_NAMES[0])
    answer = field(record, "answer", where)
    wrong_kind = isinstance(answer, bool) or not isinstance(answer, str | int)
    if wrong_kind or answer not in _ANSWERS:
        raise DyntokError(f"{where}: answer {answer!r}; valid are A to D and 0 to 3")
    return Question(
        _subject(record, where),
        _text(field(record, name, where), f"{where}: {name}"),
        tuple(_text(text, f"{where}: a choice") for text in _choices(record, where)),
        _ANSWERS[answer],
    )


def _choices(record: Record, where: str) -> list[Any]:
    if "choices" in record:
        found = record["choices"]
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise DyntokError(f"{where}: choices {found!r}; valid is a list")
        found = list(found)
    else:
        names = next((names for names in CHOICE_NAMES if names[0] in record), CHOICE_NAMES[0])
        found = [field(record, name, where) for name in names]
    if len(found) != len(LETTERS):
        raise DyntokError(f"{where}: {len(found)} choices; valid are {len(LETTERS)}")
    return found


def _subject(record: Record, where: str) -> str:
    if "subject" not in record and "id" in record:
        record = {"subject": str(record["id"]).partition("/")[0]}
    return _text(field(record, "subject", where), f"{where}: subject").replace("_", " ")


def _text(value: Any, where: str) -> str:
    # Spreadsheets and JSON hold some choices as numbers.
    if not isinstance(value, str | int | float):
        raise DyntokError(f"{where}: {value!r}; valid is a text")
    return str(value)
