"""The benchmark's parts that need no data."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dyntok_jax.merging.naive import merge_naive
from dyntok_jax.text.base_tokens import BaseTokenizer
from eval import bench
from eval.bench_merging import LANGUAGES, bench_merging
from eval.timing import medians


def test_tasks_take_turns_after_a_warm_up():
    calls: list[str] = []
    seconds = medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert set(seconds) == {"a", "b"} and min(seconds.values()) >= 0


def test_merging_is_compared_for_each_language_and_budget(tmp_path, tiny_tokenizers):
    for language in LANGUAGES:
        (tmp_path / f"{language}.txt").write_text("der Hund und der andere Hund\n" * 3, "utf-8")
    rows = bench_merging(BaseTokenizer(*tiny_tokenizers["unigram"]), tmp_path)
    assert [(row["language"], row["reduction"]) for row in rows] == [
        (language, reduction) for language in LANGUAGES for reduction in (100, 50)
    ]
    for row in rows:
        assert row["host_ratio"] == row["naive_ms"] / row["host_ms"]
    assert rows[0]["merges"] > rows[1]["merges"] > 0


def test_naive_rescan_breaks_ties_by_first_occurrence():
    merged, merges = merge_naive([["c", "d"], ["a", "b"], ["a", "b"], ["c", "d"]], 1, 99)
    assert merges == [("c", "d", 2)]
    assert merged == [["cd"], ["a", "b"], ["a", "b"], ["cd"]]


def test_a_run_is_recorded_as_every_other(tmp_path, monkeypatch, capsys):
    results = Path(__file__).parents[1] / "eval" / "results" / "bench.json"
    kept = json.loads(results.read_text("utf-8"))
    peak = kept["peak_memory_gb"]["encode"]
    out = tmp_path / "new" / "bench.json"
    monkeypatch.setattr(sys, "argv", ["bench.py", "--data", str(tmp_path), "--out", str(out)])
    with pytest.raises(SystemExit):
        bench.main()
    assert "no text/ntrex/de.txt in" in capsys.readouterr().err and not out.exists()
    for name in ("text/ntrex/de.txt", "xnli/dev-de.tsv"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(bench, "resolve", Path)
    monkeypatch.setattr(bench, "_memory", lambda data: kept["peak_memory_gb"])
    tokenizer = type("Model", (), {"tokenizer": None})
    monkeypatch.setattr(bench, "load", lambda *_, **__: tokenizer)
    for part in ("forward", "end_to_end", "merging"):
        monkeypatch.setattr(bench, f"bench_{part}", lambda *_, part=part: kept[part])
    bench.main()
    found = json.loads(out.read_text("utf-8"))
    made = {"commit", "machine", "seconds", "command"}
    assert {k: v for k, v in found.items() if k not in made} == {
        k: v for k, v in kept.items() if k not in made
    }
    assert found["command"].startswith("python -m eval.bench --data") and found["seconds"] >= 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("python -m eval.bench --data") and f"{peak:.2f} GB ≤ 1.5 GB" in said
