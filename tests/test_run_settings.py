"""In what the settings of two runs differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from dyntok_jax.run_settings import check_same, plain_settings
from dyntok_jax.types import DyntokError


def test_other_settings_are_named_with_both_values():
    saved = plain_settings({"model": {"name": "a", "sizes": (1, 2)}, "data": ["x"], "none": None})
    other = {"model": {"name": "b", "sizes": (1, 3, []), "bias": True}, "none": None}
    with pytest.raises(DyntokError) as raised:
        check_same(saved, other, Path("run"))
    message = str(raised.value)
    assert message.startswith("run: the run there has other settings")
    assert 'data.0: "x" there, absent here' in message
    assert 'model.name: "a" there, "b" here' in message
    assert "model.bias: absent there, true here" in message
    assert "model.sizes.1: 2 there, 3 here" in message
    assert "model.sizes.2: absent there, [] here" in message
    assert message.count("sizes") == 2 and "none" not in message


def test_a_value_that_is_none_is_not_one_that_is_absent():
    with pytest.raises(DyntokError, match="start: null there, absent here"):
        check_same({"start": None}, {}, Path("run"))


def test_what_json_gives_back_is_the_same():
    settings = {"path": Path("a/b"), "sizes": (1, 2), 3: {"x": None}}
    check_same(plain_settings(settings), settings, Path("run"))
