"""Recorded tokenizers and sources of the row providers' tests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from dyntok_jax.text.base_tokens import BaseTokenizer


@pytest.fixture(scope="session")
def byte_tokenizer(shared: Path) -> Callable[[str], BaseTokenizer]:
    """Recorded tokenizers (mistral, xlmrlike, focus_de) in byte-level form, by name."""

    @cache
    def load(name: str) -> BaseTokenizer:
        path = shared / "golden" / "tokenizers" / f"{name}_byte" / "tokenizer.json.gz"
        with gzip.open(path) as file:
            return BaseTokenizer(json.load(file))

    return load


class Recorded(NamedTuple):
    """A recorded hypernetwork: its folder, the facts of the manifest, its outputs, its source."""

    folder: Path
    facts: dict[str, Any]
    outputs: dict[str, np.ndarray]
    source: np.ndarray


@pytest.fixture(scope="session")
def recorded_hypernet(shared: Path) -> Callable[[str], Recorded]:
    """Recorded hypernetworks by name."""
    folder = shared / "golden" / "hypernet"
    manifest = json.loads((folder / "manifest.json").read_text())["configs"]

    @cache
    def load(name: str) -> Recorded:
        facts = manifest[name]
        shape = facts["source_embeddings"]["shape"]
        seed = facts["source_embeddings"]["numpy_RandomState_seed"]
        source = np.random.RandomState(seed).standard_normal(shape) * 0.5 + 0.05
        outputs = dict(np.load(folder / name / "golden.npz"))
        return Recorded(folder / name, facts, outputs, source.astype(np.float32))

    return load
