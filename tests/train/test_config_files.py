"""Every file of a training run is valid and says how it is used."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

import datasets
import pytest
import tensorflow_datasets

from dyntok_jax.config import read_config
from dyntok_jax.types import DyntokError
from train.config import HypernetRun
from train.data import TextBatch, batches
from train.optim import make_schedule
from train.text_files import parse_lines

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "hypernet").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_file_is_valid_and_says_its_command(path, monkeypatch):
    monkeypatch.setenv("TEXT", "texts")
    monkeypatch.setenv("MODEL", "model")
    monkeypatch.setenv("VOCABULARY", "vocabulary")
    run = read_config(HypernetRun, path)
    make_schedule(run.training.optimizer.phases, run.training.steps)
    head = path.read_text("utf-8").split("model:")[0]
    assert f"python -m train.hypernet --config configs/hypernet/{path.name}" in head
    assert all(line.startswith("#") for line in head.splitlines())


@pytest.mark.parametrize("name", ["zett_mistral.yaml", "zett_xlmr.yaml"])
def test_runs_of_days_are_evaluated_on_the_way(name, monkeypatch):
    monkeypatch.setenv("TEXT", "texts")
    monkeypatch.setenv("MODEL", "model")
    run = read_config(HypernetRun, ROOT / "configs" / "hypernet" / name)
    assert 0 < run.training.evaluate_every < run.training.steps and len(run.zett.targets) == 2
    assert run.held_out is not None and run.held_out.one_language
    trained, held_out = ({s.language for s in data.sources} for data in (run.data, run.held_out))
    assert len(held_out) > 1 and held_out <= trained
    folders = [s.dataset or str(Path(s.files or "").parent) for s in run.data.sources]
    for source in run.held_out.sources:
        held_out = Path(source.files or "")
        assert held_out.name and not any(held_out.is_relative_to(folder) for folder in folders)


def _lines(file: str | Path | None, lines: str | None) -> tuple[str, set[int]]:
    spans = parse_lines(lines) if lines else [(1, 100_000)]
    name = "/".join(Path(file or "").parts[-2:])
    return name, {i for first, last in spans for i in range(first, last + 1)}


def test_a_decoder_is_chosen_by_lines_that_are_neither_trained_on_nor_measured(monkeypatch):
    monkeypatch.setenv("TEXT", "texts")
    monkeypatch.setenv("VOCABULARY", "vocabulary")
    run = read_config(HypernetRun, ROOT / "configs" / "hypernet" / "smollm2.yaml")
    assert run.held_out is not None
    used = [_lines(source.files, source.lines) for source in run.data.sources]
    results = sorted((ROOT / "eval" / "results").glob("continuation_*.json"))
    assert len(results) > 5
    for path in results:
        words = shlex.split(json.loads(path.read_text("utf-8"))["command"])
        used.append(_lines(*(words[words.index(option) + 1] for option in ("--text", "--lines"))))
    for source in run.held_out.sources:
        file, lines = _lines(source.files, source.lines)
        assert not [name for name, others in used if name == file and lines & others]


def test_overrides_win(monkeypatch):
    monkeypatch.setenv("TEXT", "texts")
    monkeypatch.setenv("MODEL", "model")
    monkeypatch.setenv("VOCABULARY", "vocabulary")
    run = read_config(HypernetRun, FILES[0], ["training.steps=7", "compute.mesh.data=2"])
    assert run.training.steps == 7 and run.compute.mesh.data == 2
    with pytest.raises(DyntokError, match=r"training\.steps"):
        read_config(HypernetRun, FILES[0], ["training.stepz=7"])


def load_dataset(name, config_name=None, *, data_files="", split, streaming):
    """What the hub would give, as its data sets are laid out."""
    assert split == "train" and streaming
    if name == "json":
        folder = "hf://datasets/allenai/MADLAD-400/data"
        language = data_files.removeprefix(folder).split("/")[1]
        assert fnmatch(f"{folder}/{language}/{language}_clean_0000.jsonl.gz", data_files)
        records = [{"text": f"{language} {i}"} for i in range(40)]
    else:
        assert name == "facebook/xnli" and data_files == ""
        records = [{"premise": f"{config_name} {i}", "label": 0} for i in range(40)]
    return datasets.Dataset.from_list(records).to_iterable_dataset()


def data_source(name, split):
    """TFDS's XNLI: a record has its premise in all languages."""
    assert (name, split) == ("xnli:1.1.0", "validation")
    languages = [
        "ar",
        "bg",
        "de",
        "el",
        "en",
        "es",
        "fr",
        "hi",
        "ru",
        "sw",
        "th",
        "tr",
        "ur",
        "vi",
        "zh",
    ]
    return [{"premise": {name: f"{name} {i}".encode() for name in languages}} for i in range(20)]


def read(texts: TextBatch) -> tuple[TextBatch, int]:
    return texts, 0


@pytest.mark.parametrize("name", ["e5_small_madlad.yaml", "e5_small_xnli.yaml"])
def test_data_by_name_is_read(name, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(tensorflow_datasets, "data_source", data_source)
    run = read_config(HypernetRun, ROOT / "configs" / "hypernet" / name)
    assert run.held_out is not None
    for data in (run.data, run.held_out):
        drawn = list(islice(batches(replace(data, workers=0), read, seed=0), 3))
        pairs = [p for d in drawn for p in zip(d.batch.texts, d.batch.languages, strict=True)]
        assert all(text.split()[0] == language for text, language in pairs)
        assert {language for _, language in pairs} == {source.language for source in data.sources}
