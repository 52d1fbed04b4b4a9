"""Settings of distillation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dyntok_jax.config import at_least
from dyntok_jax.types import DyntokError


@dataclass(frozen=True)
class DistillConfig:
    """Weights and sizes of the distillation loss.

    Attributes:
        sequences: B, sequences in a batch.
        max_length: T, base tokens of a sequence at most.
        prefix: put before every text, as an encoder expects it (encoders).
        layers: run the student through its first layers only, and compare hidden states there;
            None for all. The loss ``output`` then takes the teacher's last states for its own.
        merge_rates: smallest and largest percentage of merges, drawn per batch.
        prompt_share: smallest and largest share of each sequence, from its start, that merges,
            drawn for each (decoders). What follows stays in base tokens, as after a prompt that
            was shortened; ``output`` is not taken there. From 0 to 1.
        repeated_words: chance, from 0 to 1, that a sequence's second half is the words of its first
            one again, in another order (decoders): what is hardest after a merged prompt is to
            spell its words. Prompts end at the half then, or before.
        hidden: weight of the relative squared error of hidden states.
        pooled: weight of one minus the cosine of vectors, means over base tokens (encoders).
        shortfall: weight of the squared share of a batch's vectors, centred, that is lacking along
            the teacher's (encoders).
        divergence: weight of KL(teacher || student) of next base tokens (decoders).
        output: weight of the next dynamic token's cross-entropy (decoders), among the vocabulary
            and what was merged in the same process.
        scored: positions of a batch at which the last two are taken, ``output`` as far as they are
            within prompts.
        vocabulary: folder of a large vocabulary, of which ``drawn`` tokens stand beside the batch's
            own in ``output``, each for its share of all (sampled softmax): rows so trained keep
            their place among all the vocabulary's.
        drawn: how many for each batch.
    """

    sequences: int = 24
    max_length: int = 64
    prefix: str = ""
    layers: int | None = None
    merge_rates: tuple[float, float] = (0.0, 100.0)
    prompt_share: tuple[float, float] = (1.0, 1.0)
    repeated_words: float = 0.0
    hidden: float = 1.0
    pooled: float = 1.0
    shortfall: float = 0.0
    divergence: float = 0.0
    output: float = 0.0
    scored: int = 256
    vocabulary: Path | None = None
    drawn: int = 256

    def __post_init__(self) -> None:
        at_least(self, sequences=1, max_length=2, hidden=0, pooled=0, divergence=0, output=0)
        at_least(self, shortfall=0, scored=1)
        if self.layers is not None:
            at_least(self, layers=1)
        low, high = self.merge_rates
        if not 0 <= low <= high <= 100 or not high:
            raise DyntokError(f"merge_rates: {low} to {high} is no range of percentages")
        low, high = self.prompt_share
        if not 0 <= low <= high <= 1 or not high:
            raise DyntokError(f"prompt_share: {low} to {high} is no range of shares from 0 to 1")
        if not 0 <= self.repeated_words <= 1:
            raise DyntokError(f"repeated_words: {self.repeated_words} is no chance from 0 to 1")
        if self.repeated_words and high > 0.5:
            raise DyntokError(
                f"repeated_words: with prompt_share up to {high} what is repeated would merge too; "
                "valid is 0.5 at most"
            )
        if self.vocabulary is not None and (self.drawn < 1 or not self.output):
            raise DyntokError(
                "distill.vocabulary: tokens of it are drawn for the loss distill.output; give that "
                "a weight, and distill.drawn at least 1"
            )
