"""The file of an adapter's training, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dyntok_jax.config import ComputeConfig, at_least
from dyntok_jax.embed.providers import check_base_rows
from dyntok_jax.models.lora import LoraConfig
from dyntok_jax.tasks.registry import TASKS
from dyntok_jax.tasks.source import TaskSource
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.types import DyntokError
from train.loop import TrainingConfig


@dataclass(frozen=True)
class TokenizationConfig:
    """How training batches are merged.

    Attributes:
        mode: ``static`` leaves base tokens; ``fixed`` merges to ``reduction``; the others draw anew
            for every batch: ``merges`` m ~ U(0, m_max) with m_max what exhausts the batch (paper,
            Eq. 4), ``reduction`` a percentage ~ U(0, 100), ``bins`` a number of merges as the
            original code does, by bins of equal width over the reduction that it gives on average.
        reduction: percent of the largest possible saving of tokens; goes with ``fixed`` only.
        per_sample: every sequence is merged by itself, with a draw of its own.
        boundary: what merges do not cross.
    """

    mode: Literal["static", "fixed", "merges", "reduction", "bins"] = "static"
    reduction: float | None = None
    per_sample: bool = False
    boundary: Boundary = Boundary.PRETOKEN

    def __post_init__(self) -> None:
        if self.mode == "fixed" and (self.reduction is None or not 0 <= self.reduction <= 100):
            raise DyntokError(
                f"tokenization.reduction: {self.reduction}; valid is a percentage from 0 to 100"
            )
        # What changes nothing is refused: whoever gives it takes it for something else.
        if self.mode != "fixed" and self.reduction is not None:
            raise DyntokError(
                f"tokenization.reduction: {self.reduction:g} is nothing to the mode {self.mode}; "
                "it goes with fixed"
            )
        if self.mode == "static" and self.per_sample:
            raise DyntokError("tokenization.per_sample: nothing merges in the mode static")


@dataclass(frozen=True)
class LoraRun:
    """A training run of an adapter and a task's head.

    Attributes:
        model: name or folder of the base model, an encoder.
        task: what is learnt.
        data: training examples.
        training: optimizer, checkpoints; its ``steps`` may be left out where ``epochs`` are given.
        epochs: passes over the examples.
        held_out: examples of evaluations, each source with a language.
        held_out_reductions: percentages to which they are merged in an evaluation.
        rows: see ``embed.providers.row_provider``; ``base`` goes with static tokenization only.
        base_rows: whether unmerged tokens keep the model's own rows; by default as the rows say.
        language: row of the hypernetwork's language table, if it has one.
        tokenization: of training batches.
        lora: shape of the adapter.
        start: folder of an adapter whose values are the first ones; its shape must be ``lora``'s.
        sequences: B, examples in a batch.
        max_length: base tokens of a sequence at most; at most what the model can read.
        grouped: batches whose examples are sorted by length together; 1 takes them as they come.
        compute: dtype and mesh.
    """

    model: str
    task: Literal["xnli", "uner"]
    data: tuple[TaskSource, ...]
    training: TrainingConfig
    epochs: int = 0
    held_out: tuple[TaskSource, ...] = ()
    held_out_reductions: tuple[float, ...] = (0.0,)
    rows: str = "default"
    base_rows: Literal["own", "predicted"] | None = None
    language: int | None = None
    tokenization: TokenizationConfig = field(default_factory=TokenizationConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    start: Path | None = None
    sequences: int = 32
    max_length: int = 128
    grouped: int = 50
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        at_least(self, sequences=1, max_length=1, grouped=1, epochs=0)
        if not self.data:
            raise DyntokError("data is empty; give a source of examples at least")
        if (self.epochs > 0) == (self.training.steps > 0):
            raise DyntokError("give the run's length: either epochs or training.steps, from 1")
        if self.rows == "base" and self.tokenization.mode != "static":
            raise DyntokError(
                f"tokenization.mode: {self.tokenization.mode} makes tokens that base rows lack; "
                "valid with them is static"
            )
        check_base_rows(self.rows, self.base_rows)
        merges = self.tokenization.mode != "static" or any(self.held_out_reductions)
        across_words = merges and self.tokenization.boundary is Boundary.SENTENCE
        if across_words and TASKS[self.task].kind == "token":
            raise DyntokError(
                f"tokenization.boundary: sentence merges words of {self.task} into others, so that "
                "their labels are lost; valid are the other boundaries, or the mode static and "
                "held_out_reductions of 0"
            )
        languages = [source.language for source in self.held_out]
        if len(set(languages)) < len(languages):
            raise DyntokError("held_out: every source needs a language of its own")
        if bad := [value for value in self.held_out_reductions if not 0 <= value <= 100]:
            raise DyntokError(f"held_out_reductions: {bad[0]:g}; valid are 0 to 100")
        if self.rows == "base" and any(self.held_out_reductions):
            raise DyntokError("held_out_reductions: valid with base rows is 0 only")
        if self.training.evaluate_every and not self.held_out:
            raise DyntokError("training.evaluate_every needs held_out examples")
