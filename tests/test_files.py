"""Files and folders appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re

import pytest
from safetensors import SafetensorError

from dyntok_jax.files import atomic_path, new_folder
from dyntok_jax.types import DyntokError


def test_a_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with atomic_path(path) as partial:
        partial.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with atomic_path(tmp_path / "link") as partial:
        partial.write_text("x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "x"


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(KeyError), atomic_path(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_or_has_no_folder_is_refused(tmp_path):
    with pytest.raises(DyntokError, match="is no regular file"), atomic_path(tmp_path):
        pass
    with pytest.raises(DyntokError, match="cannot be written"), atomic_path(tmp_path / "a" / "b"):
        pass


@pytest.mark.parametrize("there", [False, True])
def test_a_new_folder_appears_at_the_end(tmp_path, there):
    path = tmp_path / "folder"
    if there:
        path.mkdir()
    with new_folder(path) as partial:
        (partial / "x").write_text("x")
        assert path.exists() == there and not (path / "x").exists()
    assert (path / "x").read_text() == "x" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_failed_is_not_there(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "folder") as partial:
        (partial / "x").write_text("x")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_folder_that_failed_leaves_no_folder_above_it(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyError), new_folder(tmp_path / "there" / "a" / "b") as partial:
        (partial / "x").write_text("x")
        raise KeyError
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    too_long = tmp_path / "a" / "b" / ("x" * 250)
    with pytest.raises(DyntokError, match="cannot be written"), new_folder(too_long):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    with new_folder(tmp_path / "a" / "b"):
        pass
    assert (tmp_path / "a" / "b").is_dir()


NO_ROOM = [
    *(OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EFBIG)),
    SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
]


@pytest.mark.parametrize("write", [atomic_path, new_folder])
@pytest.mark.parametrize("error", NO_ROOM, ids=repr)
def test_no_room_is_said_in_one_line(tmp_path, write, error):
    path = tmp_path / "out"
    message = rf"^{re.escape(str(path))}: cannot be written \((File too large|No space left .*)\)$"
    with pytest.raises(DyntokError, match=message), write(path):
        raise error
    assert not list(tmp_path.iterdir())


OTHERS = [
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    OSError(errno.EIO, "Input/output error"),
    OSError("neither number nor reason"),
    SafetensorError("Error while deserializing header: header too large"),
]


@pytest.mark.parametrize("write", [atomic_path, new_folder])
@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_errors_of_something_else_stay_as_they_are(tmp_path, write, error):
    with pytest.raises(type(error)) as raised, write(tmp_path / "out"):
        raise error
    assert raised.value is error and not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "x").write_text("x")
    for path in (tmp_path, tmp_path / "x"):
        with pytest.raises(DyntokError, match="no empty folder"), new_folder(path):
            pass
    assert (tmp_path / "x").read_text() == "x"
