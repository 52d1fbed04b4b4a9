"""Examples of a task with their labels, for training and for evaluations on the way."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dyntok_jax.merging.batch import DynamicTokens
from dyntok_jax.tasks import uner
from dyntok_jax.tasks.registry import TASKS, Task
from dyntok_jax.tasks.source import TaskSource
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.types import DyntokError

logger = logging.getLogger(__name__)

UNLABELLED = uner.UNLABELLED
"""In the place of a label: no loss is taken there."""


class Examples(NamedTuple):
    """Examples and their base tokens.

    Attributes:
        task: whose they are.
        examples: as the task reads them.
        base: a sequence each.
    """

    task: Task
    examples: list[Any]
    base: list[BaseTokens]

    def labels(self, number: int, merged: DynamicTokens) -> Int[np.ndarray, "*T"]:
        """An example's label (), or the labels of its tokens (T',)."""
        example = self.examples[number]
        if self.task.kind == "sequence":
            return np.asarray(example.label, np.int32)
        assert merged.word_ids is not None
        return uner.token_labels(merged.word_ids, example.tags)

    def figure(self, merged: Sequence[DynamicTokens], predicted: Sequence[Any]) -> float:
        """The task's metric of predictions for all examples, percent."""
        counts = self.task.counts(self.examples, merged, predicted)
        return float(self.task.figure(counts.sum(axis=0)))


def read_examples(
    name: str,
    sources: Sequence[TaskSource],
    tokenizer: BaseTokenizer,
    boundary: Boundary,
    max_length: int,
) -> Examples:
    """Reads and tokenizes; what is cut off or cannot be labelled is counted and logged.

    Raises:
        DyntokError: what is wrong with a source.
    """
    task = TASKS[name]
    examples = [example for source in sources for example in task.read(source)]
    base = task.layout(tokenizer, examples, boundary, max_length)
    cut = [sequence.truncated for sequence in base if sequence.truncated]
    notes = {"examples": len(examples), f"cut to {max_length} tokens": len(cut)}
    notes |= {"tokens cut off": sum(cut), **task.notes(examples, base)}
    said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in notes.items())
    logger.info("%s: %s", ", ".join(map(str, sources)), said)
    # Special tokens are ids.
    if task.kind == "token" and all(isinstance(t, int) for s in base for t in s.tokens):
        raise DyntokError(f"{sources[0]}: no word has a token, so that nothing can be labelled")
    return Examples(task, examples, base)
