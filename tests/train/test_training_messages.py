"""Libraries that set up logging on import do not hide what a training says."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAID = """
import logging, sys
from train.{module} import main
try:
    main(["--config", "nowhere.yaml"])
except SystemExit as ended:
    logging.getLogger("train.loop").info("resumed at step 5")
    print(ended.code)
"""


@pytest.mark.parametrize("module", ["hypernet", "lora", "vocabulary"])
def test_a_commands_messages_are_seen(module):
    done = subprocess.run(
        [sys.executable, "-c", SAID.format(module=module)], cwd=ROOT, capture_output=True, text=True
    )
    assert "error: nowhere.yaml" in done.stdout
    assert "resumed at step 5" in done.stderr.splitlines()


COMMANDS = {
    "hypernet": "{model: nowhere/at_all/x, data: {sources: [{language: de, files: a.txt}]}, "
    "training: {out: OUT, steps: 1}}",
    "lora": "{model: nowhere/at_all/x, task: uner, data: [{files: a.jsonl}], "
    "training: {out: OUT, steps: 1}}",
    "vocabulary": "{model: nowhere/at_all/x, out: OUT, sources: [{language: de, files: a.txt}]}",
}


def ended(module, *arguments, redirection=""):
    """What a command says on standard error until it ends with code 1 or 2."""
    command = shlex.join([sys.executable, "-m", f"train.{module}", *map(str, arguments)])
    done = subprocess.run(
        ["bash", "-c", f"{command} {redirection}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode in (1, 2) and not done.stdout
    return done.stderr


@pytest.mark.parametrize("module", COMMANDS)
def test_a_mistake_is_all_that_a_command_says(module, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(COMMANDS[module].replace("OUT", str(tmp_path / "out")), "utf-8")
    (said,) = ended(module, "--config", config).splitlines()
    assert said.startswith("error: ") and "nowhere/at_all/x" in said
    (said,) = ended(module).splitlines()
    required = "error: the following arguments are required: --config"
    assert said.startswith(f"python -m train.{module}: {required}")
    (said,) = ended(module, "--config", config, f"model={'x' * 300}").splitlines()
    assert said.startswith("error: ") and said.endswith("File name too long")
    assert ended(module, "--config", config, redirection="2>&-") == ""


def test_a_warning_of_merge_adapter_is_in_its_own_form():
    code = """
import logging
from train.merge_adapter import main
try:
    main(["--model", "nowhere/at_all/x", "--adapter", "a", "--out", "b"])
except SystemExit:
    logging.getLogger("dyntok_jax.x").warning("read as O")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "WARNING: read as O" in done.stderr.splitlines()
