"""Texts to lay out, and what holds for every sequence."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from dyntok_jax.model_store import list_models, pull
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.layouts import BaseTokens

FAMILIES = ("byte_bpe", "fallback_bpe", "unigram", "wordpiece")
TEXT = "The dog doesn't jump over the lazy dog's house, or 24 other houses."
CONVERSATION = [
    {"role": "system", "content": "You like dogs."},
    {"role": "user", "content": "The dog  jumps\nover it"},
    {"role": "assistant", "content": " hm "},
    {"role": "user", "content": ""},
    {"role": "user", "content": "24?"},
]


def check(sequence: BaseTokens) -> None:
    """What holds for every sequence: equal lengths, special tokens alone in their units."""
    size = len(sequence.tokens)
    assert sequence.ids.shape == sequence.units.shape == (size,)
    assert sequence.ids.dtype == sequence.units.dtype == np.int32
    steps = np.diff(sequence.units)
    assert ((steps == 0) | (steps == 1)).all()
    assert size == 0 or sequence.units[0] == 0
    for i, token in enumerate(sequence.tokens):
        if isinstance(token, int):
            assert sequence.ids[i] == token
            assert (sequence.units == sequence.units[i]).sum() == 1
            assert sequence.word_ids is None or sequence.word_ids[i] == -1


def library_ids(
    content: dict[str, Any], config: dict[str, Any], messages: list, generation_prompt: bool
) -> list[int]:
    """The ids that transformers gives for the conversation."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), **config
    )
    encoded: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=generation_prompt
    )
    return encoded["input_ids"]


def cached(name: str) -> BaseTokenizer:
    entry = next(entry for entry in list_models() if entry.name == name)
    if not entry.cached:
        pytest.skip(f"{name} is not on this machine (dyntok models pull {name})")
    return BaseTokenizer.from_folder(pull(name))
