"""The objective ``zett`` in two processes, as on a pod: trained, evaluated and written as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from test_two_processes import HYPERNET, run_both
from zett_run import write_run

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_leave_what_one_does(decoder, tmp_path):
    two = write_run(tmp_path / "two", decoder)
    run_both(["-c", HYPERNET], two, "compute.mesh={data: 1, fsdp: 2}")
    one = write_run(tmp_path / "one", decoder)
    command = [sys.executable, "-m", "train.hypernet", "--config", str(one)]
    env = os.environ | {"XLA_FLAGS": ""}
    subprocess.run([*command, "compute.mesh={data: 1}"], env=env, cwd=ROOT, check=True)
    runs = [yaml.safe_load(path.read_text())["training"]["out"] for path in (one, two)]
    for part, tolerance in (("hypernet", 2e-3), ("model", 1e-5)):
        alone, together = (load_file(Path(run) / part / "model.safetensors") for run in runs)
        assert alone.keys() == together.keys()
        for name, leaf in alone.items():
            np.testing.assert_allclose(together[name], leaf, atol=tolerance, err_msg=name)
