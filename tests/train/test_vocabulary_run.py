"""``python -m train.vocabulary`` on a tiny model."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from dyntok_jax.config import read_config
from dyntok_jax.embed.source import FvtRows, SourceEmbeddings
from dyntok_jax.large_vocabulary.hidden_states import hidden_states
from dyntok_jax.large_vocabulary.scann_index import load_index
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary
from dyntok_jax.models.weights import load_source
from dyntok_jax.text.base_tokens import BaseTokenizer
from train.vocabulary import main
from train.vocabulary_config import VocabularyRun

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "vocabulary").glob("*.yaml"))
WORDS = ("haus", "baum", "strasse", "garten", "kind", "schule", "wasser", "brot", "licht")


@pytest.fixture
def config(decoder, tmp_path):
    """A file of a run that adds 40 tokens to the tiny decoder's."""
    lines = [f"{a}{b} {b}{a}s 1999, {a} {b}" for a in WORDS for b in WORDS]
    (tmp_path / "a.txt").write_text("\n".join(lines), "utf-8")
    (tmp_path / "b.txt").write_text("\n".join(lines[::2]), "utf-8")
    size = BaseTokenizer.from_folder(decoder).vocab_size + 40
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: {decoder}\nout: {tmp_path}/out\nsize: {size}\n"
        f"sources: [{{language: de, files: '{tmp_path}/*.txt'}}]\n"
        "rows: {provider: fvt}\n",
        "utf-8",
    )
    return path


def run(config, *overrides):
    main(["--config", str(config), *overrides])


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_two_runs_give_the_same_files(config, decoder, tmp_path):
    run(config)
    run(config, f"out={tmp_path}/again")
    first = contents(tmp_path / "out")
    assert sorted(first) == ["manifest.json", "rows.safetensors", "vocabulary.json"]
    assert first == contents(tmp_path / "again")
    manifest = json.loads(first["manifest.json"])
    corpus = [entry["file"] for entry in manifest["corpus"]]
    assert corpus == [f"{tmp_path.name}/a.txt", f"{tmp_path.name}/b.txt"]


def test_rows_are_the_models_own_and_the_providers(config, decoder, tmp_path):
    run(config)
    tokenizer = BaseTokenizer.from_folder(decoder)
    large = LargeVocabulary.load(tmp_path / "out", tokenizer)
    rows, source = large.rows(), SourceEmbeddings(*load_source(decoder))
    size = large.base_size
    assert len(large.tokens) == size + 40 and rows.output is None
    np.testing.assert_array_equal(rows.input[:size], source.input[:size])
    expected = FvtRows(source, tokenizer).rows(large.tokens[size:]).input
    np.testing.assert_array_equal(rows.input[size:], expected)
    assert "ĠkinderĠ" not in large.tokens and "Ġstrasse" in large.tokens


