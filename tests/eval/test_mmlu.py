"""Settings and sweeps of MMLU, on a tiny random model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dyntok_jax.config import read_config
from dyntok_jax.dynamic_model import load
from dyntok_jax.embed.hypernet_rows import CHUNK_SIZES, chunk_sizes
from dyntok_jax.scoring import score
from dyntok_jax.tasks import mmlu as task
from dyntok_jax.text.base_tokens import BaseTokenizer
from eval import mmlu
from eval.evenly_spaced import evenly_spaced
from eval.mmlu_config import MmluRun
from eval.mmlu_scoring import letter_ids, rehearse, vocabulary

ROOT = Path(__file__).parents[2]
WORDS = ["lighthouses", "children", "quick foxes", "Straßenbahn", "asubuhi", "brown dogs"]


def record(subject: str, i: int) -> dict[str, Any]:
    words = np.random.default_rng(i).permutation(WORDS)
    names = task.CHOICE_NAMES[0]
    text = f"Which of the {words[4]} are on this coast today?"
    return {
        "id": f"{subject}/dev/{i}",
        "instruction": text,
        "answer": "ABCD"[i % 4],
        **dict(zip(names, words[:4].tolist(), strict=True)),
    }


@pytest.fixture
def config(decoder, tmp_path) -> Path:
    """A run over two subjects, with a shot each."""
    asked = [record(subject, i) for subject in ("coast", "home") for i in range(4)]
    (tmp_path / "xx_val.json").write_text(json.dumps(asked), "utf-8")
    shots = [record("coast", 10), record("home", 11)]
    (tmp_path / "xx_dev.json").write_text(json.dumps(shots), "utf-8")
    content = {
        "model": str(decoder),
        "settings": [
            {"name": "original", "reduction": 0, "rows": "base"},
            {"name": "dynamic", "rows": "fvt"},
            {"name": "prefix", "rows": "base", "longest_prefix": "own"},
        ],
        "data": [
            {
                "language": "xx",
                "questions": {"files": str(tmp_path / "xx_val.json")},
                "shots": {"files": str(tmp_path / "xx_dev.json")},
            }
        ],
        "sweep": [0, 100],
        "sweep_first": 3,
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(content), "utf-8")  # JSON is YAML
    return path


@pytest.fixture
def found(config, tmp_path, command) -> dict[str, Any]:
    out = tmp_path / "found.json"
    run = command(mmlu.main, "--config", config, "--sweep", "--out", out)
    assert run.code == 0, run.err
    made = json.loads(out.read_text("utf-8"))
    for row in (*made["settings"], *made["likelihood"]):
        form = ".1f" if row in made["settings"] else ".3f"
        value = f"{row['average']['value']:{form}}"
        assert f"{row['name']} {value} {value} ({row['average']['interval'][0]:{form}}" in run.shown
    return made


def test_figures_are_those_of_scored_choices(found, decoder, tmp_path):
    """Letters and the answer's text, each scored as a choice after the whole prompt."""
    model = load(str(decoder), "fvt")
    questions = task.read(task.TaskSource(files=str(tmp_path / "xx_val.json")))
    shots = task.by_subject(task.read(task.TaskSource(files=str(tmp_path / "xx_dev.json"))))
    spelled = model.tokenizer.spelled()
    # Letters with a space, if these are tokens of this vocabulary, or without.
    space = " " if spelled[letter_ids(model.tokenizer)[0]] != "A" else ""
    for row, bits, reduction in zip(found["settings"], found["likelihood"], (0, 100), strict=False):
        right = nats = size = 0
        for question in questions:
            answer = f" {question.choices[question.answer]}"
            text = task.prompt(question, shots[question.subject])
            items = [(text, [space + letter for letter in "ABCD"]), (text, [answer])]
            letters, whole = score(model, items, reduction, kept_words=0)
            right += int(np.argmax(letters.scores)) == question.answer
            nats -= whole.scores[0]
            size += len(answer.encode())
        assert row["average"]["value"] == pytest.approx(100 * right / len(questions))
        assert bits["average"]["value"] == pytest.approx(nats / np.log(2) / size, rel=1e-4)


def test_settings_differ_as_they_should(found):
    original, dynamic, prefix = found["settings"]
    assert found["examples"] == {"xx": 8} and found["max_length"] == 1024
    assert original["average"]["shorter_percent"] == 0
    assert dynamic["average"]["shorter_percent"] > 30
    assert abs(prefix["average"]["shorter_percent"]) < 30
    language = original["languages"]["xx"]
    assert language["truncated_tokens"] == 0 and language["missing_shots"] == 8 * 4
    for row in found["likelihood"]:
        low, high = row["average"]["interval"]
        assert low <= row["average"]["value"] <= high
    (curve,) = found["sweep"]
    assert curve["name"] == "dynamic"
    points = {point["reduction"]: point["average"] for point in curve["points"]}
    assert points[0]["shorter_percent"] == 0 < points[100]["shorter_percent"]
    lines = Path(found["likelihood_plot"]).with_suffix(".csv").read_text("utf-8").splitlines()
    bits = [point["average"]["value"] for point in found["likelihood_sweep"][0]["points"]]
    rows = [line for line in csv.DictReader(lines) if line["language"] == "average"]
    assert [line["bits per byte"] for line in rows] == [f"{value:.3f}" for value in bits]


