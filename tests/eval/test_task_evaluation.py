"""Settings and sweeps of task adapters, on tiny random models."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from dyntok_jax.adapter_files import read_adapter, write_adapter
from dyntok_jax.dynamic_model import DynamicModel, load
from dyntok_jax.embed.hypernet import HypernetConfig, abstract_hypernet
from dyntok_jax.embed.providers import identity
from dyntok_jax.embed.shipped import write_mark
from dyntok_jax.embed.source import SourceEmbeddings
from dyntok_jax.embed.zett import save_hypernet
from dyntok_jax.lora import Adapter, adapted_params, base_hash, headed
from dyntok_jax.models.encoder import Encoder
from dyntok_jax.models.heads import SequenceClassifier, TokenClassifier
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.lora import LoraConfig, abstract_lora, targeted
from dyntok_jax.models.weights import load_model, model_module
from dyntok_jax.tasks import uner as uner_task
from dyntok_jax.tasks import xnli as xnli_task
from dyntok_jax.tasks.registry import TASKS
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import DyntokError
from eval import adapters, uner, xnli
from eval.adapters import Evaluation
from eval.task_config import Setting, TaskRun

WORDS = ["The", "quick", "Großvater", "lighthouses", "Geschichten", "\u200b", "coast", "Kindern"]
XNLI = "\n".join(f"{a} {b} {c}\t{b} {a}\t{label}" for a, b, c, label in [
    (*np.random.default_rng(i).choice(WORDS, 3), xnli_task.LABELS[i % 3]) for i in range(9)
])  # fmt: skip


def adapter(
    encoder: Path, folder: Path, kind, labels, seed: int, task: str, said: Any = None
) -> Path:
    """A random adapter with a random head, and what it says of its training."""
    model = load_model(encoder)
    config = LoraConfig(2, 4.0, 0.0, ("query", "value"))
    whole = headed(model.architecture, kind, labels)
    abstract = abstract_params(model_module(model.architecture))
    paths = [*targeted(whole, config.targets).values()]
    random = np.random.default_rng(seed)

    def drawn(shapes: Any) -> Any:
        return jax.tree.map(lambda leaf: random.normal(0.3, 1, leaf.shape), meta.unbox(shapes))

    lora = drawn(abstract_lora(abstract, paths, config.rank))
    head = (SequenceClassifier if kind == "sequence" else TokenClassifier)(len(labels))
    params = drawn(abstract_params(head, np.zeros((1, 1, model.config.width), np.float32)))
    made = Adapter(
        config, lora, params, kind, tuple(labels), base_hash(model), {"task": task} | (said or {})
    )
    write_adapter(folder, made, model.architecture, "tiny")
    return folder


def hypernetwork(encoder: Path, folder: Path, languages: int = 0) -> Path:
    """A random hypernetwork for the tiny encoder, that reads three pieces of a token."""
    vocabulary, width = load_model(encoder).source.input.shape
    config = HypernetConfig(
        width=width, hidden=24, feed_forward=16, layers=1, heads=2, surface_length=3,
        vocab_size=vocabulary, extra_tokens=2, pad_id=1, predict_bias=False, native=True,
        languages=languages,
    )  # fmt: skip
    random = np.random.default_rng(0)
    shapes = meta.unbox(abstract_hypernet(config))
    save_hypernet(folder, config, jax.tree.map(lambda s: random.normal(0, 0.3, s.shape), shapes))
    return folder


def changed(path: Path, **fields: Any) -> dict[str, Any]:
    """Writes a config with other fields."""
    config = json.loads(path.read_text("utf-8")) | fields
    path.write_text(json.dumps(config), "utf-8")
    return config


def one_setting(folder: Path, rows: str = "fvt", **fields: Any) -> dict[str, Any]:
    """Fields of a config with the last of its settings only."""
    setting = {"name": "word", "adapter": "joint", "rows": rows} | fields
    return {"adapters": {"joint": [str(folder / "a2")]}, "settings": [setting]}


@pytest.fixture
def xnli_run(encoder, tmp_path) -> Path:
    """A config of XNLI with two seeds of one adapter and one of another."""
    for seed in range(3):
        adapter(encoder, tmp_path / f"a{seed}", "sequence", xnli_task.LABELS, seed, "xnli")
    (tmp_path / "xx.tsv").write_text(XNLI + "\n", "utf-8")
    config = {
        "model": str(encoder),
        "adapters": {
            "task": [str(tmp_path / "a0"), str(tmp_path / "a1")],
            "joint": [str(tmp_path / "a2")],
        },
        "settings": [
            {"name": "original", "adapter": "task", "reduction": 0, "rows": "base"},
            {"name": "word", "adapter": "task", "rows": "fvt"},
            {"name": "joint", "adapter": "joint", "rows": "fvt", "control": "word"},
        ],
        "data": [{"files": str(tmp_path / "xx.tsv"), "language": "xx"}],
        "sweep": [0, 50, 100],
        "batch_size": 4,
        # More than the model reads.
        "max_length": 128,
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(config), "utf-8")  # JSON is YAML
    return path


def test_settings_and_sweeps_agree(xnli_run, tmp_path, command):
    out = tmp_path / "found.json"
    run = command(xnli.main, "--config", xnli_run, "--sweep", "--out", out)
    assert run.code == 0, run.err
    found = json.loads(out.read_text("utf-8"))
    rows = {row["name"]: row for row in found["settings"]}
    assert found["max_length"] == 40
    assert rows["original"]["languages"]["xx"]["shorter_percent"] == 0
    assert rows["word"]["average"]["shorter_percent"] > 10
    assert len(rows["word"]["average"]["by_seed"]) == 2
    assert rows["joint"]["average"]["spread"] is None
    for row in rows.values():
        average = row["average"]
        assert average["value"] == pytest.approx(np.mean(average["by_seed"]))
        low, high = average["interval"]
        assert low <= average["value"] <= high
        assert average["delta"] == pytest.approx(
            average["value"] - rows["original"]["average"]["value"]
        )
        mean = f"{average['value']:.1f}"
        assert f" {row['name']} {len(average['by_seed'])} {mean} {mean}" in run.shown
    assert rows["original"]["average"]["delta_interval"] == [0, 0]
    joint, word = rows["joint"]["average"], rows["word"]["average"]
    assert joint["control_delta"] == pytest.approx(joint["value"] - word["value"])
    # The sweep at either end is what the settings found, of all seeds.
    curve = next(c for c in found["sweep"] if c["name"] == "word")
    assert [point["reduction"] for point in curve["points"]] == [0, 50, 100]
    averages = [point["average"] for point in curve["points"]]
    for average, name in ((averages[0], "original"), (averages[2], "word")):
        assert average["by_seed"] == rows[name]["average"]["by_seed"]
        assert average["value"] == rows[name]["average"]["value"]
    lines = list(csv.DictReader(out.with_suffix(".csv").read_text("utf-8").splitlines()))
    assert len(lines) == 2 * 3 * 2 and "control" not in lines[0]
    assert lines[0]["accuracy"] == f"{averages[0]['value']:.3f}"
    assert lines[0]["spread"] == f"{rows['original']['average']['spread']:.3f}"
    assert {line["spread"] for line in lines if line["curve"] == "joint"} == {""}
    assert "<svg" in out.with_suffix(".svg").read_text("utf-8")


def test_the_processors_time_is_of_this_work_alone(xnli_run, tmp_path, command, monkeypatch):
    """Waiting, as beside other work, is in the wall time only."""
    classify = adapters.classify

    def waiting(*arguments: Any) -> Any:
        time.sleep(1)
        return classify(*arguments)

    monkeypatch.setattr(adapters, "classify", waiting)
    out = tmp_path / "found.json"
    changed(xnli_run, **one_setting(tmp_path))
    arguments = "--config", xnli_run, "--sweep", "--out", out, "sweep=[100]"
    assert command(xnli.main, *arguments).code == 0
    found = json.loads(out.read_text("utf-8"))
    point = found["sweep"][0]["points"][0]["average"]
    average, _ = csv.DictReader(out.with_suffix(".csv").read_text("utf-8").splitlines())
    assert average["processor_seconds"] == f"{point['processor_seconds']:.3f}"
    for row in (found["settings"][0]["average"], point):
        assert row["seconds"] > 1 and 0 < row["processor_seconds"] < 0.9


def test_files_take_the_place_of_the_data(xnli_run, tmp_path, command):
    # Beyond 16 bits, an end of a line in YAML, and a byte that is not UTF-8.
    name = "😀\u2028\udcff.tsv"
    (tmp_path / name).write_text("The quick coast\tThe coast\tentailment\n", "utf-8")
    # What the file names in their place is not asked for.
    changed(xnli_run, data=[{"files": "${NOWHERE}/dev.tsv", "language": "xx"}])
    out, files = tmp_path / "found.json", f"yy={tmp_path / name}"
    arguments = "--config", xnli_run, "--files", files, "--out", out
    assert command(xnli.main, *arguments).code == 0
    found = json.loads(out.read_text("utf-8"))
    assert found["examples"] == {"yy": 1} and found["average_of"] == ["yy"]
    assert name in found["command"]
    assert found["settings"][0]["average"]["value"] in (0, 50, 100)


def test_overrides_stand_anywhere(xnli_run, tmp_path, command, monkeypatch):
    runs = []

    def measure(evaluation, sweep):
        runs.append(evaluation.run)
        raise DyntokError("this is all")

    monkeypatch.setattr(Evaluation, "measure", measure)
    out, file = tmp_path / "found.json", tmp_path / "xx.tsv"
    begin = ["--config", xnli_run, "batch_size=8", "--out", out]
    for files, languages in (
        ([], ["xx"]),
        (["--files", f"yy={file}", f"zz={file}", "average=[zz]"], ["yy", "zz"]),
    ):
        end = [*files, "max_length=20", "compute.mesh.data=1"]
        assert "this is all" in command(xnli.main, *begin, *end).err
        run = runs.pop()
        assert (run.batch_size, run.max_length, run.compute.mesh.data) == (8, 20, 1)
        assert [source.language for source in run.data] == languages
        assert run.average == languages[1:]
    assert "zz is not in data" in command(xnli.main, *begin, "average=[zz]", "--files", file).err
    assert "`siz` are not valid" in command(xnli.main, *begin, "--files", file, "compute.siz=1").err
    assert "batch_size=4 is no file" in command(xnli.main, *begin, "--files", "batch_size=4").err


def test_predictions_are_those_of_the_merged_model(encoder, tmp_path):
    """The first token's state of the merged network, through the head by hand."""
    folder = adapter(encoder, tmp_path / "a", "sequence", xnli_task.LABELS, 5, "xnli")

    (tmp_path / "xx.tsv").write_text(XNLI + "\n", "utf-8")
    source = xnli_task.TaskSource(files=str(tmp_path / "xx.tsv"), language="xx", first=4)
    run = TaskRun(str(encoder), {"a": [str(folder)]}, [Setting("s", "a", 0, "base")], [source])
    found = Evaluation(TASKS["xnli"], run).measure(False)

    loaded = load_model(encoder)
    params = adapted_params(loaded, read_adapter(folder, loaded.architecture))
    head = params["head"]
    right = 0

    tokenizer = load(str(encoder), "fvt").tokenizer
    for pair in xnli_task.read(source):
        (base,) = xnli_task.layout(tokenizer, [pair])
        rows = jnp.asarray(loaded.source.input)[base.ids][None]
        config: Any = loaded.config
        module = Encoder(config)
        mask = jnp.ones((1, len(base.ids)), bool)
        hidden: Any = module.apply({"params": params["model"]}, rows, mask)
        state = hidden[0, 0]
        inner = np.tanh(state @ head["dense"]["kernel"] + head["dense"]["bias"])
        scores = inner @ head["classes"]["kernel"] + head["classes"]["bias"]
        right += int(np.argmax(scores)) == pair.label
    assert found["settings"][0]["average"]["value"] == pytest.approx(100 * right / 4)


