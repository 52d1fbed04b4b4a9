"""The benchmark of distillation: both steps do the same, and figures are whole without torch."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dyntok_jax.config import read_config
from eval.bench_distill import compare, main
from train.config import HypernetRun
from train.distill import Distillation
from train.hypernet import make_task


@pytest.fixture
def config(tmp_path):
    """A run so small that a turn takes no time, at a rate that shows every wrong gradient."""
    text = tmp_path / "xx.txt"
    lines = ["The quick brown fox jumps over the lazy dog.", "Der Abend über dem Fluss ist still."]
    text.write_text("\n".join(lines * 8), "utf-8")
    phase = {"peak": 0.01, "decay": "constant"}
    run = {
        "model": "none",
        "compute": {"mesh": {"data": 1}},
        "hypernet": {
            "hidden": 16,
            "feed_forward": 32,
            "layers": 1,
            "heads": 2,
            "surface_length": 6,
        },
        "distill": {"sequences": 4, "max_length": 32, "merge_rates": [100, 100]},
        "data": {"texts": 6, "workers": 0, "sources": [{"language": "xx", "files": str(text)}]},
        "training": {"out": "none", "steps": 30, "optimizer": {"phases": [phase], "clip": 0.5}},
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(run), "utf-8")
    return path


def measured(command, model, config, out):
    sizes = ["--batches", 2, "--repeats", 1, "--loop-steps", 2]
    found = command(main, "--model", model, "--config", config, "--out", out, *sizes)
    assert found.code == 0, found.err
    return json.loads(out.read_text("utf-8")), found.out


@pytest.mark.slow
def test_without_torch_the_result_says_so(command, encoder, config, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    figures, shown = measured(command, encoder, config, tmp_path / "a.json")
    assert figures["torch_skipped"] == "torch is not installed" and not figures["torch"]
    assert min(figures["jax"].values()) > 0 and 0 <= figures["idle_share"] <= 1
    assert figures["shape"] == [4, 32] and "torch is not installed" in shown


def test_both_steps_have_the_same_losses(encoder, config):
    """Over four updates: loss, gradient, clipping and optimizer are the same."""
    pytest.importorskip("torch")
    run = replace(read_config(HypernetRun, config, ["distill.shortfall=2"]), model=str(encoder))
    task = make_task(run)
    assert isinstance(task, Distillation)
    figures = compare(task, run, batches=4, repeats=1)
    assert figures["loss_difference"]["float32"] < 1e-3
    assert 0 < figures["loss_difference"]["bfloat16"] < 0.05
    assert all(figures[side][p] > 0 for side in ("jax", "torch") for p in ("float32", "bfloat16"))


def test_a_decoder_is_refused(command, decoder, config, tmp_path):
    run = command(main, "--model", decoder, "--config", config, "--out", tmp_path / "a.json")
    assert run.code == 2 and "not a run of distill with an encoder" in run.err
    assert run.err.count("\n") == 1 and not (tmp_path / "a.json").exists()
