"""``dyntok lm-eval`` where lm-evaluation-harness is and where it is not."""

from __future__ import annotations

import importlib.util

import pytest
from click.testing import CliRunner

from dyntok_jax.cli import dyntok
from dyntok_jax.types import DyntokError


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = CliRunner().invoke(dyntok, ["lm-eval", "--model", "dyntok"])
    assert isinstance(done.exception, DyntokError)
    assert "pip install dyntok_jax[lm-eval]" in str(done.exception)


@pytest.mark.filterwarnings("default")
def test_the_harness_knows_the_model_and_still_its_own():
    pytest.importorskip("lm_eval")
    from lm_eval.api.registry import get_model  # pyright: ignore[reportMissingImports]

    done = CliRunner().invoke(dyntok, ["lm-eval", "ls", "--help"])
    assert done.exit_code == 0 and "tasks" in done.output
    assert get_model("dyntok").__name__ == "DyntokLM"
    assert get_model("dummy").__name__ == "DummyLM"
