"""The ``dyntok`` command: thin, one file a subcommand."""

from __future__ import annotations

import importlib
import io
import logging
import os
import signal
import sys

import click

from dyntok_jax.command_line import open_standard_error
from dyntok_jax.host_memory import keep_freed_memory
from dyntok_jax.types import DyntokError, did_you_mean

_COMMANDS = {
    "models": "List, fetch and find models.",
    "tokenize": "Text to dynamic tokens.",
    "rows": "Embedding rows of tokens.",
    "encode": "Text to vectors, with an encoder.",
    "score": "Log-probabilities of choices after a prompt, with a decoder.",
    "generate": "Text after prompts, with a decoder.",
    "lm-eval": "lm-evaluation-harness, which knows the model dyntok here.",
    "demo": "Two real models on 14 languages: a table and an HTML page.",
}


_WITHOUT_MODELS = ("models", "tokenize")
"""Commands that run none."""


class _Commands(click.Group):
    """Loads a command's file only when it runs, so that none waits for another's libraries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        if cmd_name not in _WITHOUT_MODELS:
            keep_freed_memory()
        return importlib.import_module(f"dyntok_jax.cli.{cmd_name.replace('-', '_')}").command

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args[0] not in _COMMANDS:
            hint = did_you_mean(args[0], _COMMANDS)
            raise click.UsageError(
                f"no command {args[0]!r}{hint}; valid: {', '.join(_COMMANDS)}", ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dyntok_jax")
def dyntok() -> None:
    """Dynamic tokenization for pretrained language models.

    \b
    Example:
      echo '{"text": "Donaudampfschifffahrt"}' | dyntok tokenize --model multilingual-e5-small -
    """


def main() -> None:
    """Runs the command line; every mistake of the user's is one line on standard error."""
    open_standard_error()
    if sys.stdout is None:
        said = "standard output is closed; give it a place, such as /dev/null"
        sys.exit(_complain(said, 1))
    # JSON lines are UTF-8 whatever the environment says.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors=sys.stdout.errors)
    # transformers would say on every start that torch is not there; it is not needed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # As an interrupt does, so that no half-written file is left.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = dyntok.main(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        code = 2
    except click.ClickException as error:
        code = _complain(error.format_message(), error.exit_code)
    except DyntokError as error:
        code = _complain(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        code = _complain("interrupted", 130)
    except BrokenPipeError:
        # The reader has gone (``| head``): nothing to say, and nothing left to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        code = _complain(f"{error.filename or 'input or output'}: {error.strerror}", 1)
    sys.exit(code or 0)


def _complain(message: str, code: int) -> int:
    print("dyntok: " + " ".join(message.split()), file=sys.stderr)
    return code