def test_long_prompts_lose_their_beginning(config, tmp_path, command):
    out = tmp_path / "found.json"
    arguments = "--config", config, "--out", out
    content = json.loads(config.read_text("utf-8"))
    content["data"][0]["first"] = 2
    config.write_text(json.dumps(content), "utf-8")
    run = command(mmlu.main, *arguments, "max_length=60")
    assert run.code == 0, run.err
    language = json.loads(out.read_text("utf-8"))["settings"][0]["languages"]["xx"]
    assert language["truncated_prompts"] == 2
    # With the answers, which differ in length, prompts fill the whole.
    assert 80 <= language["tokens_static"] < 120 and language["truncated_tokens"] > 100
    run = command(mmlu.main, *arguments, "max_length=3")
    assert run.code == 2 and "leaves no room" in run.err


def test_questions_are_spread_evenly():
    assert evenly_spaced(10, 3) == [0, 3, 6] and evenly_spaced(3, 5) == [0, 1, 2]
    assert evenly_spaced(2, None) == [0, 1]


def test_longest_prefixes_of_the_models_own_vocabulary(folders):
    tokenizer = BaseTokenizer.from_folder(folders["byte_bpe"])
    own = vocabulary("own", tokenizer)
    assert len(own.tokens) == tokenizer.vocab_size == own.base_size


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("settings", [{"name": "a", "rows": "base"}], "base rows are of base tokens"),
        ("settings", [{"name": "a", "rows": "fvt", "output": "predicted"}], "no output rows"),
        ("settings", [{"name": "a", "longest_prefix": "own", "reduction": 50}], "of merging"),
        ("settings", [{"name": "a", "longest_prefix": "no/folder", "rows": "fvt"}], "no/folder"),
        (
            "settings",
            [{"name": "a", "reduction": 0, "rows": "base", "base_rows": "predicted"}],
            "base_rows: predicted is nothing to base rows",
        ),
        ("settings", [], "at least one"),
        ("data", [], "at least one"),
        ("sweep", [101], "101"),
        ("batch_size", 0, "from 1"),
        ("sweep_first", 0, "from 1"),
        ("colour", 1, "colour"),
    ],
)
def test_a_bad_config_is_one_line(config, tmp_path, command, key, value, words):
    content = json.loads(config.read_text("utf-8")) | {key: value}
    config.write_text(json.dumps(content), "utf-8")
    run = command(mmlu.main, "--config", config, "--out", tmp_path / "found.json")
    assert run.code == 2 and words in run.err and run.err.count("\n") == 1


def test_a_run_without_sweeps_leaves_none_of_an_older_one(config, tmp_path, command):
    out = tmp_path / "found.json"
    out.write_text(json.dumps({"sweep": [{}], "commit": ""}), "utf-8")
    names = [f"found{part}{suffix}" for part in ("", "_bits") for suffix in (".csv", ".svg")]
    for name in names:
        (tmp_path / name).write_text("curve," if name.endswith(".csv") else "<?xml", "utf-8")
    settings = "settings=[{name: a, rows: fvt}]"
    assert command(mmlu.main, "--config", config, "--out", out, settings).code == 0
    assert json.loads(out.read_text("utf-8"))["sweep"] == []
    assert not any((tmp_path / name).exists() for name in names)


@pytest.mark.parametrize("override", ["sweep=[]", "settings=[{name: a, reduction: 0, rows: base}]"])
def test_a_sweep_of_nothing_is_refused_before_the_work(config, tmp_path, command, override):
    out = tmp_path / "found.json"
    run = command(mmlu.main, "--config", config, "--sweep", "--out", out, override)
    assert run.code == 2 and "no setting merges, or sweep is empty" in run.err
    assert not out.exists()


@pytest.mark.parametrize("companion", ["found.svg", "found_bits.csv"])
def test_a_sweep_that_cannot_be_written_ends_before_it_begins(
    config, tmp_path, command, monkeypatch, companion
):
    (tmp_path / companion).mkdir()
    monkeypatch.setattr(mmlu.Evaluation, "_outcomes", lambda *_: pytest.fail("it was measured"))
    out = tmp_path / "found.json"
    run = command(mmlu.main, "--config", config, "--sweep", "--out", out)
    assert run.code == 2 and companion in run.err and run.err.count("\n") == 1
    assert not out.exists()


def test_a_subject_without_shots_is_named(config, tmp_path, command):
    (tmp_path / "xx_dev.json").write_text(json.dumps([record("coast", 1)]), "utf-8")
    run = command(mmlu.main, "--config", config, "--out", tmp_path / "found.json")
    assert run.code == 2 and "no question of 'home'" in run.err


@pytest.mark.parametrize("name", ["mmlu_smollm2.yaml", "mmlu_mistral.yaml"])
def test_config_files_are_valid_and_say_their_command(name, monkeypatch):
    for variable in ("MMLU", "M_MMLU", "HYPERNET", "VOCABULARY"):
        monkeypatch.setenv(variable, variable.lower())
    path = ROOT / "configs" / "eval" / name
    run = read_config(MmluRun, path)
    assert [setting.name[:3] for setting in run.settings] == [f"({i})" for i in range(1, 8)]
    assert run.settings[0].rows == "base" and run.settings[0].reduction == 0
    head = path.read_text("utf-8").split("model:")[0]
    assert f"--config configs/eval/{name}" in head.replace("\\\n#     ", "")
    assert all(line.startswith("#") for line in head.splitlines())


def test_rows_are_rehearsed_in_chunks_of_every_size():
    """What is in the cache already is not predicted again."""
    known: set[str] = set()
    ran: list[int] = []

    def lookup(tokens: list[str]) -> None:
        ran.extend(chunk_sizes(len({*tokens} - known)))
        known.update(tokens)

    merged = SimpleNamespace(sequences=[SimpleNamespace(tokens=[str(i) for i in range(3000)])])
    model: Any = SimpleNamespace(
        rows="default", merge=lambda *_, **__: merged, cache=SimpleNamespace(lookup=lookup)
    )
    rehearse(model, [])
    assert ran == [*CHUNK_SIZES]
