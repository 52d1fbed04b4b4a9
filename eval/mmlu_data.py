"""MMLU's questions as a decoder reads them: prompts with solved questions, and right answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from dyntok_jax.scoring import cut_left
from dyntok_jax.tasks import mmlu
from dyntok_jax.text.base_tokens import BaseTokenizer, Pieces
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens, prompt_layout
from dyntok_jax.types import DyntokError
from eval.evenly_spaced import evenly_spaced
from eval.mmlu_config import MmluData


@dataclass(frozen=True)
class Asked:
    """The questions of a language, laid out.

    Attributes:
        prompts: base tokens of each.
        targets: ids of each right answer's text.
        answers: number of each right letter.
        bytes: of each right answer's text.
        notes: what was cut off or is missing, counted by name.
    """

    prompts: list[BaseTokens]
    targets: list[list[int]]
    answers: Int[np.ndarray, " N"]
    bytes: Int[np.ndarray, " N"]
    notes: dict[str, int]

    def evenly_spaced(self, first: int | None) -> Asked:
        """So many of the questions, spread evenly."""
        place = evenly_spaced(len(self.prompts), first)
        prompts = [self.prompts[i] for i in place]
        targets = [self.targets[i] for i in place]
        return replace(
            self,
            prompts=prompts,
            targets=targets,
            answers=self.answers[place],
            bytes=self.bytes[place],
        )


def asked(tokenizer: BaseTokenizer, data: MmluData, boundary: Boundary, longest: int) -> Asked:
    """Reads the questions of a language and lays them out.

    Args:
        tokenizer: the model's own.
        data: what to read.
        boundary: what merges do not cross.
        longest: prompt and answer in base tokens; longer prompts lose their beginning.

    Raises:
        DyntokError: files or a dataset that cannot be read; no shot at all for a subject; an
            answer that leaves no room for a prompt.
    """
    questions = mmlu.read(data.questions)
    questions = [questions[i] for i in evenly_spaced(len(questions), data.first)]
    shots = mmlu.by_subject(mmlu.read(data.shots))
    for question in questions:
        if question.subject not in shots:
            raise DyntokError(f"{data.shots}: no question of {question.subject!r} to show solved")
    texts = [mmlu.prompt(question, shots[question.subject]) for question in questions]
    answers = [f" {question.choices[question.answer]}" for question in questions]
    continued = tokenizer.encode_continuations(answers)
    base = _prompts(tokenizer, texts, continued, boundary, longest)
    cut = [prompt.truncated for prompt in base]
    return Asked(
        base,
        [pieces.ids for pieces in continued],
        np.array([question.answer for question in questions]),
        np.array([sum(map(len, pieces.tokens)) for pieces in continued]),
        {
            "truncated_tokens": sum(cut),
            "truncated_prompts": sum(tokens > 0 for tokens in cut),
            "missing_shots": sum(mmlu.SHOTS - len(shots[q.subject]) for q in questions),
        },
    )


def _prompts(
    tokenizer: BaseTokenizer,
    texts: Sequence[str],
    answers: Sequence[Pieces],
    boundary: Boundary,
    longest: int,
) -> list[BaseTokens]:
    """Base tokens of prompts, cut at their beginnings where prompt and answer are too long.

    Raises:
        DyntokError: an answer that leaves no room for its prompt.
    """
    found = []
    before = len(tokenizer.prompt_ids)
    for base, answer in zip(prompt_layout(tokenizer, texts, boundary), answers, strict=True):
        room = longest - max(len(answer.ids), 1)
        if room <= before:
            raise DyntokError(
                f"an answer of {len(answer.ids)} tokens leaves no room for a prompt in {longest}"
            )
        found.append(cut_left(base, before, room))
    return found
