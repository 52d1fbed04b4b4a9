"""The file of an evaluation on MMLU, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dyntok_jax.config import ComputeConfig
from dyntok_jax.embed.providers import OF_PIECES, check_base_rows
from dyntok_jax.tasks.source import TaskSource
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.types import DyntokError

OWN = "own"


@dataclass(frozen=True)
class MmluSetting:
    """One line of the table.

    Attributes:
        name: in reports.
        reduction: percent of the largest possible saving of the prompt's tokens, by merging.
        longest_prefix: in place of merging, the longest tokens of a vocabulary: ``own``, the
            model's, or the folder of a large one (``python -m train.vocabulary``).
        rows: see ``embed.providers.row_provider``.
        base_rows: whether unmerged tokens keep the model's own rows; by default as the rows say.
        output: whose output rows score the letters: the model's own, or predicted ones.
    """

    name: str
    reduction: float = 100
    longest_prefix: str | None = None
    rows: str = "default"
    base_rows: Literal["own", "predicted"] | None = None
    output: Literal["own", "predicted"] = "own"

    def __post_init__(self) -> None:
        where = f"setting {self.name!r}"
        if not 0 <= self.reduction <= 100:
            raise DyntokError(f"{where}: reduction {self.reduction}; valid is 0 to 100")
        if self.longest_prefix and self.reduction != 100:
            raise DyntokError(f"{where}: reduction is of merging; leave it out, or longest_prefix")
        unmerged = self.longest_prefix == OWN or (self.reduction == 0 and not self.longest_prefix)
        if self.rows == "base" and not unmerged:
            raise DyntokError(
                f"{where}: base rows are of base tokens: valid are a reduction of 0 and "
                "longest_prefix: own"
            )
        check_base_rows(self.rows, self.base_rows, f"{where}: ")
        if self.output == "predicted" and (self.rows == "base" or self.rows in OF_PIECES):
            raise DyntokError(
                f"{where}: {self.rows} rows predict no output rows; valid are a hypernetwork's"
            )


@dataclass(frozen=True)
class MmluData:
    """Questions in one language.

    Attributes:
        language: name in reports.
        questions: what is asked.
        shots: of which the first five of each subject are shown solved.
        first: only so many questions, spread evenly over all of them.
    """

    language: str
    questions: TaskSource
    shots: TaskSource
    first: int | None = None

    def __post_init__(self) -> None:
        if not self.language or (self.first is not None and self.first < 1):
            raise DyntokError("data: each needs a language, and first is a number from 1")


def check_languages(data: list[MmluData]) -> None:
    """Whether there is data, each with a language of its own.

    Raises:
        DyntokError: there is not.
    """
    languages = [part.language for part in data]
    if not languages or len(set(languages)) < len(languages):
        raise DyntokError("data: at least one is needed, each with a language of its own")


@dataclass(frozen=True)
class MmluRun:
    """An evaluation.

    Attributes:
        model: name or folder of a decoder.
        settings: lines of the table; differences are to the first.
        data: questions, each with a language of its own.
        hypernet_languages: the languages of the hypernetwork's table, in its order, where it has
            one and its folder does not name them.
        boundary: what merges do not cross.
        batch_size: sequences in a batch of the network.
        max_length: of prompt and answer in base tokens; at most what the model can read.
        sweep: reductions in percent of the sweeps, which ``--sweep`` adds to the table.
        sweep_first: only so many questions a language in the sweeps, spread evenly.
        compute: dtype and mesh.
    """

    model: str
    settings: list[MmluSetting]
    data: list[MmluData]
    hypernet_languages: list[str] = field(default_factory=list)
    boundary: Boundary = Boundary.PRETOKEN
    batch_size: int = 8
    max_length: int = 8192
    sweep: list[float] = field(default_factory=lambda: [10.0 * i for i in range(11)])
    sweep_first: int | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        check_languages(self.data)
        names = [setting.name for setting in self.settings]
        if not names or len(set(names)) < len(names):
            raise DyntokError("settings: at least one is needed, each with a name of its own")
        if bad := [value for value in self.sweep if not 0 <= value <= 100]:
            raise DyntokError(f"sweep: {bad[0]}; valid are percentages from 0 to 100")
        first = 1 if self.sweep_first is None else self.sweep_first
        if min(self.batch_size, self.max_length, first) < 1:
            raise DyntokError("batch_size, max_length and sweep_first: valid are numbers from 1")
