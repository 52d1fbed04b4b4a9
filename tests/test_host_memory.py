"""Freed memory is allocated again, not mapped and zeroed anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dyntok_jax.host_memory import keep_freed_memory

# Threads, since XLA allocates in its own; what they allocate is as large as a step's temporaries.
_MEASURED = """
import resource, sys, threading, time
from pathlib import Path
from dyntok_jax.host_memory import keep_freed_memory

print(keep_freed_memory(Path(sys.argv[1])))

def allocate():
    block = bytearray(100_000_000)
    for place in range(0, len(block), 4096):
        block[place] = 1
    del block

def in_thread():
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()

in_thread()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    in_thread()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 4)
"""


def _measured(devices) -> tuple[str, float]:
    command = [sys.executable, "-c", _MEASURED, str(devices)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept, float(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are glibc's")
def test_pages_of_freed_memory_are_used_again(tmp_path):
    kept, faults = _measured(tmp_path)
    assert kept == "True"
    assert faults < 1000  # of 24,414 pages


def test_memory_of_an_accelerators_host_is_left_alone(tmp_path):
    (tmp_path / "accel0").touch()
    kept, faults = _measured(tmp_path)
    assert kept == "False"
    assert faults > 20_000


@pytest.mark.parametrize("name", ["nvidia0", "kfd", "vfio/17"])
def test_other_accelerators(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert not keep_freed_memory(tmp_path)
