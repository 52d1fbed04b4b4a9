"""Fixtures shared by all tests: where real data and models are, if they are there."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of recorded outputs and evaluation data (environment variable DYNTOK_SHARED)."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("DYNTOK_SHARED", default))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no recorded outputs at {folder} (set DYNTOK_SHARED)")
    return folder
