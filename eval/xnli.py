"""XNLI with trained adapters: accuracy by language, in every setting of one config.

    python -m eval.xnli --config configs/eval/xnli_e5.yaml --sweep --out out/xnli.json

``--files de=dev-de.tsv`` evaluates local files of that form (premise, hypothesis, label) instead of
the config's data. With ``--sweep`` a CSV and a plot of all reductions stand beside the JSON.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from dyntok_jax.tasks import xnli
from eval.adapters import Task, main


def counts(
    examples: Sequence[xnli.Pair], sequences: Sequence[object], predicted: Sequence[int]
) -> Int[np.ndarray, "N 2"]:
    """For each pair, whether the prediction is right, and 1."""
    right = [int(label == pair.label) for pair, label in zip(examples, predicted, strict=True)]
    return np.stack([right, np.ones(len(right), np.int64)], axis=1)


def accuracy(sums: np.ndarray) -> np.ndarray:
    """Percent of the pairs that are right."""
    return 100 * sums[..., 0] / sums[..., 1]


TASK = Task(
    name="xnli",
    metric="accuracy",
    kind="sequence",
    labels=xnli.LABELS,
    read=xnli.read,
    layout=xnli.layout,
    counts=counts,
    figure=accuracy,
    notes=lambda examples, sequences: {},
)

if __name__ == "__main__":
    main(TASK, __doc__)
