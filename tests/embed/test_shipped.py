"""What ships with the package: all of it is packed, and none of it large."""

from __future__ import annotations

import configparser
from fnmatch import fnmatch
from pathlib import Path

import pytest

from dyntok_jax.embed.shipped import FOLDER

FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())
LARGEST = 8_000_000
"""Bytes of a file of weights."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_file_is_packed_and_small(path):
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    patterns = setup["options.package_data"]["dyntok_jax.embed"].split()
    name = path.relative_to(FOLDER.parent)
    assert any(
        len(Path(pattern).parts) == len(name.parts) and fnmatch(str(name), pattern)
        for pattern in patterns
    )
    assert path.stat().st_size <= LARGEST
