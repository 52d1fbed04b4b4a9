"""Named entities with trained adapters: F1 of exact spans by set, in every setting of one config.

    python -m eval.uner --config configs/eval/uner_e5.yaml --sweep --out out/uner.json

``--files ru_pud=ru_pud-ud-test.iob2`` evaluates local files of that form (words and tags) instead
of the config's data. With ``--sweep`` a CSV and a plot of all reductions stand beside the JSON.

A word without a token of its own (cut off, or nothing after tokenization) is predicted as O and
counted in ``unread_words``; tags of other entities are read as O and counted in ``mapped_tags``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from dyntok_jax.merging.batch import DynamicTokens
from dyntok_jax.tasks import metrics, uner
from eval.adapters import Task, main


def counts(
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


def f1(sums: np.ndarray) -> np.ndarray:
    """F1 in percent of summed counts."""
    return metrics.f1(*np.moveaxis(sums, -1, 0))


def notes(examples: Sequence[uner.Sentence], sequences: Sequence[DynamicTokens]) -> dict[str, int]:
    """Words that cannot be tagged, and tags that were taken as O."""
    word_ids = [_word_ids(sequence) for sequence in sequences]
    return {
        "unread_words": uner.unread_words(examples, word_ids),
        "mapped_tags": sum(sentence.mapped for sentence in examples),
    }


def _word_ids(sequence: DynamicTokens) -> Int[np.ndarray, " T"]:
    assert sequence.word_ids is not None
    return sequence.word_ids


TASK = Task(
    name="uner",
    metric="F1",
    kind="token",
    labels=uner.LABELS,
    read=uner.read,
    layout=uner.layout,
    counts=counts,
    figure=f1,
    notes=notes,
)

if __name__ == "__main__":
    main(TASK, __doc__)
