"""Text is labelled by adapters as evaluations predict, or it is said why it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from test_lora_training import SENTENCES, files, make

from dyntok_jax.adapter_files import write_adapter
from dyntok_jax.models.hf_config import read_architecture
from dyntok_jax.tasks import metrics, uner
from dyntok_jax.tasks.source import TaskSource
from train import pseudo_labels
from train.loop import train
from train.lora import make_task

__all__ = ["files", "make"]


def test_plain_text_is_labelled_as_evaluations_predict(make, tmp_path, capsys):
    # Short ones, which the model reads whole.
    chosen = [(words, tags) for words, tags in SENTENCES if len(words) <= 6]
    gold, text, out = (tmp_path / name for name in ("gold.jsonl", "text.txt", "labels.jsonl"))
    records = [{"tokens": words, "ner_tags": tags} for words, tags in chosen]
    gold.write_text("\n".join(map(json.dumps, records)), "utf-8")
    held_out = TaskSource(files=str(gold), language="xx")
    run = make(rows="base", held_out=(held_out,), max_length=60)
    task = make_task(replace(run, training=replace(run.training, steps=100)))
    trained = train(task, replace(run.training, steps=100))
    folder = tmp_path / "adapter"
    write_adapter(folder, task.adapter(trained), read_architecture(Path(run.model)), run.model)
    # Two sentences a line, the first of which ends with a full stop.
    lines = [" ".join(["fox", ".", *words]) for words, _ in chosen]
    text.write_text("\n".join(lines) + "\n", "utf-8")
    arguments = ["--model", run.model, "--adapter", str(folder), "--text", str(text)]
    arguments += ["--out", str(out)]
    pseudo_labels.main(arguments)
    found = {" ".join(s.words): s.tags for s in uner.read(TaskSource(files=str(out)))}
    assert len(found) == len(chosen) + 1 and "fox ." in found
    predicted = [found[" ".join(words)] for words, _ in chosen]
    counts = metrics.span_counts(predicted, [tags for _, tags in chosen]).sum(axis=0)
    assert 0 < counts[0] < counts[1] + counts[2]
    assert metrics.f1(*counts) == pytest.approx(task.evaluate(trained)["f1_xx_0"])

    assert "trained on rows" not in capsys.readouterr().err
    joint = task.adapter(trained)
    joint = joint._replace(task={**joint.task, "rows": "fvt"})
    write_adapter(folder, joint, read_architecture(Path(run.model)), run.model)
    pseudo_labels.main([*arguments, "--max-length", "12"])
    said = capsys.readouterr().err
    short = uner.read(TaskSource(files=str(out)))
    assert 0 < len(short) < len(found)
    assert "trained on rows of fvt, tokenization static; here it reads base" in said
    assert f"{len(short)} sentences, {len(found) - len(short)} too long" in said
    assert {" ".join(s.words): s.tags for s in short}.items() <= found.items()
    pseudo_labels.main([*arguments, "--sentences", "3"])
    assert len(uner.read(TaskSource(files=str(out)))) == 3


def test_texts_are_cut_into_sentences_and_words():
    texts = [
        "He left. She came!  Why? ",
        "She came! A 5.3 z.B. co\u00adop",
        "...",
        "Влади́мир हिन्दी don’t",
    ]
    found = pseudo_labels.sentences(texts)
    assert found == ["He left.", "She came!", "Why?", "A 5.3 z.B.", "co\u00adop", texts[-1]]
    words = [pseudo_labels.words(sentence) for sentence in found[-3:]]
    assert words == [
        ["A", "5", ".", "3", "z", ".", "B", "."],
        ["co\u00adop"],
        ["Влади́мир", "हिन्दी", "don", "’", "t"],
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--max-length": "2"}, "no sentence of 22 has at most 2 tokens"),
        ({"--sentences": "0"}, "valid are numbers from 1"),
        ({"--out": "labels.iob2"}, "labels.iob2: valid is a file .jsonl"),
        ({"--text": "none.txt"}, "none.txt: no such file"),
        ({"--text": "blank.txt"}, "blank.txt: no sentence with a word"),
        ({"--text": "latin.txt"}, "not UTF-8"),
        ({"--out": "text.txt/labels.jsonl"}, "text.txt: File exists"),
        ({"--out": "folder.jsonl"}, "folder.jsonl: is no regular file"),
        ({"--text": "own.json*", "--out": "./own.jsonl"}, "own.jsonl: is read too; give another"),
        ({"--adapter": "other"}, "other: the adapter was trained on another model"),
        ({"--adapter": "nowhere"}, "nowhere"),
        ({"--adapter": "pairs"}, "pairs: an adapter for xnli, with sequence labels"),
    ],
)
def test_what_cannot_be_labelled(make, tmp_path, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    architecture = read_architecture(Path(make().model))
    for name, kind in (("words", "uner"), ("pairs", "xnli")):
        task = make_task(make(kind, rows="base"))
        trained = task.init(jax.random.key(0))
        write_adapter(Path(name), task.adapter(trained), architecture, "tiny")
        if kind == "uner":
            other = task.adapter(trained)._replace(base="0" * 64)
            write_adapter(Path("other"), other, architecture, "tiny")
    Path("text.txt").write_text("\n".join(" ".join(words) for words, _ in SENTENCES), "utf-8")
    Path("blank.txt").write_text(" \n...\n", "utf-8")
    Path("latin.txt").write_text("Gro\xdfvater\n", "latin-1")
    Path("own.jsonl").write_text('{"text": "der Hund"}\n', "utf-8")
    Path("folder.jsonl").mkdir()
    options = {"--model": task.run.model, "--adapter": "words", "--text": "text.txt"}
    options |= {"--out": "labels.jsonl"} | changes
    with pytest.raises(SystemExit) as stopped:
        pseudo_labels.main([part for pair in options.items() for part in pair])
    assert said in str(stopped.value.code)
    assert not list(Path().glob("*labels*"))
