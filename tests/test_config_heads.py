"""The head of every run's file: its command, the hardware, the time it took and the result."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUNS = sorted((ROOT / "configs").glob("*/*.yaml"))
RECORDS = {
    ROOT / found[1]: record
    for path in sorted((ROOT / "eval" / "results").glob("*.json"))
    for record in [json.loads(path.read_text("utf-8"))]
    if (found := re.search(r"--config (configs/eval/\w+\.yaml)", record.get("command", "")))
}

TIME = r"\d (seconds|minutes|hours)\b|Times were not kept"
RESULT = r"\d %|\d F1\b|\b0\.\d\d"
HARDWARE = r"CPU cores?\b|accelerator|TPU|any machine"


def head(path: Path) -> str:
    """The comment at a file's beginning, in one line."""
    lines = path.read_text("utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    assert [line for line in lines[:first] if len(line) > 100] == []
    return " ".join(" ".join(line.strip("#\\ ") for line in lines[:first]).split())


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_head_says_command_hardware_time_and_result(path):
    said = head(path)
    assert re.search(rf"python -m \w+\.\w+ --config {path.relative_to(ROOT)}\b", said)
    assert re.search(HARDWARE, said)
    if "Never run by this project" in said:
        assert path not in RECORDS
        return
    assert re.search(TIME, said)
    assert re.search(RESULT, said)
    assert re.search(r"\bcommit [0-9a-f]{7}\b", said)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_time_and_commit_are_those_of_the_recorded_result(path):
    said, record = head(path), RECORDS[path]
    (took,) = re.findall(r"Took (\d+) (seconds|minutes)\b", said)
    seconds = int(took[0]) * {"seconds": 1, "minutes": 60}[took[1]]
    assert abs(seconds - record["seconds"]) <= {"seconds": 0.5, "minutes": 30}[took[1]]
    assert re.findall(r"\bcommit (\w{7})\b", said) == [record["commit"]]


def test_all_evaluations_that_were_run_are_recorded():
    assert {path for path in RUNS if path.parent.name == "eval"} == {
        path for path in RUNS if path.parent.name == "eval" and "Never run" in head(path)
    } | set(RECORDS)