def test_entities_count_unread_words(encoder, tmp_path, command):
    folder = adapter(encoder, tmp_path / "a", "token", uner_task.LABELS, 1, "uner")
    known = [word.replace("\u200b", "") for word in WORDS]
    words = [(word, tag) for word in known for tag in ("B-PER", "O", "B-OTH")][:18]
    text = "".join(f"{i}\t{word}\t{tag}\n" for i, (word, tag) in enumerate(words, 1))
    (tmp_path / "xx.iob2").write_text(f"# text\n{text}\n", "utf-8")
    config = {
        "model": str(encoder),
        "adapters": {"a": [str(folder)]},
        "settings": [
            {"name": "original", "adapter": "a", "reduction": 0, "rows": "base"},
            {"name": "word", "adapter": "a", "rows": "fvt"},
        ],
        "data": [{"files": str(tmp_path / "xx.iob2"), "language": "xx"}],
        "max_length": 30,
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config), "utf-8")
    out = tmp_path / "found.json"
    arguments = "--config", tmp_path / "run.yaml", "--out", out
    run = command(uner.main, *arguments)
    assert run.code == 0, run.err
    rows = json.loads(out.read_text("utf-8"))["settings"]
    for row in rows:
        language = row["languages"]["xx"]
        assert language["truncated_tokens"] > 0 and language["mapped_tags"] == 6, language
        # Those cut off, and the three empty ones.
        assert language["unread_words"] >= 3
    assert rows[0]["languages"]["xx"]["unread_words"] == rows[1]["languages"]["xx"]["unread_words"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("average", ["zz"], "zz is not in data"),
        ("average", ["xx", "xx"], "average: xx is there twice"),
        ("data", [{"files": "a.tsv", "language": "xx"}] * 2, "language xx is there twice"),
        ("adapters", {"task": ["a", "b", "./a/"], "joint": ["a"]}, "a is there twice"),
        ("sweep", [120], "120"),
        (
            "settings",
            [{"name": "s", "adapter": "task", "reduction": 0, "rows": "base", "base_rows": "own"}],
            "base_rows: own is nothing to base rows",
        ),
        (
            "settings",
            [{"name": n, "adapter": n, "control": "jiont"} for n in ("task", "joint")],
            "setting 'task': no control 'jiont' (did you mean 'joint'?)",
        ),
        ("adapters", {"joint": ["x"]}, "no adapter 'task'"),
        (
            "adapters",
            {n: ["x"] for n in ("task", "joint", "old")},
            "adapters: 'old' is in no setting",
        ),
        ("adapters", {"task": ["nowhere"], "joint": ["nowhere"]}, "nowhere"),
        ("batch_size", 0, "from 1"),
        ("sweep_examples", 0, "from 1"),
        ("colour", 1, "colour"),
    ],
)
def test_a_bad_config_is_one_line(xnli_run, tmp_path, command, key, value, words):
    config = json.loads(xnli_run.read_text("utf-8")) | {key: value}
    xnli_run.write_text(json.dumps(config), "utf-8")
    out = tmp_path / "found.json"
    run = command(xnli.main, "--config", xnli_run, "--out", out)
    assert run.code == 2 and words in run.err and run.err.count("\n") == 1
    assert not out.exists()


