"""Tiny models, and a way to run an evaluation command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
from tiny_folders import decoder, encoder, folders

__all__ = ["decoder", "encoder", "folders"]


class Run(NamedTuple):
    """What a run left behind."""

    code: int
    out: str
    err: str

    @property
    def shown(self) -> str:
        """What was printed, with single spaces between words."""
        return " ".join(self.out.split())


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., Run]:
    """Runs a command's ``main`` with arguments."""

    def run(main: Callable[[], None], *arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = int(exit.code or 0)
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run
