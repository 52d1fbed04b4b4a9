"""Texts that go on in the middle of another get no space before them."""

from __future__ import annotations

import pytest

from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.byte_level import to_text


@pytest.mark.parametrize("family", ["byte_bpe", "fallback_bpe", "unigram"])
@pytest.mark.parametrize("text", ["Paris", " Paris", "  two", "ly, as the dog", ""])
def test_the_bytes_are_the_text_s(tiny_tokenizers, family, text):
    tokenizer = BaseTokenizer(*tiny_tokenizers[family])
    (pieces,) = tokenizer.encode_continuations([text])
    assert to_text(pieces.tokens) == text


@pytest.mark.parametrize("family", ["fallback_bpe", "unigram"])
def test_a_first_text_gets_one(tiny_tokenizers, family):
    tokenizer = BaseTokenizer(*tiny_tokenizers[family])
    assert to_text(tokenizer.encode(["Paris"])[0].tokens) == " Paris"
    assert tokenizer.encode(["Paris"])[0].ids == tokenizer.encode_continuations([" Paris"])[0].ids
