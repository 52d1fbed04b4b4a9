"""MT-Bench's questions, and files of answers in FastChat's form with what was measured of them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dyntok_jax.files import atomic_path
from dyntok_jax.generate import Generated
from dyntok_jax.tasks.source import TaskSource, field, records
from dyntok_jax.types import DyntokError

GRAM = 4
"""Words of the stretches of which the distinct ones are counted."""


class Question(NamedTuple):
    """A question of MT-Bench: its number, its category and what the user says in each turn."""

    number: int
    category: str
    turns: list[str]


def read(path: str) -> list[Question]:
    """The questions of a file of FastChat's form, one JSON object a line.

    Raises:
        DyntokError: no such file, or a line that is no question.
    """
    found = []
    for where, line in records(TaskSource(files=path)):
        number, turns = field(line, "question_id", where), field(line, "turns", where)
        right = isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns)
        if not isinstance(number, int) or not right:
            raise DyntokError(f"{where}: valid are a whole question_id and turns, a list of texts")
        found.append(Question(number, str(line.get("category", "")), turns))
    if not found:
        raise DyntokError(f"{path}: no question in it")
    return found


class Answers:
    """A file of answers, whole after every batch.

    Attributes:
        path: the file.
        lines: its records by question.
    """

    def __init__(self, path: Path, name: str, settings: Mapping[str, Any]):
        """Reads what is there.

        Raises:
            DyntokError: no such record, or answers of other settings.
        """
        self.path = path
        self._name = name
        self._settings = dict(settings)
        self.lines: dict[int, dict[str, Any]] = {}
        if not path.exists():
            return
        for where, line in records(TaskSource(files=str(path))):
            if field(line, "settings", where) != self._settings:
                raise DyntokError(
                    f"{where}: answered with other settings; give another folder of answers, or "
                    "remove the file"
                )
            try:
                measured([line])
            except (LookupError, TypeError, ValueError, ArithmeticError) as error:
                raise DyntokError(
                    f"{where}: edited since it was written ({error!r}); remove it to answer it anew"
                ) from error
            self.lines[field(line, "question_id", where)] = dict(line)

    def answered(self, question: Question) -> bool:
        """Whether a question's answer is there.

        Raises:
            DyntokError: the question was another when it was answered.
        """
        line = self.lines.get(question.number)
        if line is not None and line.get("asked") != [question.category, *question.turns]:
            raise DyntokError(
                f"{self.path}: question {question.number} was another when it was answered; give "
                "another folder of answers, or remove the file"
            )
        return line is not None

    def add(self, questions: Sequence[Question], answers: Sequence[Sequence[Generated]]) -> None:
        """Writes the answers to some questions beside those that are there."""
        for question, turns in zip(questions, answers, strict=True):
            self.lines[question.number] = self._line(question, turns, len(questions))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as partial:
            lines = (json.dumps(self.lines[n], ensure_ascii=False) for n in sorted(self.lines))
            partial.write_text("".join(f"{line}\n" for line in lines), "utf-8")

    def _line(
        self, question: Question, turns: Sequence[Generated], together: int
    ) -> dict[str, Any]:
        texts = [turn.text.strip() for turn in turns]
        label = f"{self._name}/{question.number}/{texts}"
        seconds = [{k: v / together for k, v in turn.seconds.items()} for turn in turns]
        return {
            "question_id": question.number,
            "answer_id": uuid.uuid5(uuid.NAMESPACE_URL, label).hex,
            "model_id": self._name,
            "choices": [{"index": 0, "turns": texts}],
            "asked": [question.category, *question.turns],
            "tstamp": time.time(),
            "settings": self._settings,
            "tokens": [dict(turn.tokens) for turn in turns],
            "truncated": [turn.truncated for turn in turns],
            "finish": [turn.finish for turn in turns],
            "seconds": seconds,
        }


def measured(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What can be told of answers without a judge: sums over turns, and shares."""
    turns = [
        {"text": text, "tokens": tokens, "seconds": seconds, "finish": finish, "truncated": cut}
        for line in lines
        for text, tokens, seconds, finish, cut in zip(
            line["choices"][0]["turns"],
            *(line[name] for name in ("tokens", "seconds", "finish", "truncated")),
            strict=True,
        )
    ]

    def total(part: str, name: str) -> float:
        return sum(turn[part][name] for turn in turns)

    static, dynamic = total("tokens", "prompt_static"), total("tokens", "prompt_dynamic")
    distinct = [share for turn in turns if (share := distinct_share(turn["text"])) is not None]
    return {
        "answers": len(turns),
        "tokens_static": static,
        "tokens_dynamic": dynamic,
        "shorter_percent": 100 * (1 - dynamic / static),
        "new_tokens": total("tokens", "new"),
        "characters": sum(len(turn["text"]) for turn in turns),
        "prefill_seconds": total("seconds", "prefill"),
        "decode_seconds": total("seconds", "decode"),
        "ended": sum(turn["finish"] == "end" for turn in turns),
        "truncated": sum(turn["truncated"] for turn in turns),
        "distinct_4": float(np.mean(distinct)) if distinct else None,
    }


def distinct_share(text: str) -> float | None:
    """The share of a text's stretches of four words that are different; None where it has none."""
    words = text.split()
    grams = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
    return len(set(grams)) / len(grams) if grams else None
