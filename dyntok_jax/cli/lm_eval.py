"""``dyntok lm-eval``: the command of lm-evaluation-harness, which does not look for plugins."""

from __future__ import annotations

import importlib.util
import sys

import click

from dyntok_jax.types import DyntokError


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """lm-evaluation-harness as it is (``lm_eval``), with one more model, ``dyntok``.

    Contexts are merged, each alone; what is scored stays in base tokens.

    \b
    Example:
      dyntok lm-eval --model dyntok --tasks arc_easy
        --model_args model=smollm2-135m-instruct,rows=default,reduction=50,batch_size=8
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise DyntokError("lm-evaluation-harness is not installed: pip install dyntok_jax[lm-eval]")
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    from dyntok_jax import lm_eval_adapter  # noqa: F401  # registers the model

    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
