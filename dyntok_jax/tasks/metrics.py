"""F1 of exact spans with seqeval's reading of tags."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def span_counts(
    predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]
) -> Int[np.ndarray, "N 3"]:
    """For each sentence, how many spans are right, predicted, and in the gold tags.

    A span is right where both ends and the kind are. Tags are read as seqeval does by default: an
    ``I-`` that goes on nothing of its kind begins a span.

    Args:
        predicted, gold: BIO tags of the words of N sentences.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    counts = np.zeros((len(gold), 3), np.int64)
    for row, found, wanted in zip(counts, predicted, gold, strict=True):
        found, wanted = set(get_entities(list(found))), set(get_entities(list(wanted)))
        row[:] = len(found & wanted), len(found), len(wanted)
    return counts


def f1(right: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """F1 in percent of summed counts of spans; 0 where there is no span at all."""
    total = np.asarray(predicted + gold)
    return np.where(total > 0, 200 * right / np.maximum(total, 1), 0.0)
