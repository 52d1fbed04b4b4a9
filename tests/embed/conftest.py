"""Recorded tokenizers and sources of the row providers' tests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

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
