"""The training loop: values, resuming, stopping, bad batches."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from regression_task import Regression, config

from train.loop import train


def records(out, kind="train"):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_the_loss_falls_and_every_figure_is_recorded(tmp_path):
    train(Regression(), config(tmp_path, 60, evaluate_every=30))
    found = records(tmp_path)
    assert [record["step"] for record in found] == list(range(2, 61, 2))
    assert found[-1]["loss"] < 0.3 * found[0]["loss"]
    assert found[0]["learning_rate"] == pytest.approx(1e-2 / 3)
    assert all(record["tokens_per_s"] > 0 for record in found)
    assert [r["step"] for r in records(tmp_path, "evaluation")] == [30, 60]


def test_a_complete_run_gives_its_parameters_without_another_step(tmp_path):
    first = train(Regression(), config(tmp_path))
    task = Regression()
    again = train(task, config(tmp_path))
    assert task.taken == []
    jax.tree.map(np.testing.assert_array_equal, first, again)
