"""Pairs of every form, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dyntok_jax.tasks import xnli
from dyntok_jax.tasks.source import TaskSource
from dyntok_jax.tasks.xnli import Pair
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import DyntokError


def written(path, text: str, language: str = "") -> TaskSource:
    path.write_bytes(text.encode("utf-8"))
    return TaskSource(files=str(path), language=language)


def test_a_tsv_without_header_keeps_quotes_and_carriage_returns_end_lines(tmp_path):
    text = '"Mama," he said.\tHe "spoke".\tneutral\r\nA\tB\tcontradiction\r\n'
    found = xnli.read(written(tmp_path / "x.tsv", text))
    assert found == [Pair('"Mama," he said.', 'He "spoke".', 1), Pair("A", "B", 2)]


def test_a_tsv_with_header_may_be_quoted(tmp_path):
    text = 'sentence1\tsentence2\tgold_label\n"At ""The\tFace"" he"\tB\tentailment\n'
    assert xnli.read(written(tmp_path / "x.tsv", text)) == [Pair('At "The\tFace" he', "B", 0)]
    text = "label\tpremise\thypothesis\ncontradiction\tA\tB\n"
    assert xnli.read(written(tmp_path / "x.tsv", text)) == [Pair("A", "B", 2)]


HEADER = "sentence1\tsentence2\tgold_label\n"


def test_a_tsv_with_header_and_marks_as_text_keeps_every_line(tmp_path):
    """As XNLI's and MultiNLI's own files are."""
    lines = [
        '"Mama," he said.\tB\tneutral',
        '"I\tHe said "I".\tentailment',
        'A 5" pipe\t"""B""" is\tneutral',
        '"Yes."\tC"\tcontradiction',
    ]
    found = xnli.read(written(tmp_path / "x.tsv", HEADER + "\n".join(lines)))
    assert [f"{a}\t{b}\t{xnli.LABELS[label]}" for a, b, label in found] == lines


QUOTED = '"A ""b"""\tB\tneutral\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"A\nB"\tC\tneutral\n', "line 2: 1 columns"),
        (QUOTED * 3 + '"A\nB"\tC\tneutral\n', "line 5: a quotation mark is not closed"),
        (QUOTED * 3 + '"A" b\tC\tneutral\n', "line 5: a quotation mark is not closed"),
        (QUOTED + "\n" + QUOTED, "line 3: 0 columns"),
    ],
)
def test_a_pair_on_several_lines_is_refused(tmp_path, text, words):
    with pytest.raises(DyntokError) as error:
        xnli.read(written(tmp_path / "x.tsv", HEADER + text))
    assert words in str(error.value)


LANGUAGES = [("ar", "A"), ("en", "B"), ("en", "C"), ("de", "D")]


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_of_a_file_of_all_languages_the_source_s_is_read(tmp_path, kind, caplog):
    """As XNLI 1.0 has it."""
    names = ("language", "gold_label", "sentence1", "sentence2")
    rows = [(language, "neutral", text, text) for language, text in LANGUAGES]
    if kind == "tsv":
        text = "\n".join(map("\t".join, [names, *rows]))
    else:
        text = "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows)

    def premises(**fields) -> list[str]:
        return [pair.premise for pair in xnli.read(TaskSource(files=source.files, **fields))]

    source = written(tmp_path / f"x.{kind}", text)
    with caplog.at_level("INFO"):
        assert premises(language="en") == ["B", "C"]
    left = sum(language != "en" for language, _ in LANGUAGES)
    assert caplog.messages == [f"{source}: {left} records in other languages left out"]
    assert premises(language="de", first=1) == ["D"]
    assert premises() == ["A", "B", "C", "D"]
    with pytest.raises(DyntokError, match=rf"x\.{kind}: none in 'fr'; valid .* ar, de, en$"):
        premises(language="fr")


