"""Where merges must stop, by position."""

from __future__ import annotations

import numpy as np
import pytest

from dyntok_jax.text.boundaries import Boundary, capped_units, unit_numbers, whole_units
from dyntok_jax.text.byte_level import to_byte_chars
from dyntok_jax.types import DyntokError


def units(pieces: list[str], boundary: Boundary) -> list[int]:
    """Units of tokens given as text."""
    numbers = unit_numbers([to_byte_chars(piece) for piece in pieces], boundary)
    assert numbers.dtype == np.int32
    return numbers.tolist()


@pytest.mark.parametrize("boundary", list(Boundary))
def test_no_tokens_and_one_token(boundary: Boundary):
    assert units([], boundary) == []
    assert units(["abc def"], boundary) == [0]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["The", " qu", "ick", " fox", "es", "."], [0, 1, 1, 2, 2, 3]),
        # The clitics of English, with the straight apostrophe only.
        (["do", "n", "'", "t"], [0, 0, 1, 1]),
        (["do", "n", "’", "t"], [0, 0, 1, 2]),
        (["x", "'", "x"], [0, 1, 2]),
        (["a", "1", "2", "b"], [0, 1, 1, 2]),
        ([" ", "a", " ", "1", " ", "!"], [0, 0, 1, 1, 2, 2]),
        # Of a run of white space the last space belongs to what follows.
        (["a", " ", " ", "b"], [0, 1, 2, 2]),
        (["a", "\n", "\n", "b"], [0, 1, 2, 3]),
        (["a", "\n", " ", " "], [0, 1, 1, 1]),
        (["!", "?", "a"], [0, 0, 1]),
        (["e", "\u0301", "e"], [0, 0, 0]),
        (["x", "²"], [0, 1]),
        (["好", "的", "。"], [0, 0, 1]),
    ],
)
def test_pretokens(pieces: list[str], expected: list[int]):
    assert units(pieces, Boundary.PRETOKEN) == expected


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        # "the d" holds a whole pre-token and the start of the next one.
        (["o", "f", " the d", "og", "s"], [0, 0, 1, 2, 2]),
        (["a b c d"], [0]),
        (["x", "y z", "w", "v"], [0, 1, 2, 2]),
        (["a", " b ", "c"], [0, 1, 2]),
        (["a b", "c d"], [0, 1]),
    ],
)
def test_a_token_across_a_boundary_stands_alone(pieces: list[str], expected: list[int]):
    assert units(pieces, Boundary.PRETOKEN) == expected
    assert units(pieces, Boundary.WORD) == expected
    assert units(pieces, Boundary.SENTENCE) == [0] * len(pieces)


@pytest.mark.parametrize("boundary", [Boundary.WORD, Boundary.WORD_HYPHEN])
@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["The", " qu", "ick", ",", " fox", "'", "s", "."], [0, 1, 1, 1, 2, 2, 2, 2]),
        (["a", "1", "-", "b"], [0, 0, 0, 0]),
        (["a", " ", " ", "b"], [0, 1, 2, 2]),
        (["a", "\r", "\n", "b"], [0, 1, 2, 2]),
        (["a", "\u3000", "b", "\u2029", "c"], [0, 1, 1, 2, 2]),
        (["a", "\x85b", "\xa0c"], [0, 1, 2]),
        # Neither a separator of records nor a space without width is white space in Unicode.
        (["a", "\x1c", "\u200b", "b"], [0, 0, 0, 0]),
        ([" ", "a"], [0, 0]),
    ],
)
def test_words(pieces: list[str], expected: list[int], boundary: Boundary):
    assert units(pieces, boundary) == expected


def test_words_by_the_bytes_of_a_character():
    """White space cut into its bytes still begins a word; the rest of it does not."""
    separator = list(to_byte_chars("\u2029"))
    tokens = ["a", *separator, "b"]
    assert unit_numbers(tokens, Boundary.WORD).tolist() == [0, 1, 1, 1, 1]
    assert unit_numbers(tokens, Boundary.PRETOKEN).tolist() == [0, 1, 1, 1, 2]
    assert unit_numbers(["a", separator[0], "".join(separator[1:]) + "b"], Boundary.WORD)[1] == 1


def test_characters_cut_into_bytes_keep_their_class():
    tokens = [*to_byte_chars("好"), *to_byte_chars("。"), *to_byte_chars("١"), "1"]
    assert unit_numbers(tokens, Boundary.PRETOKEN).tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_bytes_outside_utf8_are_characters_of_their_own():
    # A character cut short at the end of a text is neither letter nor number.
    tokens = ["a", "å", "¥", "b", "ÿ"]
    assert unit_numbers(tokens, Boundary.PRETOKEN).tolist() == [0, 1, 1, 2, 3]
    assert unit_numbers(tokens, Boundary.WORD).tolist() == [0] * 5
    assert unit_numbers(["ÿ", "þ"], Boundary.PRETOKEN).tolist() == [0, 0]
    tokens = ["å", *to_byte_chars("好"), "ÿ", "Ġ", "b"]
    assert unit_numbers(tokens, Boundary.PRETOKEN).tolist() == [0, 1, 1, 1, 2, 3, 3]
    assert unit_numbers(tokens, Boundary.WORD).tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_control_characters():
    assert units(["a", "\x00", "\x01", "b"], Boundary.PRETOKEN) == [0, 1, 1, 2]
    assert units(["a", "\x00", "\x01", "b"], Boundary.WORD) == [0] * 4


def test_a_strange_character_is_an_error():
    with pytest.raises(DyntokError, match="256 byte characters"):
        unit_numbers(["a", "好"], Boundary.PRETOKEN)


@pytest.mark.parametrize(
    ("longest", "expected"),
    [
        (1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (2, [0, 0, 1, 1, 2, 3, 3, 4]),
        (3, [0, 0, 0, 1, 1, 2, 2, 3]),
        (5, [0, 0, 0, 0, 0, 1, 1, 2]),
        (9, [0, 0, 0, 0, 0, 1, 1, 2]),
    ],
)
def test_long_units_are_cut_from_their_beginning(longest: int, expected: list[int]):
    capped = capped_units(np.array([3, 3, 3, 3, 3, 4, 4, 9], np.int32), longest)
    assert capped.dtype == np.int32 and capped.tolist() == expected


def test_no_units_are_cut_into_none():
    assert capped_units(np.zeros(0, np.int32), 3).tolist() == []


@pytest.mark.parametrize(
    ("longest", "expected"),
    [
        (5, [0, 0, 0, 0, 0, 1, 1, 2]),
        (4, [0, 1, 2, 3, 4, 5, 5, 6]),
        (2, [0, 1, 2, 3, 4, 5, 5, 6]),
        (1, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_units_that_are_too_long_do_not_merge_at_all(longest: int, expected: list[int]):
    whole = whole_units(np.array([3, 3, 3, 3, 3, 4, 4, 9], np.int32), longest)
    assert whole.dtype == np.int32 and whole.tolist() == expected
    assert whole_units(np.zeros(0, np.int32), longest).tolist() == []
