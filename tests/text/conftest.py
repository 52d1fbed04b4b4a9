"""A tiny tokenizer of each family."""

from __future__ import annotations

import pytest
from laid_out import FAMILIES

from dyntok_jax.text.base_tokens import BaseTokenizer


@pytest.fixture(params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest, tiny_tokenizers) -> BaseTokenizer:
    return BaseTokenizer(*tiny_tokenizers[request.param])
