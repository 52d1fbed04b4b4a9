import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scann", reason="ScaNN is for Linux only")

import json

from dyntok_jax.dynamic_model import load
from dyntok_jax.embed.source import FvtRows, SourceEmbeddings
from dyntok_jax.large_vocabulary.hidden_states import hidden_states
from dyntok_jax.large_vocabulary.opening import control_ids
from dyntok_jax.large_vocabulary.scann_index import ScannSettings, build_index, load_index
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary, write_vocabulary
from dyntok_jax.models.weights import load_source
from dyntok_jax.text.base_tokens import BaseTokenizer
from eval import recall

NEW = ["Ġquick", "ĠGroÃŁ", "Ġalle", "Ġund"]


@pytest.fixture
def built(decoder, tmp_path):
    """A tiny vocabulary with rows and an index, and a text."""
    tokenizer = BaseTokenizer.from_folder(decoder)
    write_vocabulary(tmp_path / "large", tokenizer, NEW, "tiny", {})
    large = LargeVocabulary.load(tmp_path / "large", tokenizer)
    provider = FvtRows(SourceEmbeddings(*load_source(decoder)), tokenizer)
    large.rows_file.predict(large.row_tokens, provider, {})
    settings = ScannSettings(12, 12, 1000, 2, reorder=200)
    build_index(tmp_path / "index", large.rows(), settings, large.made_for)
    lines = ["The quick fox und alle", "", "Großvater und die 24 Kinder", "quick quick"]
    (tmp_path / "de.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return tmp_path


def command(built, decoder, monkeypatch, *more):
    names = {"vocabulary": built / "large", "index": built / "index", "text": built / "de.txt"}
    options = [f"--{name}={value}" for name, value in names.items()]
    options += [f"--model={decoder}", "--rows=fvt", f"--out={built}/out.json", "--timed=2", *more]
    monkeypatch.setattr(sys, "argv", ["eval.recall", *options])
    recall.main()
    return json.loads((built / "out.json").read_text())


def test_fewer_leaves_find_less(built, decoder, monkeypatch, capsys):
    search: Any = recall._on_device
    compiled = search._cache_size()
    found = command(built, decoder, monkeypatch, "--leaves=1,12", "--queries=30")
    few, every = found["recall"][str(built / "de.txt")]
    assert few < 0.9 < every == pytest.approx(1, abs=0.02)
    assert found["leaves"] == [1, 12] and found["reorder"] == [200, 200]
    shown = " ".join(capsys.readouterr().out.split())
    assert "recall@10 among" in shown and "exact 1 " in shown
    for leaves, share, ms in zip((1, 12), (few, every), found["milliseconds"], strict=True):
        assert f"{leaves} leaves, 200 compared {share:.3f} {ms:.1f}" in shown
    # For 16 and 14 states, and for one in either vocabulary.
    assert search._cache_size() - compiled <= 4
    times = [found["milliseconds_exact"], found["milliseconds_original"], *found["milliseconds"]]
    assert len(times) == 4 and min(times) > 0


def test_each_file_has_its_lines(built, decoder, monkeypatch):
    other = built / "en.txt"
    other.write_text("\nThe quick fox\n", "utf-8")
    read = {}

    def seen(model, vocabulary, texts, *more):
        read[len(read)] = texts
        return hidden_states(model, vocabulary, texts, *more)

    monkeypatch.setattr(recall, "hidden_states", seen)
    more = ["--text", str(built / "de.txt"), str(other), "--lines", "3-3", "2-2", "--queries=9"]
    found = command(built, decoder, monkeypatch, *more)["recall"]
    assert list(found) == [str(built / "de.txt"), str(other)]
    assert list(read.values()) == [["Großvater und die 24 Kinder"], ["The quick fox"]]


def test_the_index_is_searched_as_in_generation(built, decoder, monkeypatch):
    """With the control tokens among what is compared."""
    seen = []

    def opened(*inputs):
        seen.append(load_index(*inputs))
        return seen[-1]

    monkeypatch.setattr(recall, "load_index", opened)
    command(built, decoder, monkeypatch, "--leaves=1,12", "--queries=3")
    wanted = control_ids(load(str(decoder), "fvt"))
    assert wanted and [index.always.tolist() for index in seen] == [wanted, wanted]


def test_recall_is_the_share_of_the_best():
    best = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[4, 9, 1, -1], [8, 7, 6, 5]])
    assert recall._recall(found, best) == 6 / 8


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("a\n", ["--k=100000"], "k 100000: the vocabulary has"),
        (" \n\n", [], "blank lines only"),
        ("a\nb\n", ["--lines", "1-1", "2-2"], "--lines: 2 for 1 files; valid is one for all"),
        ("a\n \n", ["--lines", "2-2"], "blank lines only"),
        ("a\n", ["--text", "a.txt", "a.txt"], "a.txt: is given twice"),
    ],
)
def test_mistakes_are_one_line(built, decoder, monkeypatch, capsys, text, more, said):
    (built / "de.txt").write_text(text, "utf-8")
    with pytest.raises(SystemExit):
        command(built, decoder, monkeypatch, *more)
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (built / "out.json").exists()
