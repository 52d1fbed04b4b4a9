"""Examples to training batches: order, merging, rows and labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from dyntok_jax.batching import TOKEN_BUCKETS, UNIQUE_BUCKETS, bucket, make_batch
from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.merging.batch import DynamicTokens, merge
from dyntok_jax.merging.budget import Budget, sample_budget
from dyntok_jax.merging.punctuation import PunctuationRule
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.types import Token
from train.lora_config import TokenizationConfig
from train.task import Loaded
from train.task_examples import UNLABELLED, Examples

LENGTHS = (*range(8, 129, 8), *(size for size in TOKEN_BUCKETS if size > 128))
"""Tokens of a sequence are rounded up to these: finer than in evaluations, since in training every
shape is used many times."""

BINS = 30
"""Of the original's sampling."""

CALIBRATION = 16
"""Batches on which it is measured how far a number of merges goes."""


class TaskBatch(NamedTuple):
    """A batch of B examples, padded right; empty rows fill up the last one of an epoch.

    Attributes:
        rows: (U, D) float32 rows of the batch's unique tokens.
        ids: (B, T) int32 into ``rows``.
        mask: (B, T) bool, True at real tokens.
        labels: (B,) or (B, T) int32, ``UNLABELLED`` where there is none.
    """

    rows: Float[np.ndarray, "U D"]
    ids: Int[np.ndarray, "B T"]
    mask: Bool[np.ndarray, "B T"]
    labels: Int[np.ndarray, "B ..."]


