"""Distillation losses on held-out text, the same batches every time."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from train.data import DataConfig, batches

if TYPE_CHECKING:
    from train.distill import Distillation
    from train.preparation import DistillBatch, Preparation

MERGE_RATES = (50.0, 100.0)
"""Percentages of merges at which held-out text is read."""


class HeldOut:
    """Mean losses on a few fixed batches, merged by half and wholly.

    Attributes:
        drawn: JSON values that say which texts the batches are of.
    """

    def __init__(self, data: DataConfig, preparation: Preparation, count: int):
        """Prepares the batches.

        Args:
            data: held-out texts.
            preparation: as in training, prompts and what repeats them as well; its merge rates are
                not used.
            count: batches at each merge rate.
        """
        self.drawn = {"held_out": data.drawn, "batches": count}
        self.batches: dict[float, list[DistillBatch]] = {}
        for rate in MERGE_RATES:
            prepared = replace(preparation, merge_rates=(rate, rate))
            source = batches(replace(data, workers=0), prepared, seed=0)
            self.batches[rate] = [loaded.batch for loaded in islice(source, count)]
        self.loss: Any = None

    def __call__(self, task: Distillation, trainables: Any) -> dict[str, float]:
        """Each part of the loss at each merge rate, such as ``hidden_100``."""
        if self.loss is None:
            self.loss = jax.jit(task.loss)
        key, figures = jax.random.key(0), {}
        for rate, group in self.batches.items():
            parts = [self.loss(trainables, task.frozen, batch, key)[1] for batch in group]
            for name in parts[0]:
                values = [np.asarray(part[name]) for part in parts]
                figures[f"{name}_{rate:g}"] = float(np.mean(values))
        return figures