def test_an_adapter_of_another_task_or_base_is_refused(
    encoder, xnli_run, tmp_path, command, monkeypatch
):
    folder = adapter(encoder, tmp_path / "ner", "token", uner_task.LABELS, 1, "uner")
    config = json.loads(xnli_run.read_text("utf-8"))
    config["adapters"]["joint"] = [str(folder)]
    xnli_run.write_text(json.dumps(config), "utf-8")
    arguments = "--config", xnli_run, "--out", tmp_path / "found.json"
    run = command(xnli.main, *arguments)
    assert run.code == 2 and "an adapter for uner" in run.err
    config["adapters"]["joint"] = [str(tmp_path / "a2")]
    xnli_run.write_text(json.dumps(config), "utf-8")
    monkeypatch.setattr("dyntok_jax.lora.base_hash", lambda model: "f" * 64)
    run = command(xnli.main, *arguments)
    assert run.code == 2 and "another model" in run.err


def test_a_language_the_hypernetwork_does_not_know(encoder, xnli_run, tmp_path, command):
    config = json.loads(xnli_run.read_text("utf-8"))
    config["hypernet_languages"] = ["de", "en"]
    tables = {
        "default": "the rows of no setting have a table of languages",
        str(hypernetwork(encoder, tmp_path / "hypernet", languages=2)): (
            "xx: xx is no language of the hypernetwork"
        ),
    }
    for rows, message in tables.items():
        config["settings"][1]["rows"] = rows
        xnli_run.write_text(json.dumps(config), "utf-8")
        arguments = "--config", xnli_run, "--out", tmp_path / "found.json"
        run = command(xnli.main, *arguments)
        assert run.code == 2 and message in run.err


