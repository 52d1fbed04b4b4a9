"""What longest prefixes save of what is possible, over texts and tasks; and how texts repeat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dyntok_jax.dynamic_model import load
from dyntok_jax.embed.source import FvtRows
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary, write_vocabulary
from dyntok_jax.text.base_tokens import BaseTokenizer
from eval import diversity, vocabulary_saving

NEW = ["Ġquick", "ĠGroÃŁ", "Ġalle", "Ġund"]


@pytest.fixture
def large(decoder, tmp_path):
    """A tiny vocabulary without rows."""
    tokenizer = BaseTokenizer.from_folder(decoder)
    write_vocabulary(tmp_path / "large", tokenizer, NEW, "tiny", {})
    return LargeVocabulary.load(tmp_path / "large", tokenizer)


def test_the_share_is_of_one_token_per_pretoken(large):
    encode = large.tokenizer.encode
    words = [" quick", " Großes", " und"]
    base = [len(pieces.ids) for pieces in encode(words)]
    found = vocabulary_saving.saving(large, words[::2])
    assert found["share_of_saving"] == 1 and found["tokens_large"] == found["pretokens"] == 2
    assert found["tokens_static"] == base[0] + base[2] > 2 and found["bytes"] == 10
    found = vocabulary_saving.saving(large, words)
    assert found["pretokens"] == 3 and found["tokens_large"] > 3
    saved = sum(base) - found["tokens_large"]
    assert found["share_of_saving"] == pytest.approx(saved / (sum(base) - 3))
    assert found["mb_per_second"] > found["mb_per_second_with_base"] > 0


def test_the_saving_of_files(large, decoder, tmp_path, command):
    (tmp_path / "en.txt").write_text("quick und\nalle\n", "utf-8")
    (tmp_path / "law_test.csv").write_text("What alle?,a,b,c,d,B\n", "utf-8")
    question = {"question_id": 81, "category": "x", "turns": ["The quick", "und so"]}
    (tmp_path / "question.jsonl").write_text(json.dumps(question) + "\n", "utf-8")
    given = ("--model", decoder, "--vocabulary", tmp_path / "large", "--out", tmp_path / "o.json")
    run = command(
        vocabulary_saving.main,
        *given,
        *("--text", tmp_path / "en.txt", "--mmlu", tmp_path / "law_test.csv"),
        *("--mt-bench", tmp_path / "question.jsonl"),
    )
    assert run.code == 0, run.err
    files = json.loads((tmp_path / "o.json").read_text())["files"]
    assert [row["prompts"] for row in files.values()] == [2, 1, 2]
    assert all(0 < row["share_of_saving"] <= 1 for row in files.values())
    for name, row in files.items():
        counts = f"{row['tokens_static']} {row['tokens_large']} {row['pretokens']}"
        assert f"{Path(name).name} {counts} {100 * row['share_of_saving']:.1f} %" in run.shown
    run = command(vocabulary_saving.main, *given)
    assert run.code == 2 and "no prompts" in run.err


def test_continuations_are_cut_to_the_same_words():
    found = diversity.compared(["a b c d a b c d a b", "a"], ["a b c d e", "a b c d"])
    # Of five words each both have two stretches; the second pair is too short.
    assert found["static_distinct_4"] == found["large_distinct_4"] == 1
    assert found["words"] == 5 and found["left_out"] == 1
    found = diversity.compared(["a a a a a"] * 3, ["a b c d e f"] * 3)
    assert found["static_distinct_4"] == 0.5 and found["difference"] == 0.5
    assert found["difference_interval"] == pytest.approx((0.5, 0.5))


def test_the_diversity_of_a_text(large, decoder, tmp_path, command, monkeypatch):
    model = load(str(decoder), "fvt")
    provider = FvtRows(model.source, model.tokenizer)
    large.rows_file.predict(large.row_tokens, provider, {"model": str(decoder)})
    (tmp_path / "en.txt").write_text("The quick fox und alle Kinder\n" * 20, "utf-8")
    given = ("--model", decoder, "--vocabulary", tmp_path / "large", "--out", tmp_path / "o.json")
    more = ("--text", tmp_path / "en.txt", "--prompts", 4, "--prompt-tokens", 8)
    run = command(diversity.main, *given, *more, "--max-new-tokens", 1)
    assert run.code == 2 and "give more new tokens" in run.err
    compared = diversity.compared

    def with_words(*texts):
        # Letters of a random model make few words.
        return compared(*([f"a b c d {text}" for text in part] for part in texts))

    monkeypatch.setattr(diversity, "compared", with_words)
    run = command(diversity.main, *given, *more, "--max-new-tokens", 4)
    assert run.code == 0, run.err
    (row,) = json.loads((tmp_path / "o.json").read_text())["files"].values()
    assert 0 < row["large_distinct_4"] <= 1 and row["words"] >= 16
    shares = f"{row['static_distinct_4']:.3f} {row['large_distinct_4']:.3f}"
    assert f" {row['words']} 0 {shares} {row['difference']:+.3f} (" in run.shown