class TaskBatches:
    """Endless batches, epoch after epoch, of one task's examples.

    Attributes:
        per_epoch: batches of an epoch.
    """

    def __init__(
        self,
        model: DynamicModel,
        examples: Examples,
        tokenization: TokenizationConfig,
        sequences: int,
        max_length: int,
        grouped: int,
        seed: int,
    ):
        """Measures what merging does on average, where numbers of merges are drawn by that.

        Args:
            model: gives rows; nothing else may use its cache at the same time.
            examples: of one task.
            tokenization: how batches are merged.
            sequences: B.
            max_length: base tokens of a sequence at most.
            grouped: batches whose examples are sorted by length together.
            seed: of the order and of what is drawn.
        """
        base = model.readable(examples.base, tokenization.boundary)
        self.model, self.examples = model, examples._replace(base=base)
        self.tokenization = tokenization
        self.sequences, self.grouped, self.seed = sequences, grouped, seed
        self.max_length = max_length
        self.per_epoch = -(-len(examples.base) // sequences)
        # One size for nearly all batches: a further one compiles every length again.
        self._rows = bucket(sequences * max_length // 2, UNIQUE_BUCKETS)
        hyphen = tokenization.boundary is Boundary.WORD_HYPHEN
        self._rule = PunctuationRule(model.tokenizer.vocabulary()) if hyphen else None
        self._bins = self._measured_bins() if tokenization.mode == "bins" else []

    def batches(self, position: Any) -> Iterator[Loaded]:
        """Batches from a position on, the same for the same seed and position."""
        orders: dict[int, list[np.ndarray]] = {}
        for number in itertools.count(position["batch"] if position else 0):
            epoch, place = divmod(number, self.per_epoch)
            if epoch not in orders:
                orders = {epoch: self.order(epoch)}
            merged = self.merged(orders[epoch][place], number)
            batch = self.arrays(orders[epoch][place], merged)
            yield Loaded(batch, int(batch.mask.sum()), {"batch": number + 1})

    def order(self, epoch: int) -> list[np.ndarray]:
        """Examples of each batch of an epoch."""
        random = np.random.default_rng((self.seed, 0, epoch))
        shuffled = random.permutation(len(self.examples.base))
        lengths = np.array([len(sequence.tokens) for sequence in self.examples.base])
        batches: list[np.ndarray] = []
        size = self.sequences * self.grouped
        for start in range(0, len(shuffled), size):
            group = shuffled[start : start + size]
            if self.grouped > 1:
                group = group[np.argsort(lengths[group], kind="stable")]
            batches += [group[i : i + self.sequences] for i in range(0, len(group), self.sequences)]
        if self.grouped > 1:
            batches = [batches[i] for i in random.permutation(len(batches))]
        return batches

    def widest(self) -> int:
        """Number of the first epoch's batch with the largest T, after merging."""
        order, lengths = self.order(0), [len(sequence.tokens) for sequence in self.examples.base]
        base = [bucket(max(lengths[i] for i in chosen), LENGTHS) for chosen in order]
        widest, most = 0, 0
        for number in sorted(range(len(order)), key=base.__getitem__, reverse=True):
            # Merging makes none longer.
            if base[number] <= most:
                break
            merged = self.merged(order[number], number)
            size = bucket(max(len(sequence.tokens) for sequence in merged), LENGTHS)
            if size > most:
                widest, most = number, size
        return widest

    def merged(self, chosen: Sequence[int] | np.ndarray, number: int) -> list[DynamicTokens]:
        """The examples after merging; ``number`` is the batch's, for what is drawn."""
        base = [self.examples.base[i] for i in chosen]
        budgets = self._budgets(base, np.random.default_rng((self.seed, 1, number)))
        return merge(
            base, budgets, rule=self._rule, per_sample=self.tokenization.per_sample
        ).sequences

    def _budgets(self, base: list[BaseTokens], random: np.random.Generator) -> list[Budget]:
        """A budget for each group that is merged together."""
        mode, count = self.tokenization.mode, len(base) if self.tokenization.per_sample else 1
        if mode in ("static", "fixed"):
            return [Budget(reduction=self.tokenization.reduction or 0)] * count
        if mode == "reduction":
            return [Budget(reduction=float(r)) for r in random.uniform(0, 100, count)]
        if mode == "merges":
            return [sample_budget(random, most) for most in self._exhausting(base)]
        bins = [self._bins[i] for i in random.integers(len(self._bins), size=count)]
        return [Budget(merges=int(random.choice(numbers))) for numbers in bins]

    def _exhausting(self, base: list[BaseTokens]) -> list[int]:
        """Merges after which no pair is left, of each group."""
        per_sample = self.tokenization.per_sample
        traced = merge(base, Budget(), rule=self._rule, per_sample=per_sample, trace=True)
        return [len(merges) for merges in traced.merges]

    def _measured_bins(self) -> list[np.ndarray]:
        """Numbers of merges by the reduction they give on average, bins without any left out."""
        groups = [[self.examples.base[i] for i in part] for part in self.order(0)[:CALIBRATION]]
        most = max(max(self._exhausting(group), default=0) for group in groups)
        tried = np.unique(np.round(np.geomspace(1, max(most, 1), 100)).astype(int))
        tried = np.insert(tried, 0, 0)
        per_sample = self.tokenization.per_sample
        lengths = [
            sum(
                len(sequence.tokens)
                for group in groups
                for sequence in merge(
                    group, Budget(merges=int(m)), rule=self._rule, per_sample=per_sample
                ).sequences
            )
            for m in tried
        ]
        return reduction_bins(tried, np.array(lengths))

    def arrays(
        self, chosen: Sequence[int] | np.ndarray, merged: Sequence[DynamicTokens]
    ) -> TaskBatch:
        """Pads everything to buckets."""
        tokens: list[Sequence[Token]] = [sequence.tokens for sequence in merged]
        if self.model.rows == "base":
            # By ids, since text that the vocabulary lacks has the unknown token's row.
            tokens = [self.examples.base[i].ids.tolist() for i in chosen]
        batch = make_batch(tokens, "right", self.sequences, self.model.max_length, LENGTHS)
        task = self.examples.task
        shape = batch.ids.shape if task.kind == "token" else batch.ids.shape[:1]
        labels = np.full(shape, UNLABELLED, np.int32)
        for row, (i, sequence) in enumerate(zip(chosen, merged, strict=True)):
            found = self.examples.labels(int(i), sequence)
            labels[(row, slice(len(found))) if found.ndim else row] = found
        rows = self.model.table(batch, max(self._rows, batch.unique_bucket))
        return TaskBatch(np.asarray(rows), batch.ids, batch.mask, labels)


def reduction_bins(
    merges: Int[np.ndarray, " M"], lengths: Int[np.ndarray, " M"]
) -> list[np.ndarray]:
    """Sorts numbers of merges into bins of equal width over the reduction they give.

    The original draws a bin first and then a number in it, so that small numbers of merges, which
    save most, are drawn as often as many; a bin that holds none is left out.

    Args:
        merges: numbers of merges.
        lengths: tokens that are left after each.
    """
    most = lengths.max() - lengths.min()
    reached = (lengths.max() - lengths) / max(most, 1)
    places = np.minimum((reached * BINS).astype(int), BINS - 1)
    return [merges[places == i] for i in range(BINS) if (places == i).any()]
