"""The file of an evaluation of task adapters, as frozen dataclasses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from dyntok_jax.config import ComputeConfig
from dyntok_jax.embed.providers import check_base_rows
from dyntok_jax.embed.shipped import table_languages
from dyntok_jax.embed.zett import table_size
from dyntok_jax.tasks.source import TaskSource
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.types import DyntokError, did_you_mean
from eval.record import has_languages

T = TypeVar("T")


class Rowed(Protocol):
    """A setting: it says what embeds tokens."""

    @property
    def rows(self) -> str:
        """See ``embed.providers.row_provider``."""
        ...


def repeated(names: Sequence[T]) -> T | None:
    """The first that stands there again, None where all differ."""
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


def hypernet_language(given: Sequence[str], rows: str, language: str) -> int | None:
    """Row of a hypernetwork's language table for a source's language, None where there is none.

    Args:
        given: ``hypernet_languages`` of the config.
        rows: what embeds tokens.
        language: its own up to ``_`` (``en_ewt``) is looked up.

    Raises:
        DyntokError: not in the table, or languages that are not the table's.
    """
    if not has_languages(rows):
        return None
    known = _table(given, Path(rows))
    if not known:
        return None
    code = language.partition("_")[0]
    if code not in known:
        raise DyntokError(
            f"{language}: {code} is no language of the hypernetwork; valid are {', '.join(known)}"
        )
    return known.index(code)


def check_languages(
    given: Sequence[str], settings: Iterable[Rowed], languages: Iterable[str]
) -> None:
    """Asks for every language of a run, before its hours of work.

    Raises:
        DyntokError: as :func:`hypernet_language`; languages that no rows have a table for.
    """
    asked = [*product({setting.rows for setting in settings}, languages)]
    found = [hypernet_language(given, rows, language) for rows, language in asked]
    if given and not any(row is not None for row in found):
        raise DyntokError("hypernet_languages: the rows of no setting have a table of languages")


def _table(given: Sequence[str], folder: Path) -> Sequence[str]:
    """The languages of a hypernetwork's table: those that its folder names, else those given."""
    said = table_languages(folder)
    if given and said and [*given] != said:
        raise DyntokError(
            f"hypernet_languages: {', '.join(given)}; {folder} names "
            f"{', '.join(said)}; leave it out"
        )
    if given and len(given) != (size := table_size(folder)):
        raise DyntokError(
            f"hypernet_languages: {len(given)} names; the table of {folder} has {size} rows"
        )
    return said or given


@dataclass(frozen=True)
class Setting:
    """One line of the table.

    Attributes:
        name: in reports.
        adapter: a key of ``adapters``.
        reduction: percent of the largest possible saving of tokens; 0 leaves base tokens.
        rows: see ``embed.providers.row_provider``.
        base_rows: whether unmerged tokens keep the model's own rows; by default as the rows say.
        control: name of another setting, to which the difference is given beside that to the first.
    """

    name: str
    adapter: str
    reduction: float = 100
    rows: str = "default"
    base_rows: Literal["own", "predicted"] | None = None
    control: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.reduction <= 100:
            raise DyntokError(
                f"setting {self.name!r}: reduction {self.reduction}; valid is 0 to 100"
            )
        if self.reduction and self.rows == "base":
            raise DyntokError(
                f"setting {self.name!r}: base rows are of base tokens: valid is a reduction of 0"
            )
        check_base_rows(self.rows, self.base_rows, f"setting {self.name!r}: ")


@dataclass(frozen=True)
class TaskRun:
    """An evaluation.

    Attributes:
        model: name or folder of the base model.
        adapters: name -> folders of trained adapters, each another one, one a seed; every name is
            in a setting.
        settings: lines of the table; differences are to the first.
        data: examples, each source with a language of its own.
        average: languages that the average is over; all by default.
        hypernet_languages: the languages of the hypernetwork's table, in its order, where it has
            one and its folder does not name them; that of a source is its own up to ``_``
            (``en_ewt``).
        boundary: what merges do not cross.
        batch_size: examples merged together, and sequences in a batch of the network.
        max_length: of a sequence in base tokens; at most what the model can read.
        sweep: reductions in percent of the sweeps, which ``--sweep`` adds to the table.
        sweep_examples: only so many examples a language in the sweeps.
        compute: dtype and mesh.
    """

    model: str
    adapters: dict[str, list[str]]
    settings: list[Setting]
    data: list[TaskSource]
    average: list[str] = field(default_factory=list)
    hypernet_languages: list[str] = field(default_factory=list)
    boundary: Boundary = Boundary.PRETOKEN
    batch_size: int = 32
    max_length: int = 128
    sweep: list[float] = field(default_factory=lambda: [10.0 * i for i in range(11)])
    sweep_examples: int | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        if not self.settings or not self.data:
            raise DyntokError("settings and data: at least one of each is needed")
        for setting in self.settings:
            if not self.adapters.get(setting.adapter):
                raise DyntokError(
                    f"setting {setting.name!r}: no adapter {setting.adapter!r}"
                    f"{did_you_mean(setting.adapter, self.adapters)}; valid are those of adapters, "
                    "each with a list of folders"
                )
        named = {setting.adapter for setting in self.settings}
        if unnamed := [name for name in self.adapters if name not in named]:
            raise DyntokError(f"adapters: {unnamed[0]!r} is in no setting; leave it out")
        for name, folders in self.adapters.items():
            # By where they lead, since one folder may be written in several ways.
            if twice := repeated([os.path.realpath(folder) for folder in folders]):
                raise DyntokError(
                    f"adapters, {name!r}: {twice} is there twice; valid are different folders"
                )
        languages = [source.language for source in self.data]
        if "" in languages:
            raise DyntokError("data: a source has no language; every one needs one of its own")
        if twice := repeated(languages):
            raise DyntokError(f"data: language {twice} is there twice; valid is one source of each")
        if twice := repeated(self.average):
            raise DyntokError(f"average: {twice} is there twice; valid are different languages")
        if missing := [name for name in self.average if name not in languages]:
            raise DyntokError(f"average: {missing[0]} is not in data ({', '.join(languages)})")
        if bad := [value for value in self.sweep if not 0 <= value <= 100]:
            raise DyntokError(f"sweep: {bad[0]}; valid are percentages from 0 to 100")
        names = [setting.name for setting in self.settings]
        if len(set(names)) < len(names):
            raise DyntokError("settings: every one needs a name of its own")
        for setting in self.settings:
            others = [name for name in names if name != setting.name]
            if setting.control is not None and setting.control not in others:
                raise DyntokError(
                    f"setting {setting.name!r}: no control {setting.control!r}"
                    f"{did_you_mean(setting.control, others)}; valid is another setting's name"
                )
        first = 1 if self.sweep_examples is None else self.sweep_examples
        sizes = self.batch_size, self.max_length, first
        if min(sizes) < 1:
            raise DyntokError("batch_size, max_length and sweep_examples: valid are numbers from 1")
