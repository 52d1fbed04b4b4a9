"""A distillation that is killed ends where an undisturbed one does, on its mesh or another."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dyntok_jax.config import read_config
from train.config import HypernetRun
from train.hypernet import make_task
from train.loop import train

ROOT = Path(__file__).parents[2]
STEPS = 30
TEXTS = (
    "The lazy dog sleeps all day long while the quick fox jumps over it.",
    "Der alte Mann erzählte heute Abend Geschichten über ferne Länder.",
    "Watoto wanacheza mpira nje ya nyumba ya babu yao asubuhi.",
)


def write_run(folder: Path, model: Path) -> Path:
    text_file = folder / "xx.txt"
    text_file.write_text("\n".join(TEXTS[i % 3][i:] for i in range(24)), "utf-8")
    shape = {"hidden": 16, "feed_forward": 16, "layers": 1, "heads": 2, "surface_length": 6}
    sources = [{"language": "xx", "files": str(text_file)}]
    run = {
        "model": str(model),
        "hypernet": shape,
        "distill": {"sequences": 8, "max_length": 32},
        "data": {"texts": 16, "workers": 0, "sources": sources},
        "training": {
            "out": str(folder / "killed"),
            "steps": STEPS,
            "checkpoint_every": 1,
            "keep": 2,
            "optimizer": {"name": "muon", "phases": [{"peak": 1e-3}]},
        },
        "compute": {"mesh": {"data": 1}},
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(run), "utf-8")
    return path


def trained(config: Path, out: Path, *overrides: str):
    """The parameters at the end of a run in this process."""
    run = read_config(HypernetRun, config, [f"training.out={out}", *overrides])
    return jax.device_get(train(make_task(run), run.training))


def newest(out: Path) -> int:
    """Step of the newest checkpoint that was written to the end."""
    folders = (path.parent.name for path in (out / "checkpoints").glob("*/commit_success.txt"))
    return max((int(name) for name in folders if name.isdigit()), default=0)


def kill_at(config: Path, out: Path, step: int) -> None:
    command = [sys.executable, "-m", "train.hypernet", "--config", str(config)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and newest(out) < step:
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_run_ends_as_an_undisturbed_one(encoder, tmp_path):
    config = write_run(tmp_path, encoder)
    step = int(np.random.default_rng().integers(2, 9))
    kill_at(config, tmp_path / "killed", step)
    assert step <= newest(tmp_path / "killed") < STEPS
    shutil.copytree(tmp_path / "killed", tmp_path / "moved")
    whole = trained(config, tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, trained(config, tmp_path / "killed"), whole)
    moved = trained(config, tmp_path / "moved", "compute.mesh={data: 8}")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved, whole)
