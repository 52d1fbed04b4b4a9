"""Files and folders appear whole or not at all."""

from __future__ import annotations

import pytest

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


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "x").write_text("x")
    for path in (tmp_path, tmp_path / "x"):
        with pytest.raises(DyntokError, match="no empty folder"), new_folder(path):
            pass
    assert (tmp_path / "x").read_text() == "x"
