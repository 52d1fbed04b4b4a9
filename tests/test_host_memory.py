"""Freed memory is allocated again, not mapped and zeroed anew."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

import eval.record
import train.command
import train.hypernet
from dyntok_jax import cli, host_memory

on_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc"
)

# Threads, since XLA allocates in its own; what they allocate is as large as a step's temporaries.
# The commands' modules come first: had they threads that allocate, these would count.
_MEASURED = """
import resource, sys, threading
from pathlib import Path
import train.hypernet, train.lora, train.pseudo_labels, eval.bench_lora, eval.retrieval
from dyntok_jax.host_memory import keep_freed_memory

def allocate():
    block = bytearray(100_000_000)
    for place in range(0, len(block), 4096):
        block[place] = 1

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_freed_memory(Path(sys.argv[1]))
faults()  # the first ones have nothing to take
print(kept, faults())
"""


@pytest.fixture
def environment():
    """Without settings of the machine's own."""
    own = ("JAX_PLATFORMS", "GLIBC_TUNABLES")
    return {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k not in own}


def _measured(devices, environment) -> tuple[str, int]:
    command = [sys.executable, "-c", _MEASURED, str(devices)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    kept, faults = done.stdout.split()
    return kept, int(faults)


@on_glibc
def test_pages_of_freed_memory_are_used_again(tmp_path, environment):
    kept, few = _measured(tmp_path, environment)
    assert kept == "True"
    (tmp_path / "accel0").touch()
    kept, many = _measured(tmp_path, environment)
    assert kept == "False"
    # Few anyway where the system maps huge pages.
    assert few < max(many / 20, 1000)


@pytest.mark.parametrize("name", ["nvidia0", "kfd", "vfio/17", "accel0"])
def test_memory_of_an_accelerators_host_is_left_alone(tmp_path, monkeypatch, name):
    called = _without_calls(monkeypatch)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert not host_memory.keep_freed_memory(tmp_path) and not called


@on_glibc
def test_a_cpu_that_is_asked_for_counts_more(tmp_path, monkeypatch):
    called = _without_calls(monkeypatch)
    (tmp_path / "nvidia0").touch()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert host_memory.keep_freed_memory(tmp_path)
    assert called == [(-4, 0), (-1, -1), (-8, 1)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_ARENA_MAX", "4"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")],
)
def test_settings_of_the_environment_count_more(tmp_path, monkeypatch, name, value):
    called = _without_calls(monkeypatch)
    monkeypatch.setenv(name, value)
    assert not host_memory.keep_freed_memory(tmp_path) and not called


def _without_calls(monkeypatch) -> list[tuple[int, int]]:
    """No setting of this process's is made; they are listed."""
    called = []

    class Library:
        def mallopt(self, *setting):
            called.append(setting)
            return 1

    for name in [*filter(lambda name: name.startswith("MALLOC_"), os.environ)]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda _: Library())
    return called


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (train.command, ["--config", "missing.yaml"]),
        (cli, ["encode", "--help"]),
        (eval.record, None),
    ],
)
def test_commands_that_compute_keep_it(monkeypatch, tmp_path, module, arguments):
    called = []
    monkeypatch.setattr(module, "keep_freed_memory", lambda: called.append(True))
    if arguments is None:
        monkeypatch.setattr(sys, "argv", ["eval", "--out", str(tmp_path / "run.json")])
        parser = eval.record.Parser(prog="eval")
        found = {"task": "rewriting", "model": "m", "windows": 1, "files": {}}
        eval.record.run(parser, lambda _: found, names_model=False)
    elif module is cli:
        cli.dyntok.main(arguments, standalone_mode=False)
    else:
        with pytest.raises(SystemExit):
            train.hypernet.main(arguments)
    assert called


def test_commands_without_a_model_do_not(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: called.append(True))
    cli.dyntok.main(["tokenize", "--help"], standalone_mode=False)
    assert not called