def test_languages_are_those_of_the_hypernetworks_table(
    encoder, xnli_run, tmp_path, command, monkeypatch
):
    folder = hypernetwork(encoder, tmp_path / "hypernet", languages=2)
    data = [{"files": str(tmp_path / "xx.tsv"), "language": "en_xx", "first": 2}]
    changed(xnli_run, **one_setting(tmp_path, str(folder)), data=data)
    asked, with_rows = set(), DynamicModel.with_rows

    def watched(model: DynamicModel, rows: str, language: Any, base_rows: Any) -> DynamicModel:
        asked.add(language)
        return with_rows(model, rows, language, base_rows)

    monkeypatch.setattr(DynamicModel, "with_rows", watched)

    def said(languages: list[str]) -> str:
        changed(xnli_run, hypernet_languages=languages)
        return command(xnli.main, "--config", xnli_run, "--out", tmp_path / "found.json").err

    assert "1 names; the table of" in said(["en"]) and "has 2 rows" in said(["en"])
    assert "error" not in said(["de", "en"]) and asked == {1}
    asked.clear()
    source = SourceEmbeddings(*load_model(encoder).source)
    write_mark(folder, "tiny", source, BaseTokenizer.from_folder(encoder), ["en", "de"])
    assert "de, en; " in (found := said(["de", "en"])) and "names en, de; leave it out" in found
    assert not asked
    for languages in ([], ["en", "de"]):
        assert "error" not in said(languages) and asked == {0}


