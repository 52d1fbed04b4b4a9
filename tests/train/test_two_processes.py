"""Two processes train as one: each reads its own part, and the result is the same."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from regression_task import Regression, config

from train.loop import train

PROGRAM = Path(__file__).with_name("two_processes.py")
HYPERNET = """
import sys
import jax
from train.hypernet import main
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
main(["--config", *sys.argv[3:]])
"""
"""``train.hypernet`` as one of two processes: index, port, and its own arguments."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def run_both(program: Sequence[str | Path], *arguments: str | Path) -> None:
    """Runs a Python program twice at once, each with its index, a port and these arguments."""
    root, port = PROGRAM.parents[2], str(free_port())
    path = os.pathsep.join(map(str, (root, PROGRAM.parent)))
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": path}
    processes = [
        subprocess.Popen(
            [sys.executable, *program, str(index), port, *arguments],
            env=env,
            cwd=root,
            stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]
    try:
        said = [process.communicate(timeout=600)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-3000:]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    (tmp_path / "xx.txt").write_text("\n".join(f"text {i}" for i in range(40)), "utf-8")
    run_both([PROGRAM], tmp_path)
    found = [json.loads((tmp_path / f"process_{i}.json").read_text("utf-8")) for i in range(2)]
    first, second = (set(process["texts"]) for process in found)
    assert len(first) == len(second) == 20 and not first & second
    assert found[0]["params"] == found[1]["params"]
    alone = train(Regression(), config(tmp_path / "alone", 6))
    for name, leaf in alone.items():
        np.testing.assert_allclose(found[0]["params"][name], leaf, atol=1e-6)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    kinds = [(record["step"], record["kind"]) for record in map(json.loads, lines)]
    assert kinds.count((6, "evaluation")) == 1 and len(kinds) == 6 + 2
