"""Training curves: every figure is drawn, of every run, and mistakes are named."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from eval.curves import main, running_mean


@pytest.fixture
def runs(tmp_path):
    """Two runs, one of them with a loss that was not finite and an evaluation."""
    for name, steps in (("first", 40), ("second & last", 20)):
        (tmp_path / name).mkdir()
        records = [
            {"step": step, "kind": "train", "loss": None if step == 4 else 1 / step}
            for step in range(2, steps + 1, 2)
        ]
        if name == "first":
            records += [{"step": s, "kind": "evaluation", "hidden": 2.5 / s} for s in (20, 40)]
        lines = [json.dumps(record) for record in records]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines))
    return [tmp_path / "first", tmp_path / "second & last" / "metrics.jsonl"]


def test_a_page_holds_every_figure_of_every_run(command, runs, tmp_path):
    out = tmp_path / "deep" / "curves.html"
    assert command(main, *runs, "--out", out).code == 0
    text = out.read_text("utf-8")
    assert text.count("<svg") == 2 and "src=" not in text and "<link" not in text
    loss = text[text.index("<h2>Training") :]
    assert "first" in loss and "second &amp; last" in loss
    for cells in (
        ["first", "40", "hidden", "0.125", "0.0625"],
        ["second &amp; last", "20", "", "", ""],
    ):
        assert "".join(f"<td>{cell}</td>" for cell in cells) in text
    assert command(main, *runs, "--out", out).code == 0 and out.read_text("utf-8") == text


def test_running_means_stay_within_the_ends():
    assert running_mean([1.0, 5.0]) == [1.0, 5.0]
    values = np.arange(100.0) ** 2
    found = running_mean(values.tolist())
    assert found[0] == np.mean(values[:3]) and found[50] == np.mean(values[48:53])
    assert found[-1] == np.mean(values[-3:])


def test_metrics_are_not_written_over(command, runs):
    metrics = runs[0] / "metrics.jsonl"
    before = metrics.read_bytes()
    run = command(main, runs[0], "--out", metrics)
    assert run.code == 2 and "metrics.jsonl: is read too" in run.err
    assert metrics.read_bytes() == before


def test_what_is_no_run_is_named_in_one_line(command, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("[1]\n")
    for path, words in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "metrics.jsonl, line 1: not the metrics of a run"),
    ):
        run = command(main, path, "--out", tmp_path / "a.html")
        assert run.code == 2 and words in run.err and run.err.count("\n") == 1
        assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"step": "2", "kind": "train"}', "step '2'; valid is a whole number"),
        ('{"step": true, "kind": "train"}', "step True"),
        ('{"kind": "train"}', "step None"),
        ('{"step": 2, "kind": "other"}', "whose kind is one of evaluation, train"),
        ('{"step": 2, "kind": ["train"]}', "whose kind is one of"),
        ('{"step": 2, "kind": "train", "loss": "low"}', "loss 'low'; valid is a finite number"),
        ('{"step": 2, "kind": "train", "loss": [1]}', "loss [1]"),
        ('{"step": 2, "kind": "train", "loss": {"a": 1}}', "loss {'a': 1}"),
        ('{"step": 2, "kind": "train", "loss": NaN}', "loss nan"),
        ('{"step": 2, "kind": "train", "loss": 1' + 400 * "0" + "}", "loss 1000"),
        ('{"step": 2, "kind": "train", "\\ud800": 1}', "figure '\\ud800'"),
        ('{"step": 2, "kind": "train", "loss": ' + 100_000 * "[", "line 2: not the metrics"),
        ('{"step": 2, "ki', "line 2: not the metrics"),
    ],
)
def test_a_record_that_is_none_is_named_with_its_line(command, tmp_path, line, words):
    file, out = tmp_path / "metrics.jsonl", tmp_path / "a.html"
    file.write_text('{"step": 1, "kind": "train", "loss": 2}\n' + line + "\n")
    run = command(main, file, "--out", out)
    assert run.code == 2 and f"{file}, line 2" in run.err and words in run.err
    assert run.err.count("\n") == 1 and len(run.err) < 400 and not out.exists()


def test_names_are_drawn_as_they_are(command, tmp_path):
    out, folders = tmp_path / "a.html", [tmp_path / name for name in ("_run", "$\\no$", "b\udcff")]
    for folder in folders:
        folder.mkdir()
        (folder / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "$\\\\frac$": 2}\n')
    assert command(main, *folders, "--out", out).code == 0
    texts = re.findall(r"<text[^>]*>(.*?)</text>", out.read_text("utf-8"))
    assert {" _run", "$\\no$", "b\ufffd", "$\\frac$"} <= {*texts}


def test_runs_of_one_name_are_told_apart(command, tmp_path):
    out, folders = tmp_path / "a.html", [tmp_path / part / "run" for part in ("one", "two")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": 2}\n')
    assert command(main, *folders, "--out", out).code == 0
    text = out.read_text("utf-8")
    assert all(f"<td>{part}/run</td>" in text for part in ("one", "two"))
    run = command(main, folders[0], folders[0] / "metrics.jsonl", "--out", out)
    assert run.code == 2 and "metrics.jsonl: is there twice" in run.err
    assert run.err.count("\n") == 1 and out.read_text("utf-8") == text
