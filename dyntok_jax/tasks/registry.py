"""The tasks by name: what training and evaluation have to know of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from dyntok_jax.merging.batch import DynamicTokens
from dyntok_jax.tasks import metrics, uner, xnli
from dyntok_jax.tasks.source import TaskSource
from dyntok_jax.text.layouts import BaseTokens


@dataclass(frozen=True)
class Task:
    """What differs between tasks.

    Attributes:
        name: a key of ``TASKS``, as adapters say it.
        metric: its name in reports.
        kind: what is classified.
        labels: names of the classes.
        read: examples of a source.
        layout: their base tokens, of (tokenizer, examples, boundary, max length).
        counts: of (examples, merged sequences, predictions), (N, K) what the metric sums, of every
            example.
        figure: the metric in percent, of K summed counts along the last axis.
        notes: of (examples, merged sequences), what could not be read, counted by name.
    """

    name: str
    metric: str
    kind: Literal["sequence", "token"]
    labels: tuple[str, ...]
    read: Callable[[TaskSource], list[Any]]
    layout: Callable[..., list[BaseTokens]]
    counts: Callable[..., Int[np.ndarray, "N K"]]
    figure: Callable[[np.ndarray], np.ndarray]
    notes: Callable[..., dict[str, int]]


def pair_counts(
    examples: Sequence[xnli.Pair], sequences: Sequence[object], predicted: Sequence[int]
) -> Int[np.ndarray, "N 2"]:
    """For each pair, whether the prediction is right, and 1."""
    right = [int(label == pair.label) for pair, label in zip(examples, predicted, strict=True)]
    return np.stack([right, np.ones(len(right), np.int64)], axis=1)


def word_counts(
    examples: Sequence[uner.Sentence],
    sequences: Sequence[DynamicTokens],
    predicted: Sequence[Int[np.ndarray, " T"]],
) -> Int[np.ndarray, "N 3"]:
    """For each sentence, its spans that are right, predicted, and in the gold tags."""
    tags = [
        uner.word_tags(_word_ids(sequence), found, len(sentence.words))
        for sentence, sequence, found in zip(examples, sequences, predicted, strict=True)
    ]
    return metrics.span_counts(tags, [sentence.tags for sentence in examples])


def word_notes(
    examples: Sequence[uner.Sentence], sequences: Sequence[DynamicTokens | BaseTokens]
) -> dict[str, int]:
    """Words that cannot be tagged, and tags that were taken as O."""
    return {
        "unread_words": uner.unread_words(examples, map(_word_ids, sequences)),
        "mapped_tags": sum(sentence.mapped for sentence in examples),
    }


def _word_ids(sequence: DynamicTokens | BaseTokens) -> Int[np.ndarray, " T"]:
    assert sequence.word_ids is not None
    return sequence.word_ids


TASKS = {
    task.name: task
    for task in (
        Task(
            name="xnli",
            metric="accuracy",
            kind="sequence",
            labels=xnli.LABELS,
            read=xnli.read,
            layout=xnli.layout,
            counts=pair_counts,
            figure=lambda sums: 100 * sums[..., 0] / sums[..., 1],
            notes=lambda examples, sequences: {},
        ),
        Task(
            name="uner",
            metric="F1",
            kind="token",
            labels=uner.LABELS,
            read=uner.read,
            layout=uner.layout,
            counts=word_counts,
            figure=lambda sums: metrics.f1(*np.moveaxis(sums, -1, 0)),
            notes=word_notes,
        ),
    )
}
