"""The line on standard error that says what a run saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dyntok_jax.embed.cache import RowCache


def summarize(
    before: int,
    after: int,
    lines: int,
    truncated: int,
    seconds: float,
    cache: RowCache | None = None,
) -> None:
    """Tokens before and after, time, and what the row cache did."""
    saved = 100 * (before - after) / before if before else 0.0
    parts = [f"{lines} lines: {before} tokens before, {after} after, {saved:.1f} % saved"]
    if truncated:
        parts.append(f"{truncated} tokens truncated")
    if cache:
        parts += [f"row cache {cache.hits} hits, {cache.misses} misses", *cache.costs()]
    click.echo(", ".join([*parts, f"{seconds:.2f} s"]), err=True)
