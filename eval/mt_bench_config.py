"""The file of a run over MT-Bench, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dyntok_jax.config import ComputeConfig
from dyntok_jax.embed.providers import check_base_rows
from dyntok_jax.large_vocabulary.opening import EXACT
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.types import DyntokError

OWN, PREDICTED = "own", "predicted"

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "stem": 0.1,
    "humanities": 0.1,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
}
"""By category, as MT-Bench has it (Zheng et al. 2023, appendix)."""


@dataclass(frozen=True)
class MtBenchSetting:
    """One way to answer.

    Attributes:
        name: ends the answers' ``model_id`` and names their file: letters, digits, ``-_.``.
        reduction: percent of the largest possible saving of the prompt's tokens; null cuts prompts
            into the longest tokens of the vocabulary instead.
        rows: of merged tokens of prompts; see ``embed.providers.row_provider``.
        base_rows: whether unmerged tokens of prompts keep the model's own rows; not with a null
            reduction, where the large vocabulary's rows are read.
        vocabulary: to answer in: ``own``, the model's with its own rows; ``predicted``, the model's
            with rows that ``rows`` predicts; or the folder of a large one.
        index: of a large one: ``exact``, ``exact-cosine``, or the folder of a ScaNN index.
        top_k, min_p, repetition_penalty: as in ``generate``.
        temperature: by default as MT-Bench has it for the category.
    """

    name: str
    reduction: float | None = 0.0
    rows: str = "default"
    base_rows: Literal["own", "predicted"] | None = None
    vocabulary: str = OWN
    index: str = EXACT
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float | None = None

    def __post_init__(self) -> None:
        where = f"setting {self.name!r}"
        if not self.name or not all(c.isalnum() or c in "-_." for c in self.name):
            raise DyntokError(f"{where}: valid are letters, digits and -_. (it names a file)")
        if self.reduction is not None and not 0 <= self.reduction <= 100:
            raise DyntokError(f"{where}: reduction {self.reduction}; valid is 0 to 100, or null")
        if self.reduction and self.rows == "base":
            raise DyntokError(f"{where}: base rows exist for unmerged tokens only; give others")
        check_base_rows(self.rows, self.base_rows, f"{where}: ")
        if self.vocabulary == PREDICTED and self.rows == "base":
            raise DyntokError(
                f"{where}: base rows predict nothing; valid with vocabulary: predicted are others"
            )
        if self.reduction is None and self.base_rows:
            raise DyntokError(
                f"{where}: base_rows goes with a reduction; longest prefixes are read by the large "
                "vocabulary's rows"
            )
        large = self.vocabulary not in (OWN, PREDICTED)
        if self.reduction is None and not large:
            raise DyntokError(f"{where}: longest prefixes are of a large vocabulary; give one")
        if self.index != EXACT and not large:
            raise DyntokError(f"{where}: an index is of a large vocabulary; give one")


@dataclass(frozen=True)
class MtBenchRun:
    """A run.

    Attributes:
        model: name or folder of a decoder with a chat template.
        questions: ``question.jsonl``, as FastChat has it.
        answers: folder of the answers, a file ``MODEL-NAME.jsonl`` a setting.
        settings: ways to answer.
        first: only so many questions, spread evenly.
        turns: of each question, 1 or 2.
        sweep: reductions in percent of the sweeps, which ``--sweep`` adds, for the first turn.
        max_new_tokens: of a turn.
        batch_size: questions answered together.
        language: row of the language table of the hypernetworks that have one.
        boundary: what merges do not cross.
        seed: of the draws.
        compute: dtype and mesh.
    """

    model: str
    questions: str
    answers: str
    settings: list[MtBenchSetting]
    first: int | None = None
    turns: int = 2
    sweep: list[float] = field(default_factory=lambda: [10.0 * i for i in range(11)])
    max_new_tokens: int = 1024
    batch_size: int = 8
    language: int | None = None
    boundary: Boundary = Boundary.PRETOKEN
    seed: int = 0
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        names = [setting.name for setting in self.settings]
        if not names or len(set(names)) < len(names):
            raise DyntokError("settings: at least one is needed, each with a name of its own")
        first = 1 if self.first is None else self.first
        if self.turns not in (1, 2) or min(first, self.batch_size) < 1:
            raise DyntokError("turns is 1 or 2; first and batch_size are numbers from 1")
        if bad := [value for value in self.sweep if not 0 <= value <= 100]:
            raise DyntokError(f"sweep: {bad[0]}; valid are percentages from 0 to 100")
