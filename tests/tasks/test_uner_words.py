"""Sentences, labels that stay with their words through merges, and what is refused."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from seqeval.metrics import f1_score

from dyntok_jax.merging.batch import merge
from dyntok_jax.merging.budget import Budget
from dyntok_jax.tasks import metrics, uner
from dyntok_jax.tasks.source import TaskSource
from dyntok_jax.tasks.uner import LABELS, Sentence
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.byte_level import BYTE_TO_CHAR
from dyntok_jax.types import DyntokError

IOB2 = (
    "# sent_id = 1\n# text = # Ana\n1\t#\tB-OTH\t-\tx\n2\tAna\tB-PER\t-\tx\n3\tMar\tI-PER\n\n"
    "# sent_id = 2\n1\tda\tB-O\n\n\n1\tOslo\tB-LOC"
)


def written(path, text: str) -> TaskSource:
    path.write_text(text, "utf-8")
    return TaskSource(files=str(path))


def test_iob2_with_columns_of_either_number(tmp_path):
    found = uner.read(written(tmp_path / "x.iob2", IOB2))
    assert found == [
        Sentence(["#", "Ana", "Mar"], ["O", "B-PER", "I-PER"], 1),
        Sentence(["da"], ["O"], 1),
        Sentence(["Oslo"], ["B-LOC"], 0),
    ]


def test_records_with_names_and_numbers(tmp_path):
    records = [
        {"tokens": ["Ana", "da"], "ner_tags": [1, 0]},
        {"tokens": ["Ana", "da"], "ner_tags": ["B-ORG", "I-OTH"]},
    ]
    found = uner.read(written(tmp_path / "x.jsonl", "\n".join(map(json.dumps, records))))
    assert [s.tags for s in found] == [["B-PER", "O"], ["B-ORG", "O"]]
    assert [s.mapped for s in found] == [0, 1]


def test_a_dataset_by_name(monkeypatch):
    datasets = pytest.importorskip("datasets")
    names = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
    features = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=names[::-1])),
        }
    )
    rows = [{"tokens": ["in", "Oslo"], "ner_tags": [6, 1]}]
    table = datasets.Dataset.from_list(rows, features=features)
    monkeypatch.setattr("datasets.load_dataset", lambda *names, **options: table)
    source = TaskSource(dataset="universalner/universal_ner", config_name="en_ewt")
    assert uner.read(source) == [Sentence(["in", "Oslo"], ["O", "B-LOC"])]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.iob2", "1\tAna\tB-PER\n2\tMar\tB-MISC\n", "line 2: tag 'B-MISC'"),
        ("x.iob2", "1\tAna\n", "line 1: 2 columns"),
        ("x.iob2", "Ana\tNNP\tB-PER\n", "line 1: number 'Ana'; valid is 1,"),
        ("x.iob2", "1\tAna\tB-PER\n1\tda\tO\n", "line 2: number '1'; valid is 2,"),
        ("x.iob2", "1\tAna\tB-PER\n\n2\tda\tO\n", "line 3: number '2'; valid is 1,"),
        ("x.iob2", "1-2\tzum\tO\n1\tzu\tO\n", "line 1: number '1-2'; valid is 1,"),
        ("x.iob2", "# text = nothing\n\n", "an empty split"),
        ("x.jsonl", '{"tokens": ["a", "b"], "ner_tags": [0]}\n', "line 1: 2 words and 1 tags"),
        ("x.jsonl", '{"tokens": ["a"], "ner_tags": [7]}\n', "line 1: tag 7"),
        ("x.jsonl", '{"tokens": [3], "ner_tags": [0]}\n', "line 1: word 3"),
        ("x.jsonl", '{"tokens": ["a"], "ner_tags": [-1]}\n', "line 1: tag -1"),
        ("x.jsonl", '{"tokens": ["a"], "ner_tags": [true]}\n', "line 1: tag True"),
        ("x.jsonl", '{"tokens": null, "ner_tags": [0]}\n', "line 1: tokens None; valid is a list"),
        ("x.jsonl", '{"tokens": "Ana", "ner_tags": [0, 0, 0]}\n', "line 1: tokens 'Ana'; valid is"),
        (
            "x.jsonl",
            '{"tokens": ["a"], "ner_tags": "O"}\n',
            "line 1: ner_tags 'O'; valid is a list",
        ),
        ("x.jsonl", '{"words": ["a"]}\n', "line 1: no field 'tokens'"),
        ("x.jsonl", '{"tokens": [], "ner_tags": []}\n', "line 1: no words; valid is one"),
        ("x.txt", "Ana B-PER\n", "valid are .iob2 and .jsonl"),
    ],
)
def test_what_is_no_sentence_is_named_with_its_line(tmp_path, name, text, words):
    with pytest.raises(DyntokError) as error:
        uner.read(written(tmp_path / name, text))
    assert words in str(error.value) and name in str(error.value)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizers) -> BaseTokenizer:
    return BaseTokenizer(*tiny_tokenizers["unigram"])


SENTENCE = Sentence(
    ["Großvater", "", "doesn't", "Straßenbahn", "over"],
    ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"],
)


@pytest.mark.parametrize("reduction", [0, 30, 60, 100])
@pytest.mark.parametrize("boundary", [Boundary.PRETOKEN, Boundary.WORD])
def test_tags_stay_with_their_words_through_merges(tokenizer, reduction, boundary):
    base = uner.layout(tokenizer, [SENTENCE, SENTENCE], boundary)
    merged = merge(base, Budget(reduction=reduction)).sequences
    for sequence in merged:
        assert sequence.word_ids is not None
        labels = uner.token_labels(sequence.word_ids, SENTENCE.tags)
        assert labels.dtype == np.int32 and len(labels) == len(sequence.tokens)
        place = {label: int(np.flatnonzero(labels == label)[0]) for label in {*labels} - {-1}}
        # Each labelled token begins its word: the word starts with its bytes.
        for label, word in ((1, "Großvater"), (0, "doesn't"), (5, "Straßenbahn"), (6, "over")):
            token = sequence.tokens[place[label]]
            assert isinstance(token, str)
            spelled = "Ġ" + "".join(tokenizer_bytes(word))
            assert spelled.startswith(token), (word, token)
        assert (labels >= 0).sum() == 4 and uner.unread_words([SENTENCE], [sequence.word_ids]) == 1
        predicted = np.where(labels < 0, 3, labels)  # what continues a word must not count
        tags = uner.word_tags(sequence.word_ids, predicted, 5)
        assert tags == ["B-PER", "O", "O", "B-LOC", "I-LOC"]
    if reduction == 100:
        assert len(merged[0].tokens) < len(base[0].tokens)


def tokenizer_bytes(word: str) -> str:
    return "".join(BYTE_TO_CHAR[byte] for byte in word.encode())


def test_words_that_are_cut_off_are_outside(tokenizer):
    (base,) = uner.layout(tokenizer, [SENTENCE], max_length=4)
    assert base.truncated > 0 and base.word_ids is not None
    assert uner.unread_words([SENTENCE], [base.word_ids]) == 4
    predicted = np.full(4, 1, np.int32)
    assert uner.word_tags(base.word_ids, predicted, 5) == ["B-PER", "O", "O", "O", "O"]


def test_words_that_merge_into_the_one_before_are_outside(tokenizer):
    base = uner.layout(tokenizer, [SENTENCE], Boundary.SENTENCE)
    (sequence,) = merge(base, Budget(reduction=100)).sequences
    assert sequence.word_ids is not None and len(sequence.tokens) == 3
    assert uner.token_labels(sequence.word_ids, SENTENCE.tags).tolist() == [-1, 1, -1]
    assert uner.unread_words([SENTENCE], [sequence.word_ids]) == 4


def test_spans_count_as_seqeval_counts_them():
    random.seed(0)
    tags: list[str] = [*LABELS]
    for _ in range(50):
        gold, found = ([random.choices(tags, k=length) for length in (1, 7, 12)] for _ in range(2))
        sums = metrics.span_counts(found, gold).sum(axis=0)
        assert metrics.f1(*sums) == pytest.approx(100 * f1_score(gold, found))


def test_figures_of_known_predictions():
    gold = [["B-PER", "I-PER", "O"], ["B-LOC", "O", "B-ORG"]]
    found = [["B-PER", "O", "O"], ["B-LOC", "O", "O"]]
    counts = metrics.span_counts(found, gold)
    assert counts.tolist() == [[0, 1, 1], [1, 1, 2]]
    assert metrics.f1(*counts.sum(axis=0)) == pytest.approx(40)
    assert metrics.f1(np.array(0), np.array(0), np.array(0)) == 0


def test_the_real_files(shared):
    folder = shared / "data" / "uner"
    train = uner.read(TaskSource(files=str(folder / "en_ewt-ud-train.iob2")))
    tags = [tag for sentence in train for tag in sentence.tags]
    assert len(train) == 12543 and sum(s.mapped for s in train) == 888 + 227 + 540
    assert [tags.count(f"B-{kind}") for kind in ("LOC", "PER", "ORG")] == [2698, 2873, 1434]
    russian = uner.read(TaskSource(files=str(folder / "ru_pud-ud-test.iob2")))
    assert len(russian) == 1000 and {*russian[0].tags} <= set(LABELS)
