"""Answers in FastChat's form, on a tiny random model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_folders import of_languages

from dyntok_jax.config import read_config
from dyntok_jax.dynamic_model import load
from dyntok_jax.embed.source import FvtRows, SourceEmbeddings
from dyntok_jax.generate import GenerationConfig, generate
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary, write_vocabulary
from dyntok_jax.models.weights import load_source
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.layouts import messages_layout
from dyntok_jax.types import DyntokError
from eval import mt_bench
from eval.mt_bench_answers import Answers, distinct_share
from eval.mt_bench_config import TEMPERATURES, MtBenchRun

ROOT = Path(__file__).parents[2]
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["The lighthouses?", "And the foxes?"]},
    {"question_id": 82, "category": "math", "turns": ["Count the lighthouses.", "Again."]},
    {"question_id": 83, "category": "coding", "turns": ["Straßenbahnen", "today"]},
]


@pytest.fixture
def content(decoder, tmp_path) -> dict[str, Any]:
    lines = "".join(f"{json.dumps(question)}\n" for question in QUESTIONS)
    (tmp_path / "question.jsonl").write_text(lines, "utf-8")
    return {
        "model": str(decoder),
        "questions": str(tmp_path / "question.jsonl"),
        "answers": str(tmp_path / "answers"),
        "settings": [
            {"name": "original", "rows": "base"},
            {"name": "dynamic", "reduction": 100, "rows": "fvt"},
            {"name": "predicted", "reduction": 100, "rows": "fvt", "vocabulary": "predicted"},
        ],
        "max_new_tokens": 6,
        "batch_size": 2,
    }


@pytest.fixture
def answered(content, tmp_path, command):
    def run(*arguments: str, **changes: Any):
        (tmp_path / "run.yaml").write_text(json.dumps(content | changes), "utf-8")
        out = tmp_path / "found.json"
        done = command(mt_bench.main, "--config", tmp_path / "run.yaml", "--out", out, *arguments)
        return done, json.loads(out.read_text("utf-8")) if done.code == 0 else {}

    return run


def lines(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(row["file"]).read_text("utf-8").splitlines()]


def test_answers_are_what_generate_says_of_the_conversation(answered, content):
    done, found = answered()
    assert done.code == 0, done.err
    for row in found["mt_bench"]:
        counts = f"{row['tokens_dynamic']} {row['shorter_percent']:.1f} % {row['new_tokens']} "
        assert f" {row['name']} {counts}" in done.shown
    original, dynamic, predicted = found["mt_bench"]
    name = Path(content["model"]).name
    assert Path(original["file"]).name == f"{name}-original.jsonl"
    by_number = {line["question_id"]: line for line in lines(original)}
    assert list(by_number) == [81, 82, 83]
    for line in by_number.values():
        assert line["model_id"] == f"{name}-original" and line["tstamp"] > 1.6e9
        ((index, turns),) = [(c["index"], c["turns"]) for c in line["choices"]]
        assert index == 0 and len(turns) == 2
    # Of greedy categories the second turn follows the first answer.
    model = load(content["model"], "fvt")
    talk, how = [], GenerationConfig(max_new_tokens=6, reduction=100)
    dynamic_line = {line["question_id"]: line for line in lines(dynamic)}[82]
    for said, answer in zip(
        QUESTIONS[1]["turns"], dynamic_line["choices"][0]["turns"], strict=True
    ):
        talk.append({"role": "user", "content": said})
        (expected,) = generate(model, messages_layout(model.tokenizer, [talk]), how)
        assert answer == expected.text.strip()
        talk.append({"role": "assistant", "content": answer})
    assert dynamic["shorter_percent"] > 10 and original["shorter_percent"] == 0
    assert original["answers"] == 6 and 6 <= original["new_tokens"] <= 36
    # Predicted by FVT, rows of the vocabulary are the model's own.
    assert lines(predicted)[1]["choices"] == dynamic_line["choices"]


def test_a_language_is_of_rows_with_a_table(answered, content, decoder, tmp_path, monkeypatch):
    rows = str(of_languages(tmp_path / "rows", decoder, ["de", "en"]))
    tabled = {"name": "tabled", "rows": rows, "base_rows": "predicted"}
    settings = [*content["settings"], tabled, tabled | {"name": "all", "vocabulary": "predicted"}]
    token = BaseTokenizer.from_folder(decoder).spelled()[100]
    read: list[np.ndarray] = []
    real = mt_bench.generate

    def noted(model, prompts, how, vocabulary, **rest):
        read.append(model.cache._provider.rows([token]).input[0])
        if vocabulary is not None:
            read.append(vocabulary.input[100])
        return real(model, prompts, how, vocabulary, **rest)

    monkeypatch.setattr(mt_bench, "generate", noted)
    by_language = []
    for language in (0, 1):
        read.clear()
        answers = str(tmp_path / str(language))
        given = {"settings": settings, "answers": answers, "first": 1, "turns": 1}
        done, _ = answered(**given, language=language)
        assert done.code == 0, done.err
        by_language.append([*read])
    same = [np.allclose(*pair) for pair in zip(*by_language, strict=True)]
    # Base rows, FVT's twice and what it predicts; then those of the table.
    assert same == [True] * 4 + [False] * 3
    done, _ = answered(language=1)
    assert done.code == 2 and "the rows of no setting have a table of languages" in done.err


def test_what_is_answered_is_not_answered_again(answered, content, monkeypatch):
    _, found = answered(settings=content["settings"][:1], first=2)
    (row,) = found["mt_bench"]
    before = lines(row)
    assert [line["question_id"] for line in before] == [81, 82]
    asked = []
    real = mt_bench.generate

    def noted(model, prompts, *rest, draws):
        asked.append(draws)
        return real(model, prompts, *rest, draws=draws)

    monkeypatch.setattr(mt_bench, "generate", noted)
    done, found = answered(settings=content["settings"][:1])
    assert done.code == 0, done.err
    after = lines(found["mt_bench"][0])
    assert after[:2] == before and len(after) == 3
    # A question has draws of its own, whatever was answered before it.
    assert asked == [[83], [83]]
    # Answers of other settings are not mixed with these.
    done, _ = answered(settings=content["settings"][:1], max_new_tokens=5)
    assert done.code == 2 and "other settings" in done.err and done.err.count("\n") == 1


def test_answers_of_other_questions_and_vocabularies_are_not_taken(
    answered, content, decoder, tmp_path
):
    one = content["settings"][:1]
    answered(settings=one, first=1)
    path, asked = tmp_path / "question.jsonl", QUESTIONS[0] | {"turns": ["Another?"]}
    path.write_text(json.dumps(asked) + "\n", "utf-8")
    done, _ = answered(settings=one)
    assert done.code == 2 and "question 81 was another" in done.err and done.err.count("\n") == 1

    folder = tmp_path / "large"
    large = [{"name": "large", "rows": "fvt", "vocabulary": str(folder)}]
    for new in (["Ġquick"], ["Ġfoxes", "Ġand"]):
        tokenizer = BaseTokenizer.from_folder(decoder)
        shutil.rmtree(folder, ignore_errors=True)
        write_vocabulary(folder, tokenizer, new, "tiny", {})
        vocabulary = LargeVocabulary.load(folder, tokenizer)
        provider = FvtRows(SourceEmbeddings(*load_source(decoder)), tokenizer)
        vocabulary.rows_file.predict(vocabulary.row_tokens, provider, {})
        done, _ = answered(settings=large)
    assert done.code == 2 and "other settings" in done.err


def test_an_edited_answer_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    for line in ({"settings": {}}, {"settings": {}, "choices": [{"index": 0, "turns": ["a"]}]}):
        path.write_text(json.dumps(line | {"question_id": 1}) + "\n", "utf-8")
        with pytest.raises(DyntokError, match=r"a\.jsonl, line 1: edited"):
            Answers(path, "a", {})


def test_a_sweep_is_of_the_first_turn(answered, content):
    done, found = answered("--sweep", settings=content["settings"][:2], sweep=[0, 100], first=1)
    assert done.code == 0, done.err
    points = found["sweep"]
    assert [point["reduction"] for point in points] == [0, 100]
    assert points[0]["shorter_percent"] == 0 < points[1]["shorter_percent"]
    assert all(point["answers"] == 1 for point in points)
    assert lines(points[1])[0]["model_id"].endswith("-dynamic-100-turn1")
    done, _ = answered("--sweep", settings=content["settings"][:1])
    assert done.code == 2 and "no setting merges" in done.err


def test_distinct_stretches():
    assert distinct_share("a b c d e") == 1 and distinct_share("a b c") is None
    assert distinct_share("a b a b a b a b") == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": [{"name": "a/b"}]}, "letters, digits"),
        ({"settings": [{"name": "a", "reduction": None}]}, "longest prefixes"),
        ({"settings": [{"name": "a", "index": "folder"}]}, "an index is of"),
        ({"settings": [{"name": "a", "vocabulary": "no/folder"}]}, "no/folder"),
        ({"settings": [{"name": "a", "rows": "base", "reduction": 9}]}, "unmerged tokens only"),
        ({"settings": [{"name": "a", "rows": "base", "base_rows": "own"}]}, "nothing to base rows"),
        (
            {"settings": [{"name": "a", "rows": "base", "vocabulary": "predicted"}]},
            "base rows predict nothing",
        ),
        (
            {"settings": [{"name": "a", "reduction": None, "base_rows": "own", "vocabulary": "b"}]},
            "base_rows goes with a reduction",
        ),
        ({"settings": []}, "at least one"),
        ({"turns": 3}, "turns is 1 or 2"),
        ({"first": 0}, "first and batch_size are numbers from 1"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"questions": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_bad_config_is_one_line(answered, changes, words):
    done, _ = answered(**changes)
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize(
    "line", ['{"question_id": "x", "turns": ["a"]}', '{"question_id": 1, "turns": []}', "[]", ""]
)
def test_what_is_no_question_is_named(answered, tmp_path, line):
    path = tmp_path / "other.jsonl"
    path.write_text(line + "\n", "utf-8")
    done, _ = answered(questions=str(path))
    assert done.code == 2 and "other.jsonl" in done.err


def test_the_real_questions_are_read(shared):
    questions = mt_bench.read(str(shared / "data/mt_bench/question.jsonl"))
    assert len(questions) == 80 and all(len(question.turns) == 2 for question in questions)
    assert {question.category for question in questions} == set(TEMPERATURES)


@pytest.mark.parametrize("name", ["mt_bench_smollm2.yaml", "mt_bench_mistral.yaml"])
def test_config_files_are_valid_and_say_their_command(name, monkeypatch):
    for variable in ("MT_BENCH", "HYPERNET", "VOCABULARY", "INDEX"):
        monkeypatch.setenv(variable, variable.lower())
    path = ROOT / "configs" / "eval" / name
    run = read_config(MtBenchRun, path)
    names = ["original", "dynamic", "predicted", "large-exact", "large-scann", "large-prefix"]
    assert [setting.name for setting in run.settings] == names
    scann = run.settings[4]
    assert (scann.repetition_penalty, scann.min_p, scann.top_k) == (1.1, 0.05, 10)
    # Base rows cannot be merged, and longest prefixes are not.
    points = list(mt_bench.sweep_points(run))
    swept = dict.fromkeys(point.name.rsplit("-", 1)[0] for point in points)
    assert list(swept) == names[1:-1] and len(points) == len(swept) * len(run.sweep)
    assert f"--config configs/eval/{name}" in path.read_text("utf-8").split("model:")[0]
