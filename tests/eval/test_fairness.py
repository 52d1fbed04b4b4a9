"""Lengths relative to English, their spread, and the report they go to."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest

from dyntok_jax import dynamic_model
from dyntok_jax.embed.providers import row_provider
from eval import fairness, report


def test_gini_of_known_shares():
    assert fairness.gini(np.array([3.0, 3.0, 3.0])) == 0
    assert fairness.gini(np.array([0.0, 0.0, 0.0, 1.0])) == pytest.approx(0.75)
    assert fairness.gini(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 9)


def test_spread_is_over_all_and_over_spaced_languages():
    found = fairness.compared(
        {"en": 10.0, "de": 15.0, "zh": 5.0}, {"en": 8.0, "de": 8.0, "zh": 2.0}
    )
    german = found["languages"]["de"]
    assert german["static_to_english"] == 1.5 and german["dynamic_to_english"] == 1
    assert german["shorter_percent"] == pytest.approx(100 * 7 / 15)
    assert found["spread"]["static"]["max_over_min"] == 3
    assert found["spread"]["dynamic"]["max_over_min"] == 4
    assert found["spread_spaced"]["dynamic"] == {"max_over_min": 1, "gini": 0}


def test_a_run_and_its_table(encoder, tmp_path, monkeypatch, capsys):
    for name, lines in (
        ("en", ["The lighthouse.", "It is lit."]),
        ("de", ["Straßenbahnen fahren.", "Der Fluss."]),
    ):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    out, readme = tmp_path / "fair.json", tmp_path / "README.md"
    arguments = ["fairness", "--models", str(encoder), "--text", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["eval.report", *arguments])
    report.main()
    run = json.loads(out.read_text("utf-8"))
    (model,) = run["fairness"]
    german = model["languages"]["de"]
    # Whole words and full stops are what merging leaves.
    assert german["dynamic"] == (3 + 3) / 2 and model["languages"]["en"]["dynamic"] == (3 + 4) / 2
    assert run["command"].startswith("python -m eval.report fairness --models")
    assert "<svg" in out.with_suffix(".svg").read_text("utf-8")
    readme.write_text("<!-- fairness -->\n<!-- /fairness -->\n", "utf-8")
    monkeypatch.setattr(sys, "argv", ["eval.report", str(out), str(readme)])
    report.main()
    said = readme.read_text("utf-8")
    assert f"| de | {german['static_to_english']:.2f} | 0.86 |" in said
    assert "| max ÷ min | " in said and "fair.svg" in said


def test_what_is_timed_predicts_rows_and_loads_nothing(encoder, tmp_path, command, monkeypatch):
    asked = []

    class Watched:
        def __init__(self, *arguments: Any):
            self.provider = row_provider(*arguments)
            asked.append([])

        def rows(self, tokens: Any) -> Any:
            asked[-1].append(len(tokens))
            return self.provider.rows(tokens)

    monkeypatch.setattr(dynamic_model, "row_provider", Watched)
    for name in ("en", "de"):
        (tmp_path / f"{name}.txt").write_text("The quick fox\n")
    out = tmp_path / "fair.json"
    arguments = ["--models", encoder, "--text", tmp_path, "--time", 1, "--out", out]
    run = command(fairness.main, "fairness", *arguments)
    (model,) = json.loads(out.read_text("utf-8"))["fairness"]
    german = model["languages"]["de"]
    saved = [f"{german[f'{what}_percent']:.0f} %" for what in ("shorter", "time_saved")]
    assert run.code == 0 and f" de 1.00 1.00 {saved[0]} {saved[1]}" in run.shown
    # One provider, asked for no row as the model is loaded and as each run begins.
    (rows,) = asked
    static, dynamic = rows[2:6:2]
    assert static > dynamic > 0
    turn = [0, static, 0, dynamic]
    assert rows == [0] + 2 * (1 + fairness.REPEATS) * turn


@pytest.mark.parametrize(
    ("files", "words"),
    [({"en": "a\n"}, "no xx.txt beside"), ({"en": "a\n", "de": "a\nb\n"}, "differ in number")],
)
def test_texts_that_cannot_be_compared(tmp_path, monkeypatch, capsys, files, words):
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text)
    out = str(tmp_path / "fair.json")
    arguments = ["fairness", "--models", "none", "--text", str(tmp_path), "--out", out]
    monkeypatch.setattr(sys, "argv", ["eval.report", *arguments])
    with pytest.raises(SystemExit):
        report.main()
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("blank", ["en", "de"])
def test_files_of_blank_lines(encoder, tmp_path, command, blank):
    for name in ("en", "de"):
        (tmp_path / f"{name}.txt").write_text("\n\n" if name == blank else "The quick\nfoxes\n")
    out = tmp_path / "fair.json"
    run = command(fairness.main, "fairness", "--models", encoder, "--text", tmp_path, "--out", out)
    assert run.code == 2 and f"{blank}.txt: no token in its lines" in run.err
    assert run.err.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "fair.svg"], "fair.svg: the plot has this name"),
        (["--out", "taken.json"], "taken.svg: is no regular file"),
        (["--out", "fair.json", "--languages", "de", "fr", "de"], "de is there twice"),
        (["--out", "fair.json", "--time", "1"], "is a decoder"),
    ],
)
def test_what_cannot_be_had_is_refused_before_counting(
    decoder, tmp_path, command, monkeypatch, arguments, words
):
    for name in ("en", "de", "fr"):
        (tmp_path / f"{name}.txt").write_text("The quick\nfoxes\n")
    (tmp_path / "taken.svg").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fairness, "_tokens", lambda *_: pytest.fail("it counted"))
    run = command(fairness.main, "fairness", "--models", decoder, "--text", tmp_path, *arguments)
    assert run.code == 2 and words in run.err and run.err.count("\n") == 1
    assert not (tmp_path / "fair.svg").exists()
