"""The README's example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dyntok_jax.model_store import cache_folder

README = Path(__file__).resolve().parents[1] / "README.md"


def test_files_that_commands_name_are_there():
    named = set(re.findall(r"\bconfigs/[\w/]+\.yaml", README.read_text("utf-8")))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (README.parent / name).is_file()] == []


@pytest.mark.usefixtures("optimized")
def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    for name in re.findall(r'load\("(.*?)"', example):
        if not (cache_folder() / name).is_dir():
            pytest.skip(f"{name} is not in the cache: dyntok models pull {name}")
    exec(compile(example, README, "exec"), {})
    out = capsys.readouterr().out
    before, after = map(int, re.findall(r"^(\d+) tokens become (\d+)$", out, re.MULTILINE)[0])
    assert after < before
    assert len(re.findall(r"-\d+\.\d+", out)) >= 2