def test_json_lines_and_the_first_of_them(tmp_path):
    records = [{"premise": "A", "hypothesis": "B", "label": x} for x in ("e", 1, "2")]
    source = written(tmp_path / "x.jsonl", "\n".join(map(json.dumps, records)) + "\n\n")
    assert [pair.label for pair in xnli.read(source)] == [0, 1, 2]
    first = TaskSource(files=source.files, first=2)
    assert len(xnli.read(first)) == 2


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.tsv", "A\tB\tneutral\nA\tB\tperhaps\n", "line 2: label 'perhaps'"),
        ("x.tsv", "premise\thypothesis\tlabel\nA\tB\t-\n", "line 2: label '-'"),
        ("x.tsv", "A\tB\n", "line 1: 2 columns"),
        ("x.tsv", "", "an empty split"),
        ("x.tsv", "premise\thypothesis\tlabel\n", "an empty split"),
        ("x.jsonl", '{"premise": "A", "label": 1}\n', "line 1: no field 'hypothesis'"),
        ("x.jsonl", '{"premise": "A", "hypothesis": 3, "label": 1}\n', "line 1: hypothesis: 3"),
        ("x.jsonl", '{"premise": "A", "hypothesis": "B", "label": -1}\n', "label -1"),
        ("x.jsonl", '{"premise": "A", "hypothesis": "B", "label": true}\n', "line 1: label True"),
        ("x.jsonl", '{"premise": "A", "hypothesis": "B", "label": 1.0}\n', "line 1: label 1.0"),
        ("x.jsonl", '{"sentence1": "A", "gold_label": 1}\n', "line 1: no field 'sentence2'"),
        (
            "x.jsonl",
            '{"premise": {"translation": ["A"]}, "hypothesis": "B", "label": 1}\n',
            "line 1: premise: no field 'language'",
        ),
        (
            "x.jsonl",
            '{"premise": {"translation": "A", "language": ["de"]}, "hypothesis": "B"}\n',
            "line 1: premise: translation 'A'; valid is a list",
        ),
        (
            "x.jsonl",
            '{"premise": {"translation": ["A"], "language": ["de", "en"]}, "hypothesis": 1}\n',
            "line 1: premise: 2 languages and 1 translations",
        ),
        ("x.jsonl", "{\n", "line 1: not JSON"),
        ("x.csv", "A,B,neutral\n", "valid are .tsv and .jsonl"),
    ],
)
def test_what_is_no_pair_is_named_with_its_line(tmp_path, name, text, words):
    with pytest.raises(DyntokError) as error:
        xnli.read(written(tmp_path / name, text))
    assert words in str(error.value) and name in str(error.value)


def test_sources_are_one_of_three_kinds(tmp_path):
    with pytest.raises(DyntokError, match="exactly one"):
        TaskSource()
    with pytest.raises(DyntokError, match="exactly one"):
        TaskSource(files="x.tsv", dataset="facebook/xnli")
    with pytest.raises(DyntokError, match="No such file"):
        xnli.read(TaskSource(files=str(tmp_path / "x.tsv")))
    (tmp_path / "x.tsv").write_bytes(b"A\xff\tB\tneutral\n")
    with pytest.raises(DyntokError, match="not UTF-8"):
        xnli.read(TaskSource(files=str(tmp_path / "x.tsv")))


def test_a_dataset_by_name_gives_names_of_labels(monkeypatch):
    """As facebook/xnli has it: numbers of a class label with names of its own order."""
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []
    label = datasets.ClassLabel(names=["contradiction", "entailment", "neutral"])
    texts = {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string")}
    table = datasets.Dataset.from_list(
        [{"premise": "A", "hypothesis": "B", "label": 0}],
        features=datasets.Features(texts | {"label": label}),
    )

    def load(*names, **options):
        asked.append((names, options))
        return table

    monkeypatch.setattr("datasets.load_dataset", load)
    source = TaskSource(dataset="facebook/xnli", config_name="de", split="validation")
    assert xnli.read(source) == [Pair("A", "B", 2)]
    assert asked == [(("facebook/xnli", "de"), {"split": "validation", "revision": None})]


def test_of_translations_the_language_is_read(monkeypatch):
    """As TFDS and the configuration all_languages have it."""
    record = {
        "premise": {"de": b"Ja", "en": b"Yes"},
        "hypothesis": {"language": [b"de", b"en"], "translation": [b"Nein", b"No"]},
        "label": 2,
    }
    monkeypatch.setattr("dyntok_jax.tasks.source._tfds", lambda source: ([record], {}))
    assert xnli.read(TaskSource(tfds="xnli", language="de")) == [Pair("Ja", "Nein", 2)]
    with pytest.raises(DyntokError, match=r"record 1: premise: not in 'fr'; valid .* de, en"):
        xnli.read(TaskSource(tfds="xnli", language="fr"))


def test_what_a_library_raises_is_one_line(monkeypatch):
    def fail(*names, **options):
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(DyntokError, match=r"facebook/xnli train: cannot be loaded \(no network\)"):
        xnli.read(TaskSource(dataset="facebook/xnli"))


def test_layout_is_that_of_pairs_and_counts_what_is_cut(tiny_tokenizers):
    tokenizer = BaseTokenizer(*tiny_tokenizers["unigram"])
    pair = Pair("The quick brown fox jumps over the lazy dog", "a dog", 0)
    (whole,) = xnli.layout(tokenizer, [pair])
    closing = [i for i, token in enumerate(whole.tokens) if token == tokenizer.closing_id]
    assert len(closing) == 3 and closing[1] == closing[0] + 1
    (cut,) = xnli.layout(tokenizer, [pair], max_length=10)
    assert len(cut.tokens) == 10 and cut.truncated == len(whole.tokens) - 10


def test_the_real_files(shared):
    folder = shared / "data" / "xnli"
    for language in ("en", "th"):
        pairs = xnli.read(TaskSource(files=str(folder / f"dev-{language}.tsv")))
        assert [sum(p.label == i for p in pairs) for i in range(3)] == [830, 830, 830]
    train = shared / "data" / "nli_train_en" / "cad_snli" / "train.tsv"
    pairs = xnli.read(TaskSource(files=str(train)))
    assert [sum(p.label == i for p in pairs) for i in range(3)] == [2770, 2778, 2782]
    assert not any(p.premise.startswith('"A boy') for p in pairs)
