"""A stand-in for pip, a cache folder of the test's own, and a hub that cannot be reached."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny_wheel import FakePip

from dyntok_jax.model_store import hub


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip(tmp_path / "fake-python", tmp_path / "pip-arguments")
    monkeypatch.setattr(sys, "executable", str(fake.program))
    return fake


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYNTOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_args: object, **_options: object) -> Path:
        raise hub.HubError("no route to the hub")

    monkeypatch.setattr(hub, "snapshot", unreachable)
