"""Two processes train as one: each reads its own part, and the result is the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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


@contextlib.contextmanager
def both(program: Sequence[str | Path], *arguments: str | Path) -> Iterator[list[subprocess.Popen]]:
    """A Python program running twice at once, each with its index, a port and these arguments."""
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
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ended_well(processes: list[subprocess.Popen], timeout: int = 600) -> list[str]:
    """What each process said until it ended, which all did without an error."""
    said = [process.communicate(timeout=timeout)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-3000:]
    return said


def run_both(program: Sequence[str | Path], *arguments: str | Path) -> None:
    """Runs ``both`` to their end."""
    with both(program, *arguments) as processes:
        ended_well(processes)


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


@pytest.mark.slow
def test_what_one_of_two_processes_finds_wrong_ends_both_at_once(tmp_path):
    program = """
import sys
import jax
from dyntok_jax.sharding import made_by_all
from dyntok_jax.types import DyntokError
index = int(sys.argv[1])
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, index)
def make():
    if index == 1:
        raise DyntokError("xx.txt: no such file")
    return index
try:
    made_by_all(make)
except DyntokError as error:
    sys.exit(f"error: {error}")
"""
    with both(["-c", program]) as processes:
        said = [process.communicate(timeout=60)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert all("error: xx.txt: no such file" in words for words in said), said


BEGINNING = """
import sys
from pathlib import Path
import jax
from dyntok_jax.types import DyntokError
from regression_task import config
from train.loop import train
from two_processes import Part
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
"""
"""Of programs that train together: arguments are index, port and folder."""

WITHOUT_TEXTS = (
    BEGINNING
    + """class Missing(Part):
    def batches(self, position):
        if jax.process_index() == 1:
            raise DyntokError("xx.txt: no such file")
        return super().batches(position)
try:
    train(Missing(devices=2), config(Path(sys.argv[3]), 4))
except DyntokError as error:
    sys.exit(f"error: {error}")
"""
)


@pytest.mark.slow
def test_texts_that_one_of_two_processes_lacks_end_both(tmp_path):
    with both(["-c", WITHOUT_TEXTS], tmp_path) as processes:
        said = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [1, 1], said
    assert all("error: xx.txt: no such file" in words for words in said)


LONG = (
    BEGINNING
    + """
train(Part(devices=2, delay=0.05), config(Path(sys.argv[3]), 4000, log_every=1, checkpoint_every=0))
"""
)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_ends_both_with_a_checkpoint(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    with both(["-c", LONG], tmp_path) as processes:
        for _ in range(2400):
            if metrics.exists() and len(metrics.read_text("utf-8").splitlines()) > 3:
                break
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        said = ended_well(processes, timeout=60)
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert 3 < int(saved.name) < 4000
    assert all(f"stopped by signal after step {saved.name};" in words for words in said)


ENDING = (
    BEGINNING
    + """
from itertools import islice
from jax.experimental import multihost_utils
from train.task import NoBatchError
class Ending(Part):
    @property
    def agree(self):
        return self.agreed
    def agreed(self, batch):
        if not multihost_utils.process_allgather(batch is not None).all() and batch is not None:
            raise NoBatchError("the other process has no batch")
        return batch
    def batches(self, position):
        if jax.process_index() == 0:
            yield from super().batches(position)
        yield from islice(super().batches(position), 3)
        raise DyntokError("xx.txt: changed while it was read")
try:
    train(Ending(devices=2), config(Path(sys.argv[3]), 10, checkpoint_every=0))
except DyntokError as error:
    sys.exit(f"error: {error}")
"""
)


@pytest.mark.slow
def test_an_input_that_ends_in_one_of_two_processes_keeps_the_steps_of_both(tmp_path):
    with both(["-c", ENDING], tmp_path) as processes:
        said = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [1, 1], said
    assert "error: the other process has no batch" in said[0]
    assert "error: xx.txt: changed while it was read" in said[1]
    assert [saved.name for saved in (tmp_path / "checkpoints").iterdir()] == ["3"]
