"""Questions of every form, and the prompt."""

from __future__ import annotations

import json

import pytest

from dyntok_jax.tasks import mmlu
from dyntok_jax.tasks.mmlu import Question
from dyntok_jax.tasks.source import TaskSource
from dyntok_jax.types import DyntokError

HEAD = "question,choice0,choice1,choice2,choice3,answer\n"
CAPITAL = Question("world facts", "Capital of France?", ("Rome", "Paris", "Bern", "Oslo"), 1)


def test_the_prompt_is_the_papers():
    shot = Question("world facts", "2 + 2?", ("1", "2", "3", "4"), 3)
    begun = f"{mmlu.INFORMATION}\nA map.\nWhich river?"
    asked = Question("world facts", begun, ("Rhine", "Elbe", "Oder", "Main"), 0)
    assert mmlu.prompt(asked, [CAPITAL, shot]) == (
        "The following are multiple choice questions (with answers) about world facts.\n\n"
        "This question refers to the following information.\nCapital of France?\n"
        "A. Rome\nB. Paris\nC. Bern\nD. Oslo\nAnswer: B\n\n"
        "This question refers to the following information.\n2 + 2?\n"
        "A. 1\nB. 2\nC. 3\nD. 4\nAnswer: D\n\n"
        "This question refers to the following information.\nA map.\nWhich river?\n"
        "A. Rhine\nB. Elbe\nC. Oder\nD. Main\nAnswer:"
    )


def test_shots_are_the_first_of_their_subject():
    questions = [Question("ab"[i % 2], str(i), ("", "", "", ""), 0) for i in range(14)]
    shots = mmlu.by_subject(questions)
    assert [shot.text for shot in shots["a"]] == ["0", "2", "4", "6", "8"]
    assert {question.subject for question in shots["b"]} == {"b"}


@pytest.mark.parametrize("head", [HEAD, ""])
def test_a_folder_of_csv_with_headers_or_without(tmp_path, head):
    answer = "1" if head else "B"
    text = f'{head}"Capital of\nFrance, ""please""?",Rome,Paris,Bern,"O, slo",{answer}\n'
    (tmp_path / "world_facts_test.csv").write_text(text, "utf-8")
    (tmp_path / "algebra_test.csv").write_text(head + "1+1?,1,2,3,4,1\n", "utf-8")
    first, second = mmlu.read(TaskSource(files=str(tmp_path)))
    assert first.subject == "algebra" and first.choices == ("1", "2", "3", "4")
    text = 'Capital of\nFrance, "please"?'
    assert second == Question("world facts", text, ("Rome", "Paris", "Bern", "O, slo"), 1)


FORMS = {
    "m_mmlu": {"instruction": "Capital of France?", "id": "world_facts/dev/0", "answer": "B"}
    | dict(zip(mmlu.CHOICE_NAMES[0], CAPITAL.choices, strict=True)),
    "Global-MMLU": {"question": "Capital of France?", "subject": "world_facts", "answer": "B"}
    | dict(zip(mmlu.CHOICE_NAMES[0], CAPITAL.choices, strict=True)),
    "MMLU": {"question": "Capital of France?", "subject": "world_facts", "answer": 1}
    | {"choices": list(CAPITAL.choices)},
}


@pytest.mark.parametrize("form", FORMS)
def test_records_by_any_names(tmp_path, form):
    (tmp_path / "x.json").write_text(json.dumps([FORMS[form]]), "utf-8")
    (tmp_path / "x.jsonl").write_text(json.dumps(FORMS[form]) + "\n", "utf-8")
    for name in ("x.json", "x.jsonl"):
        assert mmlu.read(TaskSource(files=str(tmp_path / name))) == [CAPITAL]


def test_a_dataset_by_name(monkeypatch):
    """As cais/mmlu has it: the answer is a class label."""
    datasets = pytest.importorskip("datasets")
    text = datasets.Value("string")
    features = {"question": text, "subject": text, "choices": datasets.Sequence(text)}
    features["answer"] = datasets.ClassLabel(names=list("ABCD"))
    found = datasets.Dataset.from_list([FORMS["MMLU"]], features=datasets.Features(features))
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: asked.append((a, k)) or found)
    source = TaskSource(dataset="cais/mmlu", config_name="all", split="test")
    assert mmlu.read(source) == [CAPITAL]
    assert asked == [(("cais/mmlu", "all"), {"split": "test", "revision": None})]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x_test.csv", HEAD + "a,b,c,d,e\n", "line 2: 5 columns"),
        ("x_test.csv", HEAD + "a,b,c,d,e,4\n", "line 2: answer '4'; valid are A to D"),
        ("x_test.csv", HEAD, "an empty split"),
        ("x.json", json.dumps([FORMS["MMLU"] | {"answer": True}]), "record 1: answer True"),
        ("x.json", "{}", "a list of records"),
        ("x.json", "[{", "not JSON"),
        ("x.json", json.dumps([FORMS["MMLU"] | {"choices": ["a"]}]), "record 1: 1 choices"),
        ("x.json", json.dumps([FORMS["MMLU"] | {"choices": 4}]), "choices 4; valid is a list"),
        ("x.jsonl", '{"a": ' + "[" * 100_000, "line 1: not JSON"),
        ("x.json", json.dumps([FORMS["m_mmlu"] | {"option_c": None}]), "record 1: a choice: None"),
        ("x.jsonl", '{"answer": "A", "id": "x/1"}\n', "line 1: no field 'question'"),
        ("x.jsonl", '{"answer": "A"}\n', "line 1: no field 'subject'"),
        ("x.txt", "a", "valid are a folder of .csv"),
    ],
)
def test_what_is_no_question_is_named_with_its_line(tmp_path, name, text, words):
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(DyntokError) as error:
        mmlu.read(TaskSource(files=str(tmp_path / name)))
    assert words in str(error.value) and name in str(error.value)
    with pytest.raises(DyntokError, match=r"no \.csv in it"):
        (tmp_path / "empty").mkdir()
        mmlu.read(TaskSource(files=str(tmp_path / "empty")))


def test_the_real_files_are_read(shared):
    english = mmlu.read(TaskSource(files=str(shared / "data/mmlu_en/dev")))
    shots = mmlu.by_subject(english)
    assert len(english) == 285 and len(shots) == 57
    assert all(len(part) == mmlu.SHOTS for part in shots.values())
    german = mmlu.read(TaskSource(files=str(shared / "data/m_mmlu/de_val.json")))
    assert len(german) == 1449 and {question.subject for question in german} <= set(shots)