def test_rows_that_an_adapter_was_not_trained_with_are_warned_of(
    encoder, xnli_run, tmp_path, command, caplog
):
    """Those of a folder, whose hypernetwork may be another one by now; base rows are no such."""
    hypernet = hypernetwork(encoder, tmp_path / "hypernet")
    lists = {}
    for seed, provider in enumerate([identity(str(hypernet)), "hypernet 0123", "base", "fvt"]):
        folder, said = tmp_path / f"s{seed}", {"seed": seed, "row_provider": provider}
        adapter(encoder, folder, "sequence", xnli_task.LABELS, seed, "xnli", said)
        lists[provider] = [str(folder)]
    settings = [{"name": n, "adapter": n, "rows": str(hypernet)} for n in lists]
    changed(xnli_run, adapters=lists, settings=settings)
    out = tmp_path / "found.json"
    assert command(xnli.main, "--config", xnli_run, "--out", out).code == 0
    said = [r.getMessage() for r in caplog.records if "was trained with" in r.getMessage()]
    here = identity(str(hypernet))
    assert [line.partition(" was ")[2] for line in said] == [
        f"trained with rows of {there}; these are of {here}" for there in ("hypernet 0123", "fvt")
    ]
    found = json.loads(out.read_text("utf-8"))
    assert found["row_providers"] == {str(hypernet): here}
    assert found["adapters"]["base"][0]["row_provider"] == "base"


@pytest.mark.parametrize("fault", ["no setting merges", "sweep is empty", ".csv", ".svg"])
def test_a_sweep_that_cannot_be_written_ends_before_it_begins(
    xnli_run, tmp_path, command, monkeypatch, fault
):
    out = tmp_path / "found.json"
    out.write_text('{"commit": "old"}', "utf-8")
    if fault.startswith("."):
        out.with_suffix(fault).mkdir()
    elif fault == "sweep is empty":
        changed(xnli_run, sweep=[])
    else:
        changed(xnli_run, **one_setting(tmp_path, "base", reduction=0))
    monkeypatch.setattr(Evaluation, "_outcomes", lambda *_: pytest.fail("it was measured"))
    run = command(xnli.main, "--config", xnli_run, "--sweep", "--out", out)
    assert run.code == 2 and fault in run.err and run.err.count("\n") == 1
    assert out.read_text("utf-8") == '{"commit": "old"}'


def test_a_run_without_sweeps_leaves_none_of_an_older_one(xnli_run, tmp_path, command):
    out = tmp_path / "found.json"
    files = [out.with_suffix(".csv"), out.with_suffix(".svg")]
    changed(xnli_run, **one_setting(tmp_path))
    arguments = "--config", xnli_run, "--out", out
    for path in files:
        path.write_text("of something else", "utf-8")
    assert command(xnli.main, *arguments).code == 0
    assert all(path.exists() for path in files)
    run = command(xnli.main, *arguments, "--sweep")
    assert run.code == 2 and "found.csv: is there and no evaluation wrote it" in run.err
    for path in files:
        path.unlink()
    assert command(xnli.main, *arguments, "--sweep").code == 0 and all(map(Path.exists, files))
    drawn = files[1].read_bytes()
    files[1].write_text("of something else", "utf-8")
    assert command(xnli.main, *arguments).code == 2
    assert out.exists() and all(map(Path.exists, files))
    files[1].write_bytes(drawn)
    assert command(xnli.main, *arguments).code == 0
    assert json.loads(out.read_text("utf-8"))["sweep"] == []
    assert not any(path.exists() for path in files)


