"""Bytes and the characters that stand for them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from dyntok_jax.text.byte_level import (
    BYTE_TO_CHAR,
    CHAR_TO_BYTE,
    spell_bytes,
    to_byte_chars,
    to_bytes,
    to_text,
)
from dyntok_jax.types import DyntokError


def test_the_table_is_that_of_byte_level_bpe():
    assert set(BYTE_TO_CHAR.values()) == set(ByteLevel.alphabet())
    assert list(BYTE_TO_CHAR) == list(range(256))
    assert {char: byte for byte, char in BYTE_TO_CHAR.items()} == CHAR_TO_BYTE
    known = {0x00: "Ā", 0x09: "ĉ", 0x0A: "Ċ", 0x0D: "č", 0x20: "Ġ", 0x7F: "ġ", 0xA0: "ł", 0xAD: "Ń"}
    assert {byte: BYTE_TO_CHAR[byte] for byte in known} == known
    assert BYTE_TO_CHAR[ord("a")] == "a" and BYTE_TO_CHAR[0xFF] == "ÿ"


def test_every_byte_is_spelled_and_read():
    raw = bytes(range(256))
    assert len(spell_bytes(raw)) == 256
    assert to_bytes(spell_bytes(raw)) == raw


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text())
def test_texts_are_spelled_as_the_library_spells_them(text: str):
    split = ByteLevel(add_prefix_space=False, use_regex=False)
    assert to_byte_chars(text) == "".join(piece for piece, _ in split.pre_tokenize_str(text))
    assert to_text([to_byte_chars(text)]) == text


def test_a_character_may_be_cut_between_tokens():
    assert to_text(["å", "¥", "½"]) == "好"
    assert to_text(["a", "å¥"]) == "a\ufffd"
    assert to_text([]) == ""


@pytest.mark.parametrize(("token", "strange"), [("a b", "' '"), ("東", "'東'"), ("ań", "'ń'")])
def test_a_character_for_no_byte_is_an_error(token: str, strange: str):
    # U+0143 stands for the byte 0xAD, the last of them; U+0144 for none.
    with pytest.raises(DyntokError) as error:
        to_bytes(token)
    assert f"token {token!r}: {strange} is not one of the 256 byte characters" in str(error.value)
    assert "\n" not in str(error.value)