def test_what_is_there_is_not_made_again(config, tmp_path, capsys):
    run(config)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    run(config)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    for override, message in (
        ("min_frequency=3", "another min_frequency"),
        ("rows.provider=ridge", r"rows fvt \(now ridge\)"),
        ("rows.dtype=bfloat16", "dtype float32"),
        ("rows.language=1", r"language None \(now 1\)"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            run(config, override)


def test_a_changed_file_of_the_same_size_is_another_corpus(config, tmp_path):
    run(config)
    text = (tmp_path / "b.txt").read_text("utf-8")
    (tmp_path / "b.txt").write_text(text[::-1], "utf-8")
    with pytest.raises(SystemExit, match="built with another corpus"):
        run(config)
    # A manifest may be from before contents were said: then it is of any.
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    for entry in manifest["corpus"]:
        del entry["contents"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    run(config)


def test_another_part_of_a_dataset_is_another_corpus(config, tmp_path, monkeypatch):
    lines = (tmp_path / "a.txt").read_text("utf-8").splitlines()
    monkeypatch.setattr("train.vocabulary.open_texts", lambda *_: lines)
    source = "sources=[{{language: de, dataset: wiki, config_name: de, column: {}}}]"
    run(config, source.format("text"))
    (entry,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["corpus"]
    assert entry == {"dataset": "wiki", "split": "train", "config_name": "de"}
    for other in (source.replace(": de, col", ": fr, col").format("text"), source.format("title")):
        with pytest.raises(SystemExit, match="another corpus"):
            run(config, other)


@pytest.mark.skipif(sys.platform != "linux", reason="ScaNN is for Linux only")
def test_an_index_is_built_and_belongs_to_its_rows(config, tmp_path):
    pytest.importorskip("scann")
    index = "index={leaves: 4, leaves_searched: 4, training_sample: 500, reorder: 20}"
    run(config, index)
    assert (tmp_path / "out" / "scann" / "index.json").is_file()
    run(config, index)
    with pytest.raises(SystemExit, match="built with other settings"):
        run(config, index.replace("reorder: 20", "reorder: 30"))
    other = tmp_path / "other"
    run(config, f"out={other}", "rows.provider=weighted")
    (tmp_path / "out" / "scann").rename(other / "scann")
    with pytest.raises(SystemExit, match="built for other rows"):
        run(config, index, f"out={other}", "rows.provider=weighted")


@pytest.mark.skipif(sys.platform != "linux", reason="ScaNN is for Linux only")
def test_an_index_is_built_by_hidden_states_of_the_texts(config, decoder, tmp_path, monkeypatch):
    pytest.importorskip("scann")
    seen = []

    def states(model, vocabulary, texts, count, longest):
        seen.append(list(texts))
        return hidden_states(model, vocabulary, texts, count, longest)

    monkeypatch.setattr("train.vocabulary.hidden_states", states)
    index = "index={leaves: 4, leaves_searched: 4, training_sample: 500, query_sample: 60}"
    run(config, index)
    run(config, index, f"out={tmp_path}/again")
    # Eight states a text, the same texts again, from anywhere in them.
    lines = (tmp_path / "a.txt").read_text("utf-8").splitlines()
    assert len(seen[0]) == 8 and seen[0] == seen[1] and max(map(lines.index, seen[0])) > 40
    large = LargeVocabulary.load(tmp_path / "out", BaseTokenizer.from_folder(decoder))
    rows = large.rows()
    hidden = np.random.default_rng(0).standard_normal((3, rows.input.shape[1]), np.float32)
    found = load_index(tmp_path / "out" / "scann", rows, large.made_for).search(hidden, 1)
    np.testing.assert_array_equal(found.ids[:, 0], (hidden @ rows.input.T).argmax(1))


def test_mistakes_are_one_line(config, tmp_path):
    for overrides, message in (
        (["size=90000"], "are needed: give more texts"),
        (["sources=[]"], "sources is empty"),
        (["rows=null", "index={}"], "built of rows"),
        (["rows.provider=nowhere"], "no such folder"),
        (["min_frequency=0"], "min_frequency: 0 is not at least 1"),
        (["max_token_bytes=0"], "max_token_bytes: 0 is not at least 1"),
        ([f"size={10**9}"], "at most 100000000"),
        ([f"size={10**30}"], "valid is -2147483648 to 2147483647"),
    ):
        with pytest.raises(SystemExit) as error:
            run(config, f"out={tmp_path}/bad", *overrides)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_cannot_be_is_said_before_texts_are_read(config, tmp_path, monkeypatch):
    monkeypatch.setattr("train.vocabulary.new_tokens", lambda *_: pytest.fail("texts are read"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "vocabulary.json").touch()
    for out, said in (("a.txt/out", "cannot be written"), ("full", "is no empty folder")):
        with pytest.raises(SystemExit, match=said):
            run(config, f"out={tmp_path}/{out}")


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_config_files_are_valid_and_say_their_command(path, monkeypatch):
    for name in ("TEXT", "WORDS", "MODEL", "HYPERNET"):
        monkeypatch.setenv(name, name.lower())
    found = read_config(VocabularyRun, path)
    assert found.size == 1_000_000 and found.index is not None
    head = path.read_text("utf-8").split("model:")[0]
    assert f"python -m train.vocabulary --config configs/vocabulary/{path.name}" in head


def test_a_signal_to_end_is_an_interrupt(config, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("train.vocabulary._make_rows", lambda *_: os.kill(os.getpid(), 15))
    with pytest.raises(SystemExit, match="error: interrupted; the same command goes on"):
        run(config)
    assert signal.getsignal(signal.SIGTERM) == before


def test_texts_are_drawn_by_their_length(config, tmp_path, monkeypatch):
    pytest.importorskip("scann", reason="ScaNN is for Linux only")
    seen = []

    def states(model, vocabulary, texts, count, longest):
        seen.extend(texts)
        width = model.source.input.shape[1]
        return np.random.default_rng(0).standard_normal((count, width), np.float32)

    (tmp_path / "c.txt").write_text("haus baum\n" * 400, "utf-8")
    (tmp_path / "d.txt").write_text("schule wasser brot licht " * 1000, "utf-8")
    monkeypatch.setattr("train.vocabulary.hidden_states", states)
    run(config, "index={leaves: 4, leaves_searched: 4, training_sample: 500, query_sample: 80}")
    # It is one text of 500, and nearly all of the letters.
    assert len(seen) == 10 and max(map(len, seen)) > 20_000


def test_an_interrupted_run_says_that_it_goes_on(config, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.vocabulary._make_rows", stop)
    with pytest.raises(SystemExit, match="error: interrupted; the same command goes on"):
        run(config)
    monkeypatch.undo()
    run(config)
    assert "rows.safetensors" in contents(tmp_path / "out")
