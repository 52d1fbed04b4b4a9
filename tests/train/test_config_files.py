"""Every file of a training run is valid and says how it is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from dyntok_jax.config import read_config
from dyntok_jax.types import DyntokError
from train.config import HypernetRun
from train.optim import make_schedule

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "hypernet").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_file_is_valid_and_says_its_command(path, monkeypatch):
    monkeypatch.setenv("TEXT", "texts")
    monkeypatch.setenv("MODEL", "model")
    run = read_config(HypernetRun, path)
    make_schedule(run.training.optimizer.phases, run.training.steps)
    head = path.read_text("utf-8").split("model:")[0]
    assert f"python -m train.hypernet --config configs/hypernet/{path.name}" in head
    assert all(line.startswith("#") for line in head.splitlines())


def test_overrides_win(monkeypatch):
    monkeypatch.setenv("TEXT", "texts")
    monkeypatch.setenv("MODEL", "model")
    run = read_config(HypernetRun, FILES[0], ["training.steps=7", "compute.mesh.data=2"])
    assert run.training.steps == 7 and run.compute.mesh.data == 2
    with pytest.raises(DyntokError, match=r"training\.steps"):
        read_config(HypernetRun, FILES[0], ["training.stepz=7"])
