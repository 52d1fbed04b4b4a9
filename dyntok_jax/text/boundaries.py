"""Which neighbouring base tokens may merge: boundaries are positions in the text, not strings.

A text's base tokens are numbered by *unit*; neighbours merge only inside one unit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from dyntok_jax.text.byte_level import SPLIT_PATTERN, to_bytes


class Boundary(StrEnum):
    """What a merge must not cross.

    Attributes:
        PRETOKEN: a match of the original's split pattern (paper, section 3.1; the default).
        WORD: a word, beginning at a token that starts with white space.
        WORD_HYPHEN: a word, in which punctuation joins only to punctuation, but for the hyphen.
        SENTENCE: the whole text.
    """

    PRETOKEN = "pretoken"
    WORD = "word"
    WORD_HYPHEN = "word-hyphen"
    SENTENCE = "sentence"


# Unicode's White_Space property; str.isspace adds four control characters.
_WHITE_SPACE = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {
    chr(point) for point in range(0x2000, 0x200B)
}
# The engine of the original's pre-tokenizer, so that its character classes are the same.
SPLIT = Split(Regex(SPLIT_PATTERN), behavior="removed", invert=True)


def unit_numbers(tokens: Sequence[str], boundary: Boundary) -> np.ndarray:
    """Numbers a text's base tokens by unit.

    A token that straddles a boundary is a unit by itself.

    Args:
        tokens: T byte-spelled base tokens of one text, in order.
        boundary: what a merge must not cross.

    Returns:
        (T,) int32, rising from 0; neighbours with the same number may merge.
    """
    if not tokens:
        return np.zeros(0, np.int32)
    if boundary is Boundary.SENTENCE:
        return np.zeros(len(tokens), np.int32)
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    text, char_starts = _decode(to_bytes("".join(tokens)))
    if boundary is Boundary.PRETOKEN:
        breaks = _inside_one_pretoken(text, char_starts, starts, ends)
    else:
        breaks = _one_word(text, char_starts, starts, ends)
    return np.cumsum(breaks, dtype=np.int32) - np.int32(breaks[0])


def capped_units(units: np.ndarray, longest: int) -> np.ndarray:
    """Cuts units into runs, so that no merged token has more base tokens than ``longest``.

    Every unit is cut from its beginning; its last run may be shorter.

    Args:
        units: (T,) rising numbers of the units.
        longest: most base tokens of a run, from 1.

    Returns:
        (T,) int32, rising from 0.
    """
    begins = np.diff(units, prepend=-1) != 0
    positions = np.arange(len(units))
    unit_begin = np.maximum.accumulate(np.where(begins, positions, 0))
    return np.cumsum((positions - unit_begin) % longest == 0, dtype=np.int32) - np.int32(1)


def whole_units(units: np.ndarray, longest: int) -> np.ndarray:
    """Cuts units with more base tokens than ``longest`` into single ones, which do not merge.

    Args:
        units: (T,) rising numbers of the units.
        longest: most base tokens of a unit that stays whole, from 1.

    Returns:
        (T,) int32, rising from 0.
    """
    begins = np.diff(units, prepend=-1) != 0
    number = np.cumsum(begins) - 1
    is_long = (np.bincount(number) > longest)[number]
    return np.cumsum(begins | is_long, dtype=np.int32) - np.int32(1)


def _decode(raw: bytes) -> tuple[str, np.ndarray]:
    """The text of the bytes, and each character's first byte, with the end appended.

    A byte that is not part of UTF-8 (a text cut inside a character) counts as one character.
    """
    text = raw.decode("utf-8", errors="surrogateescape")
    if len(text) == len(raw):
        return _printable(text), np.arange(len(raw) + 1)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    widths[(points >= 0xDC80) & (points <= 0xDCFF)] = 1
    return _printable(text), np.concatenate([[0], np.cumsum(widths)])


def _printable(text: str) -> str:
    return re.sub("[\udc80-\udcff]", "\ufffd", text)


def _inside_one_pretoken(
    text: str, char_starts: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """(T,) bool: whether a unit begins at the token."""
    spans = [span for _, span in SPLIT.pre_tokenize_str(text)]
    first_bytes = char_starts[np.fromiter((start for start, _ in spans), np.int64, len(spans))]
    match = np.searchsorted(first_bytes, starts, side="right")
    straddles = np.searchsorted(first_bytes, ends - 1, side="right") != match
    breaks = np.ones(len(starts), bool)
    breaks[1:] = (match[1:] != match[:-1]) | straddles[1:] | straddles[:-1]
    return breaks


def _one_word(
    text: str, char_starts: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """(T,) bool: whether a unit begins at the token. White space begins the word after it."""
    is_space = np.zeros(char_starts[-1] + 1, bool)
    is_space[char_starts[:-1]] = np.fromiter(map(_WHITE_SPACE.__contains__, text), bool, len(text))
    spaces_before = np.concatenate([[0], np.cumsum(is_space)])
    straddles = spaces_before[ends] > spaces_before[starts + 1]
    breaks = is_space[starts]
    breaks[1:] |= straddles[1:] | straddles[:-1]
    breaks[0] = True
    return breaks
