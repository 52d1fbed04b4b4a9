"""Examples of a task with their labels, for training and for evaluations on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from dyntok_jax.merging.batch import DynamicTokens
from dyntok_jax.tasks import metrics, uner, xnli
from dyntok_jax.tasks.source import TaskSource
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.types import DyntokError

logger = logging.getLogger(__name__)

UNLABELLED = uner.UNLABELLED
"""In the place of a label: no loss is taken there."""


class TaskKind(NamedTuple):
    """What training has to know of a task.

    Attributes:
        kind: what is classified.
        labels: names of the classes.
        metric: name of the figure.
        read: examples of a source.
        layout: their base tokens, of (tokenizer, examples, boundary, max length).
        labels_of: of (example, merged sequence), its label () or its tokens' (T',).
        figure: of (examples, merged sequences, predictions), percent.
    """

    kind: Literal["sequence", "token"]
    labels: tuple[str, ...]
    metric: str
    read: Callable[[TaskSource], list[Any]]
    layout: Callable[..., list[BaseTokens]]
    labels_of: Callable[[Any, DynamicTokens], Any]
    figure: Callable[..., float]


def _pair_label(pair: xnli.Pair, _: DynamicTokens) -> int:
    return pair.label


def _accuracy(examples: Sequence[xnli.Pair], _: Any, predicted: Sequence[Any]) -> float:
    return metrics.accuracy([int(p) for p in predicted], [pair.label for pair in examples])


def _token_labels(sentence: uner.Sentence, sequence: DynamicTokens) -> Int[np.ndarray, " T"]:
    return uner.token_labels(_word_ids(sequence), sentence.tags)


def _f1(
    examples: Sequence[uner.Sentence],
    sequences: Sequence[DynamicTokens],
    predicted: Sequence[Int[np.ndarray, " T"]],
) -> float:
    tags = [
        uner.word_tags(_word_ids(sequence), found, len(sentence.words))
        for sentence, sequence, found in zip(examples, sequences, predicted, strict=True)
    ]
    counts = metrics.span_counts(tags, [sentence.tags for sentence in examples])
    return float(metrics.f1(*counts.sum(axis=0)))


def _word_ids(sequence: DynamicTokens | BaseTokens) -> Int[np.ndarray, " T"]:
    assert sequence.word_ids is not None
    return sequence.word_ids


TASKS = {
    "xnli": TaskKind(
        "sequence", xnli.LABELS, "accuracy", xnli.read, xnli.layout, _pair_label, _accuracy
    ),
    "uner": TaskKind("token", uner.LABELS, "f1", uner.read, uner.layout, _token_labels, _f1),
}


class Examples(NamedTuple):
    """Examples and their base tokens.

    Attributes:
        task: whose they are.
        examples: as the task reads them.
        base: a sequence each.
    """

    task: TaskKind
    examples: list[Any]
    base: list[BaseTokens]


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
    logger.info("%s: %s", ", ".join(map(str, sources)), _said(examples, base, max_length))
    if task.kind == "token" and not any(len(uner.first_pieces(_word_ids(s))) for s in base):
        raise DyntokError(f"{sources[0]}: no word has a token, so that nothing can be labelled")
    return Examples(task, examples, base)


def _said(examples: Sequence[Any], base: Sequence[BaseTokens], max_length: int) -> str:
    cut = [sequence.truncated for sequence in base if sequence.truncated]
    said = f"{len(examples)} examples"
    if cut:
        said += f", {len(cut)} cut to {max_length} tokens ({sum(cut)} tokens lost)"
    if isinstance(examples[0], uner.Sentence):
        said += (
            f", {uner.unread_words(examples, map(_word_ids, base))} words without a token, "
            f"{sum(sentence.mapped for sentence in examples)} tags read as O"
        )
    return said
