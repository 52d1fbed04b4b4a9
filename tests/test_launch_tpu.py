"""The launcher: what it copies and runs where, by a gcloud that only writes down its arguments."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from eval.record import git_commit

SCRIPT = Path(__file__).parents[1] / "launch_tpu.sh"
GCLOUD = """#!/usr/bin/env bash
printf '%s\\x1f' "$@" >> "$CALLS"
printf '\\x1e' >> "$CALLS"
[ "$4" != ssh ] || exit "${STATUS:-0}"
[ "${*: -1}" != . ] || exit "${BACK:-0}"
"""


@pytest.fixture
def launch(tmp_path):
    """Runs the script; gives its status, what it says, and the calls of gcloud."""
    gcloud, calls = tmp_path / "gcloud", tmp_path / "calls"
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)
    calls.touch()

    def run(*arguments, **variables):
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "CALLS": str(calls), "TMPDIR": str(tmp_path)} | variables
        done = subprocess.run([SCRIPT, *arguments], env=env, capture_output=True, text=True)
        found = [call.split("\x1f")[3:-1] for call in calls.read_text().split("\x1e")[:-1]]
        return done.returncode, done.stderr, found

    return run


@pytest.mark.parametrize("worker", [None, "all"])
def test_the_command_runs_where_it_is_sent(launch, worker):
    variables = {} if worker is None else {"WORKER": worker}
    command = ("dyntok", "score", "--text", "it's here")
    status, said, (there, ran, back) = launch("slice", "us-central2-b", *command, **variables)
    assert status == 0, said
    place = ["--zone", "us-central2-b", f"--worker={worker or 0}"]
    assert there[:4] == ["scp", *place] and there[-1] == "slice:dyntok.tar.gz"
    assert ran[:5] == ["ssh", "slice", *place] and ran[5] == "--command"
    assert ran[6].splitlines()[-1].strip() == r"dyntok score --text it\'s\ here"
    assert f" DYNTOK_COMMIT={git_commit()}\n" in ran[6]
    # What all hosts wrote would overwrite itself: results are the first one's.
    assert back[3:] == ["--worker=0", "--recurse", "slice:dyntok/out", "."]


def test_what_a_failing_command_wrote_comes_back_too(launch):
    status, _, calls = launch("slice", "us-central2-b", "false", STATUS="3")
    assert status == 3 and [call[0] for call in calls] == ["scp", "ssh", "scp"]
    assert calls[-1][3:] == ["--worker=0", "--recurse", "slice:dyntok/out", "."]
    # Where nothing was written either, the command's status counts.
    assert launch("slice", "us-central2-b", "false", STATUS="3", BACK="1")[0] == 3
    assert launch("slice", "us-central2-b", "true", BACK="1")[0] == 1


def test_without_a_command_it_says_how_it_is_called(launch):
    status, said, calls = launch("slice", "us-central2-b")
    assert status == 2 and not calls
    assert "./launch_tpu.sh NAME ZONE dyntok encode" in said and "come back into ./out" in said


@pytest.mark.parametrize("folder", ["eval", "lora", "vocabulary"])
def test_configs_write_where_results_are_fetched_from(folder):
    for path in sorted((SCRIPT.parent / "configs" / folder).glob("*.yaml")):
        places = re.findall(
            r"(?:^ *out|^answers|[ .]out|--out)[:= ] ?([\w./]+)",
            path.read_text("utf-8"),
            re.MULTILINE,
        )
        assert places and all(place.startswith("out/") for place in places), (path, places)
