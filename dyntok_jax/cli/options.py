"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

from dyntok_jax.merging.budget import Budget
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.types import DyntokError, did_you_mean


class Names(click.ParamType):
    """One of a few names; a wrong one is answered with the nearest."""

    name = "name"

    def __init__(self, *valid: str):
        self.valid = valid

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, checked."""
        if value in self.valid:
            return value
        hint = did_you_mean(str(value), self.valid)
        self.fail(f"unknown {value!r}{hint}; valid: {', '.join(self.valid)}", param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The names, as help shows them."""
        return "|".join(self.valid)


class Percent(click.ParamType):
    """A percentage from 0 to 100."""

    name = "pct"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The percentage, checked."""
        try:
            return Budget(reduction=float(value)).reduction or 0.0
        except (ValueError, DyntokError):
            self.fail(f"{value!r}: valid is a percentage from 0 to 100", param, ctx)


class MergeCount(click.ParamType):
    """A number of merges, or ``all``."""

    name = "n|all"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Budget:
        """The budget, checked."""
        if value == "all" or isinstance(value, Budget):
            return Budget() if value == "all" else value
        try:
            return Budget(merges=int(value))
        except (ValueError, DyntokError):
            self.fail(f"{value!r}: valid is a number from 0, or 'all'", param, ctx)


BOUNDARIES = Names(*(boundary.value for boundary in Boundary))

model = click.option("--model", metavar="NAME", help="A model's name, or its folder.")
boundary = click.option(
    "--boundary",
    type=BOUNDARIES,
    default="pretoken",
    show_default=True,
    help="What merges do not cross.",
)
kept_words = click.option(
    "--kept-words",
    type=click.IntRange(min=0),
    metavar="N",
    default=1,
    show_default=True,
    help="Words (punctuation marks, white space) at a prompt's end that stay in base tokens, since "
    "what follows goes on from there.",
)
batch_size = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Lines that are merged together.",
)
max_length = click.option(
    "--max-length",
    type=click.IntRange(min=1),
    help="Cut sequences to so many base tokens, special tokens counted.",
)
reduction = click.option(
    "--reduction",
    type=Percent(),
    metavar="PCT",
    help="Percent of the largest possible saving of tokens.",
)
required_model = click.option(
    "--model", required=True, metavar="NAME", help="A model's name, or its folder."
)
rows = click.option(
    "--rows",
    metavar="default|fvt|…|DIR",
    default="default",
    show_default=True,
    help="Rows of merged tokens: predicted by the hypernetwork that ships for the model (default; "
    "fvt where none does) or by the one in a folder, made of their pieces' rows without training "
    "(fvt, weighted, ridge), or none (base).",
)
language = click.option(
    "--language",
    metavar="NAME|N",
    help="Language of the hypernetwork's table, by its name or its row.",
)
base_rows = click.option(
    "--base-rows",
    type=Names("own", "predicted"),
    help="Whether tokens of the vocabulary keep their own rows.  [default: own, but predicted "
    "by a ZeTT hypernetwork]",
)
UNMERGED = "it is for merged tokens, and nothing is merged at --reduction 0"
adapter = click.option(
    "--adapter",
    metavar="DIR|default",
    help="Run the model with an adapter that learnt to read merged tokens (train.reading), or with "
    "the one that ships for it.  [default: none]",
)
reduction_or_all = click.option(
    "--reduction",
    type=Percent(),
    metavar="PCT",
    default=100,
    show_default=True,
    help="Percent of the largest possible saving of tokens.",
)
config = click.option(
    "--config", metavar="FILE", help="YAML file with dtype and mesh (see configs/)."
)


def check_rows(rows: str, base_rows: str | None, reduction: float = 0) -> None:
    """Base rows exist for unmerged tokens only, and are all own; said before a model is loaded."""
    if rows == "base" and base_rows:
        raise click.UsageError(
            f"--base-rows {base_rows}: base rows are all the model's own; leave it out"
        )
    if rows == "base" and reduction > 0:
        raise click.UsageError(
            f"--rows base with --reduction {reduction:g}: base rows exist for unmerged tokens "
            "only; valid: --reduction 0, or --rows default"
        )


def is_given(name: str) -> bool:
    """Whether the command line has the option, be it with the default's value."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not ParameterSource.DEFAULT


def refuse_idle(idle: Mapping[str, str]) -> None:
    """Refuses what was given and would change nothing; option -> why."""
    for name, why in idle.items():
        if is_given(name):
            raise click.UsageError(f"--{name.replace('_', '-')}: {why}")
