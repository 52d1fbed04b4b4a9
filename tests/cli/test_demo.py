"""``dyntok demo`` on tiny random models."""

from __future__ import annotations

import json
import re

from dyntok_jax.cli import demo
from dyntok_jax.demo import measure


def test_there_are_four_sentences_in_fourteen_languages():
    texts = measure.sentences()
    assert len(texts) == 14
    assert all(len(set(lines)) == 4 for lines in texts.values())


def test_demo_shows_and_writes_every_language(dyntok, encoder, decoder, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ENCODER", str(encoder))
    monkeypatch.setattr(demo, "DECODER", str(decoder))
    texts = {key: lines for key, lines in measure.sentences().items() if key in ("de", "sw")}
    monkeypatch.setattr(measure, "sentences", lambda: texts)
    run = dyntok("demo", "--out", tmp_path / "demo")
    assert run.code == 0, run.err
    figures = json.loads((tmp_path / "demo" / "demo.json").read_text("utf-8"))
    page = (tmp_path / "demo" / "demo.html").read_text("utf-8")
    # No hypernetwork ships for random models: their rows are FVT rows, and labelled so.
    assert "with FVT rows" in figures["encoder"] and "with FVT rows" in page
    assert "with FVT rows" in run.out
    assert list(figures["languages"]) == ["de", "sw"]
    for language, parts in figures["languages"].items():
        first, second = parts["encoder"], parts["decoder"]
        assert first["tokens_dynamic"] < first["tokens_static"]
        assert second["tokens_dynamic"] <= second["tokens_static"]
        assert first["similarity"] <= 1 + 1e-6
        assert "".join(first["dynamic"]) == "".join(first["static"])
        assert f"<b>{language}</b>" in page
    assert page.count("<svg") == 4
    # Self-contained: the page names no address but those of the drawings' vocabularies.
    assert set(re.findall(r"(?:src|href)=\"(?!#)", page)) == set()


def test_a_folder_that_is_a_file_is_refused(dyntok, tmp_path):
    place = tmp_path / "file"
    place.write_text("kept")
    run = dyntok("demo", "--out", place)
    assert run.code == 1 and run.err.count("\n") == 1
    assert place.read_text() == "kept"
