"""Evaluations of rows in which an adapter reads the last of them once more."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.types import DyntokError


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """Adds the option of an adapter."""
    parser.add_argument(
        "--adapter",
        metavar="DIR|default",
        help="read the last of --rows once more with an adapter (train.reading), or with the one "
        "that ships",
    )


def with_adapter(
    models: Mapping[str, DynamicModel], adapter: str | None
) -> dict[str, DynamicModel]:
    """Models by the name of their rows, and the last one as an adapter reads its rows.

    Raises:
        DyntokError: no rows for the adapter to read; one that does not fit.
    """
    if adapter is None:
        return dict(models)
    if not models:
        raise DyntokError("--adapter: reads merged tokens; give rows of them, not static alone")
    name, model = [*models.items()][-1]
    return {**models, f"{name}+adapter": model.with_adapter(adapter)}


def said_of_adapter(models: Mapping[str, DynamicModel]) -> dict[str, Any]:
    """What a run file says of the adapter, if there is one."""
    found = next((m.adapter for m in models.values() if m.adapter is not None), None)
    return {} if found is None else {"reading_adapter": found._asdict()}
