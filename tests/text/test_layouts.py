"""Where special tokens stand, and what truncation keeps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from laid_out import TEXT, cached, check

from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary, unit_numbers
from dyntok_jax.text.layouts import (
    BaseTokens,
    keep_last,
    messages_layout,
    pair_layout,
    prompt_layout,
    text_layout,
    words_layout,
)
from dyntok_jax.types import DyntokError


def test_text(tokenizer: BaseTokenizer):
    (pieces,) = tokenizer.encode([TEXT])
    for boundary in Boundary:
        (sequence,) = text_layout(tokenizer, [TEXT], boundary)
        check(sequence)
        ends = tokenizer.opening_id, tokenizer.closing_id
        assert sequence.tokens == [ends[0], *pieces.tokens, ends[1]]
        assert sequence.ids.tolist() == [ends[0], *pieces.ids, ends[1]]
        np.testing.assert_array_equal(
            sequence.units[1:-1], 1 + unit_numbers(pieces.tokens, boundary)
        )
        assert sequence.truncated == 0 and sequence.word_ids is None
    np.testing.assert_array_equal(
        text_layout(tokenizer, [TEXT])[0].units,
        text_layout(tokenizer, [TEXT], Boundary.PRETOKEN)[0].units,
    )


def test_pair(tokenizer: BaseTokenizer):
    first, second = tokenizer.encode([TEXT, "A fox."])
    (sequence,) = pair_layout(tokenizer, [TEXT], ["A fox."])
    check(sequence)
    opening, closing = tokenizer.opening_id, tokenizer.closing_id
    assert sequence.tokens == [
        *(opening, *first.tokens, closing, closing, *second.tokens, closing),
    ]
    assert sequence.ids.tolist() == [opening, *first.ids, closing, closing, *second.ids, closing]


@pytest.mark.parametrize("boundary", list(Boundary))
def test_words(tokenizer: BaseTokenizer, boundary: Boundary):
    sentences = [["The", "dog's", "", "house"], [], [""]]
    found = words_layout(tokenizer, sentences, boundary)
    for sequence, words in zip(found, sentences, strict=True):
        check(sequence)
        encoded = tokenizer.encode(words)
        assert sequence.ids.tolist() == [
            tokenizer.opening_id,
            *(i for pieces in encoded for i in pieces.ids),
            tokenizer.closing_id,
        ]
        assert np.asarray(sequence.word_ids).tolist() == [
            -1,
            *(rank for rank, pieces in enumerate(encoded) for _ in pieces.ids),
            -1,
        ]
        assert sequence.word_ids is not None and sequence.word_ids.dtype == np.int32
        across = np.diff(sequence.units)[1:-1][np.diff(sequence.word_ids)[1:-1] > 0]
        # Only a whole sentence goes across words.
        assert (across == (0 if boundary is Boundary.SENTENCE else 1)).all()


def test_prompt(tiny_tokenizers):
    for family, before in (("byte_bpe", []), ("fallback_bpe", [1]), ("unigram", [0])):
        tokenizer = BaseTokenizer(*tiny_tokenizers[family])
        (sequence,) = prompt_layout(tokenizer, [TEXT])
        check(sequence)
        assert sequence.tokens == [*before, *tokenizer.encode([TEXT])[0].tokens]
        assert sequence.ids[-1] != tokenizer.closing_id


@pytest.mark.parametrize("text", ["", " ", "\x00\x01", "\ud800", "<s>[CLS]<|im_end|>"])
def test_odd_texts(tokenizer: BaseTokenizer, text: str):
    for sequence in (
        *text_layout(tokenizer, [text]),
        *pair_layout(tokenizer, [text], [text]),
        *words_layout(tokenizer, [[text, text]]),
        *prompt_layout(tokenizer, [text]),
    ):
        check(sequence)
    if text == "":
        ends = [tokenizer.opening_id, tokenizer.closing_id]
        assert text_layout(tokenizer, [text])[0].tokens == ends
        assert prompt_layout(tokenizer, [text])[0].tokens == tokenizer.prompt_ids


def test_no_sequences(tokenizer: BaseTokenizer):
    assert text_layout(tokenizer, []) == prompt_layout(tokenizer, []) == []
    assert pair_layout(tokenizer, [], []) == words_layout(tokenizer, []) == []


def test_last_words_are_kept_apart():
    tokens = [1, "a", "b", "Ġc", "d", "Ġe"]
    for units in ([0, 1, 1, 4, 4, 6], [0, 1, 1, 1, 1, 1]):
        base = BaseTokens(np.arange(6, dtype=np.int32), tokens, np.array(units, np.int32))
        apart = {words: keep_last(base, words) for words in (0, 1, 2, 3, 9)}
        assert apart[0] is base
        for words, kept in apart.items():
            start = {0: 6, 1: 5, 2: 3}.get(words, 1)
            joined = np.diff(kept.units) == 0
            wanted = np.diff(units) == 0
            wanted[max(start - 1, 0) :] = False
            np.testing.assert_array_equal(joined, wanted)
            assert kept.units.dtype == np.int32 and kept.tokens == tokens and kept.ids is base.ids
    for ending in ([], ["a", 1]):
        base = BaseTokens(np.zeros(len(ending), np.int32), ending, np.zeros(len(ending), np.int32))
        assert keep_last(base, 1) is base


def test_ten_thousand_empty_lines(tokenizer: BaseTokenizer):
    sequences = text_layout(tokenizer, [""] * 10_000)
    assert len(sequences) == 10_000
    assert all(len(sequence.tokens) == 2 for sequence in sequences)


@pytest.mark.parametrize("boundary", list(Boundary))
def test_truncation_keeps_the_closing_token_and_is_counted(
    tokenizer: BaseTokenizer, boundary: Boundary
):
    layouts = {
        2: lambda length: text_layout(tokenizer, [TEXT], boundary, length),
        len(tokenizer.prompt_ids): lambda n: prompt_layout(tokenizer, [TEXT], boundary, n),
        # A third number of special tokens, to tell this one from the text.
        2.5: lambda length: words_layout(tokenizer, [TEXT.split(" ")], boundary, length),
    }
    for needed, layout in layouts.items():
        (whole,) = layout(None)
        size, needed = len(whole.tokens), int(needed)
        closing = needed == 2
        for length in {max(needed, 1), needed + 1, needed + 7, size - 1, size, size + 1}:
            (sequence,) = layout(length)
            check(sequence)
            kept = min(length, size)
            assert len(sequence.tokens) == kept
            assert sequence.truncated == size - kept
            body = kept - closing
            assert sequence.tokens[:body] == whole.tokens[:body]
            np.testing.assert_array_equal(sequence.ids[:body], whole.ids[:body])
            np.testing.assert_array_equal(sequence.units[:body], whole.units[:body])
            if closing:
                assert sequence.tokens[-1] == tokenizer.closing_id
            if whole.word_ids is not None and sequence.word_ids is not None:
                np.testing.assert_array_equal(sequence.word_ids, [*whole.word_ids[: kept - 1], -1])


@pytest.mark.parametrize(
    ("lengths", "room", "expected"),
    [
        ((10, 3), 13, (10, 3)),
        ((10, 3), 12, (9, 3)),
        ((3, 10), 12, (3, 9)),
        ((10, 3), 6, (3, 3)),
        ((10, 3), 4, (2, 2)),
        ((3, 10), 0, (0, 0)),
        ((10, 0), 4, (4, 0)),
        ((0, 10), 4, (0, 4)),
        ((5, 5), 8, (4, 4)),
    ],
)
def test_the_longer_side_of_a_pair_is_cut_first(tiny_tokenizers, lengths, room, expected):
    tokenizer = BaseTokenizer(*tiny_tokenizers["byte_bpe"])
    sides = ["@" * length for length in lengths]  # one token each
    (sequence,) = pair_layout(tokenizer, [sides[0]], [sides[1]], max_length=room + 4)
    check(sequence)
    assert sequence.tokens == [1, *"@" * expected[0], 2, 2, *"@" * expected[1], 2]
    assert sequence.truncated == sum(lengths) - sum(expected)


def test_an_odd_room_is_filled(tiny_tokenizers):
    tokenizer = BaseTokenizer(*tiny_tokenizers["byte_bpe"])
    for lengths in ((10, 10), (10, 9), (9, 10)):
        first, second = (["@" * length] for length in lengths)
        (sequence,) = pair_layout(tokenizer, first, second, max_length=4 + 7)
        assert len(sequence.tokens) == 11
        kept = sequence.tokens.index(2) - 1
        assert {kept, 7 - kept} == {3, 4}


@pytest.mark.parametrize("length", [-3, 0, 1, 3])
def test_a_length_below_the_need_is_an_error(tokenizer: BaseTokenizer, length: int):
    needs = {"pair": 4, "text": 2, "words": 2, "prompt": max(1, len(tokenizer.prompt_ids))}
    layouts = {
        "pair": lambda: pair_layout(tokenizer, [TEXT], [TEXT], max_length=length),
        "text": lambda: text_layout(tokenizer, [TEXT], max_length=length),
        "words": lambda: words_layout(tokenizer, [[TEXT]], max_length=length),
        "prompt": lambda: prompt_layout(tokenizer, [TEXT], max_length=length),
    }
    for name, layout in layouts.items():
        if length >= needs[name]:
            assert len(layout()[0].tokens) == length
            continue
        with pytest.raises(DyntokError) as error:
            layout()
        assert str(error.value) == (
            f"max length {length}: layout {name!r} needs at least {needs[name]} tokens"
        )


def test_a_tokenizer_without_special_tokens(tiny_tokenizers):
    content = copy.deepcopy(tiny_tokenizers["byte_bpe"].json)
    content["added_tokens"] = []
    content["model"]["vocab"]["<|no longer special|>"] = content["model"]["vocab"].pop(
        "<|endoftext|>"
    )
    tokenizer = BaseTokenizer(content, {"chat_template": "{{ messages[0]['content'] }}!"})
    assert (tokenizer.opening_id, tokenizer.closing_id, tokenizer.pad_id) == (None, None, None)
    for name, layout in (("text", text_layout), ("words", words_layout)):
        with pytest.raises(DyntokError, match=f"layout {name!r} needs; valid here: prompt"):
            layout(tokenizer, [])
    (sequence,) = prompt_layout(tokenizer, [TEXT])
    assert sequence.tokens == tokenizer.encode([TEXT])[0].tokens
    (sequence,) = messages_layout(tokenizer, [[{"role": "user", "content": TEXT}]])
    assert sequence.tokens == tokenizer.encode([TEXT + "!"])[0].tokens


def test_prompt_of_mistral():
    tokenizer = cached("mistral-7b-v0.1-tokenizer")
    (sequence,) = prompt_layout(tokenizer, ["Hello <s> world"])
    assert sequence.tokens[:2] == [1, "ĠHello"]
    assert [token for token in sequence.tokens if isinstance(token, int)] == [1]
    assert (tokenizer.opening_id, tokenizer.closing_id) == (1, 2)


def test_text_of_e5():
    tokenizer = cached("multilingual-e5-small")
    (sequence,) = text_layout(tokenizer, ["query: Hello </s> world"])
    assert [token for token in sequence.tokens if isinstance(token, int)] == [0, 2]
    assert sequence.ids.tolist()[:3] == [0, 41, 1294]
