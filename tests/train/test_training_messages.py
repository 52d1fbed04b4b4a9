"""Libraries that set up logging on import do not hide what a training says."""

from __future__ import annotations

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
