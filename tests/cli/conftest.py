"""Folders of tiny models and tokenizers, and a way to run the command."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from tiny_folders import decoder, encoder, folders

from dyntok_jax.cli import main

__all__ = ["decoder", "encoder", "folders"]


class Run(NamedTuple):
    """What a run of the command left behind."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def dyntok(monkeypatch, capsys) -> Callable[..., Run]:
    """Runs ``dyntok ARGUMENTS``; ``stdin`` is bytes or a list of records."""

    def run(*arguments: object, stdin: bytes | list[Any] = b"") -> Run:
        if isinstance(stdin, list):
            stdin = "".join(json.dumps(record) + "\n" for record in stdin).encode()
        monkeypatch.setattr(sys, "argv", ["dyntok", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        return Run(int(exit.value.code or 0), captured.out, captured.err)

    return run
