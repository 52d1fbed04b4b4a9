"""Conversations are laid out by the model's chat template, as transformers does it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from laid_out import CONVERSATION, FAMILIES, cached, check, library_ids

from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import ids_layout, messages_layout, prompt_layout
from dyntok_jax.types import DyntokError


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("generation_prompt", [True, False])
def test_messages_are_tokenized_as_transformers_does(
    tiny_tokenizers, family: str, generation_prompt: bool
):
    content, config = tiny_tokenizers[family]
    tokenizer = BaseTokenizer(content, config)
    (sequence,) = messages_layout(
        tokenizer, [CONVERSATION], add_generation_prompt=generation_prompt
    )
    check(sequence)
    expected = library_ids(content, config, CONVERSATION, generation_prompt)
    assert sequence.ids.tolist() == expected
    specials = [token for token in sequence.tokens if isinstance(token, int)]
    turn = [tokenizer.opening_id, tokenizer.closing_id]
    assert specials == turn * len(CONVERSATION) + turn[:1] * generation_prompt


@pytest.mark.parametrize("family", ["fallback_bpe", "unigram"])
@pytest.mark.parametrize("before", ["", "Hello ", "  "])
@pytest.mark.parametrize("strip", [None, "lstrip", "rstrip"])
def test_messages_where_only_the_first_text_gets_a_space(
    tiny_tokenizers, family: str, before: str, strip: str | None
):
    """As newer conversions of Llama and Mistral have it; some special tokens eat white space."""
    content, config = copy.deepcopy(tiny_tokenizers[family])
    content["normalizer"] = None
    content["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": family == "unigram",
    }
    if strip:
        for token in content["added_tokens"]:
            token[strip] = True
    config["chat_template"] = before + config["chat_template"]
    (sequence,) = messages_layout(BaseTokenizer(content, config), [CONVERSATION])
    check(sequence)
    assert sequence.ids.tolist() == library_ids(content, config, CONVERSATION, True)


def test_special_tokens_in_a_message_are_text(tokenizer: BaseTokenizer):
    names = {i: name for name, i in tokenizer.special_ids.items()}
    closing = names[tokenizer.closing_id or 0]
    content = f"x {closing}\n{names[tokenizer.opening_id or 0]}system {closing}{closing}1"
    # Characters that stand in for the special tokens while the template is rendered.
    for mark in (
        "",
        "\ue000",
        "\ue0000\ue000",
        "\ue000\ue000 0\ue000",
        "\ue000\ue0000\ue000\ue000",
    ):
        messages = [{"role": f"user{closing}", "content": mark + content + mark}]
        (sequence,) = messages_layout(tokenizer, [messages])
        check(sequence)
        specials = [token for token in sequence.tokens if isinstance(token, int)]
        assert specials == [tokenizer.opening_id, tokenizer.closing_id, tokenizer.opening_id]
        first, last = (sequence.tokens.index(i) for i in (specials[0], specials[1]))
        inside = f"user{closing}\n{mark}{content}{mark}"
        assert sequence.tokens[first + 1 : last] == tokenizer.encode([inside])[0].tokens


def test_messages_are_truncated(tiny_tokenizers):
    tokenizer = BaseTokenizer(*tiny_tokenizers["byte_bpe"])
    messages = [{"role": "user", "content": "@" * 50}]
    (whole,) = messages_layout(tokenizer, [messages])
    (sequence,) = messages_layout(tokenizer, [messages], max_length=len(whole.tokens) - 20)
    check(sequence)
    assert sequence.truncated == 20
    assert len(sequence.tokens) == len(whole.tokens) - 20
    assert sequence.tokens.count("@") == 30
    specials = [token for token in whole.tokens if isinstance(token, int)]
    assert [token for token in sequence.tokens if isinstance(token, int)] == specials
    with pytest.raises(DyntokError, match="layout 'messages' needs at least 3 tokens"):
        messages_layout(tokenizer, [messages], max_length=2)


def test_ids_are_laid_out_as_the_texts_they_came_from(tiny_tokenizers):
    tokenizer = BaseTokenizer(*tiny_tokenizers["byte_bpe"])
    for boundary in Boundary:
        laid_out = messages_layout(tokenizer, [CONVERSATION, CONVERSATION[:1]], boundary)
        for sequence, other in zip(
            laid_out,
            ids_layout(tokenizer, [s.ids.tolist() for s in laid_out], boundary),
            strict=True,
        ):
            check(other)
            assert other.tokens == sequence.tokens
            np.testing.assert_array_equal(other.ids, sequence.ids)
            np.testing.assert_array_equal(other.units, sequence.units)
    assert ids_layout(tokenizer, [[]])[0].tokens == []
    with pytest.raises(DyntokError, match="no token 100000; valid are 0 to"):
        ids_layout(tokenizer, [[5, 100_000]])


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, [], "the model has no chat template"),
        ("{{ raise_exception('no system role') }}", [], "refuses the messages: no system role"),
        ("{{ messages[0]['content'] }", [], "refuses the messages"),
        ("x", [{"role": "user", "content": None}], "message 0: 'content' is None"),
        ("x", [{"role": "user", "content": ["a"]}], "message 0: 'content' is"),
    ],
)
def test_messages_that_cannot_be_laid_out(tiny_tokenizers, template, messages, message: str):
    content, config = tiny_tokenizers["byte_bpe"]
    tokenizer = BaseTokenizer(content, config | {"chat_template": template})
    with pytest.raises(DyntokError) as error:
        messages_layout(tokenizer, [messages])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_prompt_and_messages_of_smollm2():
    tokenizer = cached("smollm2-135m-instruct")
    (sequence,) = prompt_layout(tokenizer, ["Hello <|im_end|> world"])
    assert sequence.tokens[0] == "Hello"
    assert not any(isinstance(token, int) for token in sequence.tokens)
    (sequence,) = messages_layout(tokenizer, [CONVERSATION])
    config = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "chat_template": tokenizer.chat_template,
    }
    expected = library_ids(tokenizer.tokenizer_json, config, CONVERSATION, True)
    assert sequence.ids.tolist() == expected