def test_a_run_says_how_its_adapters_were_trained(encoder, xnli_run, tmp_path, command):
    said = {
        "rows": "fvt",
        "row_provider": "fvt",
        "start": None,
        "tokenization": {"mode": "fixed"},
        "epochs": 3,
        "steps": 40,
    }
    folders = [
        adapter(
            encoder, tmp_path / f"s{i}", "sequence", xnli_task.LABELS, i, "xnli", said | {"seed": i}
        )
        for i in (7, 8)
    ]
    lists = {"task": [*map(str, folders)], "joint": [str(folders[1])]}
    changed(xnli_run, adapters=lists)
    out = tmp_path / "found.json"
    arguments = "--config", xnli_run, "--out", out
    assert command(xnli.main, *arguments).code == 0
    found = json.loads(out.read_text("utf-8"))
    base = base_hash(load_model(encoder))
    (joint,) = found["adapters"]["joint"]
    assert joint == {"folder": str(folders[1]), "base": base, "seed": 8, **said}
    assert [one["seed"] for one in found["adapters"]["task"]] == [7, 8]
    rows = {row["name"]: row["average"] for row in found["settings"]}
    # One adapter of seed 8 against the first setting's with that seed.
    wanted = rows["joint"]["value"] - rows["original"]["by_seed"][1]
    assert rows["joint"]["delta"] == pytest.approx(wanted) and rows["joint"]["delta_seeds"] == [8]

    copy = adapter(encoder, tmp_path / "c", "sequence", xnli_task.LABELS, 1, "xnli", {"seed": 7})
    changed(xnli_run, adapters=lists | {"task": [*lists["task"], str(copy)]})
    run = command(xnli.main, *arguments)
    assert run.code == 2 and "adapters, 'task': two of seed 7" in run.err


def test_rows_of_the_first_pieces_are_counted(encoder, xnli_run, tmp_path, command):
    config = json.loads(xnli_run.read_text("utf-8"))
    config["settings"][1]["rows"] = str(hypernetwork(encoder, tmp_path / "hypernet"))
    tokenizer, out, cut = load(str(encoder), "fvt").tokenizer, tmp_path / "found.json", {}
    words = {word for line in XNLI.splitlines() for word in line.rpartition("\t")[0].split()}
    assert any(len(tokenizer.encode([word])[0].ids) > 3 for word in words)
    # Words of more pieces stay in base tokens; whole texts merge in any part.
    for boundary in ("pretoken", "sentence"):
        changed(xnli_run, settings=config["settings"], boundary=boundary)
        assert command(xnli.main, "--config", xnli_run, "--out", out).code == 0
        found = json.loads(out.read_text("utf-8"))["settings"]
        cut[boundary] = {row["name"]: row["languages"]["xx"]["cut_rows"] for row in found}
    assert cut["sentence"].pop("word") > 0 == cut["pretoken"].pop("word")
    assert {*cut["pretoken"].values(), *cut["sentence"].values()} == {0}


def test_nothing_is_compiled_while_time_is_taken(encoder, xnli_run, tmp_path, command, monkeypatch):
    """Batches of one shape, of which the second has rows for a larger program to predict."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice([*"aeiounst"], 5)) for _ in range(384)]
    lines = ["The quick quick The quick The quick\tThe The\tneutral"] * 64
    lines += [f"{' '.join(words[i : i + 5])}\t{words[i + 5]}\tneutral" for i in range(0, 384, 6)]
    (tmp_path / "xx.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    config = json.loads(xnli_run.read_text("utf-8"))
    config["settings"][1]["rows"] = str(hypernetwork(encoder, tmp_path / "hypernet"))
    changed(xnli_run, settings=config["settings"], batch_size=64)
    compiled, during = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    classify = adapters.classify

    def watched(*arguments: Any) -> Any:
        before = len(compiled)
        found = classify(*arguments)
        during.append(len(compiled) - before)
        return found

    monkeypatch.setattr(adapters, "classify", watched)
    try:
        out = tmp_path / "found.json"
        assert command(xnli.main, "--config", xnli_run, "--out", out).code == 0
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled and during == [0] * 5
