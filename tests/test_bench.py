"""The benchmark's parts that need no data."""

from __future__ import annotations

from dyntok_jax.merging.naive import merge_naive
from dyntok_jax.text.base_tokens import BaseTokenizer
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
