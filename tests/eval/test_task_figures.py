"""Figures of settings, made up outcomes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eval.task_config import Setting
from eval.task_figures import Outcome, figures


def outcome(right: int) -> dict[str, Outcome]:
    """So many of 20 examples are right, in one language."""
    counts = np.stack([np.arange(20) < right, np.ones(20, int)], axis=1)
    return {"xx": Outcome(counts, 10, 8, np.ones(2), {})}


def accuracy(sums: Any) -> Any:
    return 100 * sums[..., 0] / sums[..., 1]


def test_differences_are_between_shared_seeds():
    outcomes = {"a": [*map(outcome, (4, 8, 15))], "b": [*map(outcome, (17, 6))]}
    settings = [Setting("a", "task"), Setting("b", "joint")]

    def found(seeds: Any) -> dict[str, Any]:
        return figures(outcomes, accuracy, ["xx"], settings, seeds)[1]

    row = found({"a": [42, 43, 44], "b": [44, 42]})
    for part in (row["average"], row["languages"]["xx"]):
        assert part["value"] == pytest.approx(57.5)
        # 17 against 15 and 6 against 4, of 20.
        assert part["delta"] == pytest.approx(10)
        low, high = part["delta_interval"]
        assert 0 <= low < 10 < high <= 30
    assert row["average"]["delta_seeds"] == [44, 42]
    for seeds in (None, {"a": [42, None, 44], "b": [44, 42]}, {"a": [1, 2, 3], "b": [4, 5]}):
        average = found(seeds)["average"]
        assert average["delta"] == pytest.approx(57.5 - 45) and average["delta_seeds"] is None


def test_differences_to_a_control_are_between_shared_seeds_too():
    outcomes = {
        "first": [*map(outcome, (10, 10))],
        "control": [*map(outcome, (12, 9, 2))],
        "joint": [*map(outcome, (17, 6))],
    }
    settings = [Setting(name, name) for name in outcomes]
    seeds = {"first": [1, 2], "control": [2, 1, 3], "joint": [1, 2]}
    rows = figures(outcomes, accuracy, ["xx"], settings, seeds, {"joint": "control"})
    average = {row["name"]: row["average"] for row in rows}
    # 17 against 9 and 6 against 12, of 20.
    assert average["joint"]["control_delta"] == pytest.approx(5)
    low, high = average["joint"]["control_interval"]
    assert low < 5 < high and average["joint"]["control_seeds"] == [1, 2]
    assert average["joint"]["delta"] == pytest.approx(7.5)
    assert "control_delta" not in average["control"]

    others = seeds | {"control": [4, 5, 6]}
    row = figures(outcomes, accuracy, ["xx"], settings, others, {"joint": "control"})[2]["average"]
    assert row["control_seeds"] is None and row["delta_seeds"] == [1, 2]
    assert row["control_delta"] == pytest.approx(5 * 23 / 2 - 5 * 23 / 3)
