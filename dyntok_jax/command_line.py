"""How commands speak: a mistake is one line, and progress is for terminals."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exits with status 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def open_standard_error() -> None:
    """Lets what is said go nowhere where standard error was closed (``2>&-``).

    Python has none then, and a library's first word would end the command.
    """
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def is_terminal() -> bool:
    """Whether standard error is there and a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()
