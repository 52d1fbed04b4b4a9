"""Bytes of tokens to text: characters whole, stop strings found wherever tokens end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyntok_jax.text.generated import GeneratedText
from dyntok_jax.types import DyntokError


def given_out(parts: list[bytes], stops: tuple[str, ...] = ()) -> list[str]:
    text = GeneratedText(stops)
    pieces = [text.add(part) for part in parts]
    pieces.append(text.finish())
    assert "".join(pieces) == text.text
    return pieces


def test_characters_are_held_back_until_they_are_whole():
    raw = "a學🙂".encode()
    parts = [raw[:2], raw[2:4], raw[4:6], raw[6:]]
    assert given_out(parts) == ["a", "學", "", "🙂", ""]
    # What can no longer be a character is said at once, what might is said at the end.
    assert given_out([b"\xe5x", b"\xe5\xad"]) == ["\ufffdx", "", "\ufffd"]


def test_a_stop_string_across_tokens():
    assert given_out([b"one tw", b"o three", b" four"], ("two",)) == ["one ", "", "", ""]
    assert given_out([b"one tw", b"ice"], ("two",)) == ["one ", "twice", ""]
    assert given_out([b"one tw"], ("two",)) == ["one ", "tw"]


def test_the_first_of_several_stop_strings():
    text = GeneratedText(("c", "bc", "zz"))
    assert text.add(b"ab") == "a" and not text.stopped
    assert text.add(b"cd") == "" and text.stopped and text.text == "a"
    assert text.add(b"more") == ""


def test_a_stop_string_inside_a_character_held_back():
    stop = "学"
    raw = stop.encode()
    assert given_out([b"x" + raw[:1], raw[1:] + b"y"], (stop,)) == ["x", "", ""]
    assert given_out([b"x" + raw[:1], b"a"], (stop,)) == ["x", "\ufffda", ""]


def test_an_empty_stop_string_is_refused():
    with pytest.raises(DyntokError, match="empty stop"):
        GeneratedText(("",))


@given(
    st.lists(st.sampled_from(["a", "b", "é", "z"]).map(str.encode), max_size=20).map(b"".join),
    st.lists(st.integers(0, 40), max_size=8),
    st.lists(st.text("abéz", min_size=1, max_size=3), max_size=3),
)
def test_how_bytes_come_changes_only_which_stop_is_first(raw, cuts, stops):
    ends = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
    found = "".join(given_out([raw[a:b] for a, b in pairwise(ends)], tuple(stops)))
    whole = raw.decode()
    assert not any(stop in found for stop in stops)
    if any(stop in whole for stop in stops):
        # It ends before a stop string.
        assert any(whole.startswith(found + stop) for stop in stops)
    else:
        assert found == whole
