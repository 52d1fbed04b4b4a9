"""Adapters that read dynamic tokens: what is trained, that it helps, and how it is used."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from distill_parts import SENTENCES
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file
from test_two_processes import HYPERNET, run_both
from tiny_folders import of_languages

from dyntok_jax.adapter_files import read_adapter, write_adapter
from dyntok_jax.cli import encode as encode_command
from dyntok_jax.cli import generate as generate_command
from dyntok_jax.cli import score as score_command
from dyntok_jax.config import read_config
from dyntok_jax.dynamic_model import load
from dyntok_jax.embed import shipped
from dyntok_jax.embed.zett import load_hypernet, save_hypernet
from dyntok_jax.encoding import encode
from dyntok_jax.lora import Adapter
from dyntok_jax.models.hf_config import read_architecture
from dyntok_jax.models.lora import merged
from dyntok_jax.scoring import score
from dyntok_jax.sharding import apply, gathered
from dyntok_jax.types import DyntokError
from train.config import HypernetRun
from train.hypernet import make_task as hypernet_task
from train.optim import make_schedule
from train.reading import load_base, main, make_task
from train.reading_config import ReadingRun

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "reading").glob("*.yaml"))
TEXTS = SENTENCES * 4
READING = HYPERNET.replace("train.hypernet", "train.reading")
OPTIMIZER = "training.optimizer.phases=[{peak: 0.005, warmup: 5}]"
TARGETS = {"encoder": ["query", "intermediate.dense"], "decoder": ["q_proj", "up_proj"]}


class Setting:
    """A tiny model, an untrained hypernetwork for it, and a run of an adapter."""

    def __init__(self, kind: str, model: Path, folder: Path):
        text = folder / "xx.txt"
        text.write_text("\n".join(TEXTS), "utf-8")
        self.kind, self.model, self.folder = kind, str(model), folder
        data = {"texts": 16, "workers": 0, "sources": [{"language": "xx", "files": str(text)}]}
        distill = {"sequences": 8, "max_length": 32, "merge_rates": [100, 100]}
        if kind == "decoder":
            distill |= {"divergence": 1.0}
        shape = {"hidden": 16, "feed_forward": 16, "layers": 1, "heads": 2, "surface_length": 6}
        training = {"out": str(folder / "run"), "steps": 30, "evaluate_every": 15}
        both = {"model": self.model, "data": data, "distill": distill, "training": training}
        path = self._written("hypernet", both | {"hypernet": shape})
        task = hypernet_task(read_config(HypernetRun, path))
        self.rows = folder / "rows"
        params = task.hypernet_params(task.init(jax.random.key(0)))
        save_hypernet(self.rows, task.hypernet_config, jax.device_get(params))
        lora = {"rank": 4, "alpha": 8, "targets": TARGETS[kind]}
        run = both | {"rows": str(self.rows), "lora": lora, "held_out": data}
        run["held_out_batches"] = 1
        self.path = self._written("reading", run)

    def _written(self, name: str, run: dict) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(run), "utf-8")
        return path

    def run(self, *overrides: str) -> ReadingRun:
        """The run, with fields changed."""
        return read_config(ReadingRun, self.path, overrides)


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def setting(request, tmp_path_factory) -> Setting:
    """One of each kind of model."""
    model = request.getfixturevalue(request.param)
    return Setting(request.param, model, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def trained(setting) -> Path:
    """The folder of an adapter that the command trained."""
    main(["--config", str(setting.path), OPTIMIZER])
    return setting.folder / "run" / "adapter"


def student(task, lora, frozen, batch):
    """The student's hidden states with additions, and the merged model's."""
    hypernet, beside = task.split(lora, frozen)
    predicted = task.predicted(hypernet, frozen, batch)
    rows = jnp.concatenate([frozen["source"].input[batch.own], predicted.input])
    params = merged(frozen["model"], lora, task.lora)
    whole = apply(task.network, params, rows, batch.ids, batch.mask, mesh=task.mesh)
    return task.states(predicted, frozen, batch, beside).student, whole


def test_at_step_0_the_student_is_the_model_itself(setting):
    task = make_task(setting.run())
    batch, lora = next(task.batches(None)).batch, task.init(jax.random.key(0))
    found, _ = jax.jit(partial(student, task))(lora, task.frozen, batch)

    @jax.jit
    def plain(frozen, batch):
        predicted = task.predicted(frozen["hypernet"], frozen, batch)
        return task.states(predicted, frozen, batch).student

    mask = batch.mask
    expected = np.asarray(plain(task.frozen, batch))[mask]
    np.testing.assert_allclose(np.asarray(found)[mask], expected, atol=1e-6)


def test_what_is_trained_are_the_additions_alone(setting):
    task = make_task(setting.run())
    paths = jax.tree_util.tree_leaves_with_path(task.init(jax.random.key(0)))
    assert {path[-1].key for path, _ in paths} == {"A", "B"}
    assert len(paths) == 2 * len(TARGETS[setting.kind])


def test_the_merged_model_is_the_student(setting):
    task = make_task(setting.run())
    batch = next(task.batches(None)).batch
    numbers = np.random.default_rng(0)
    lora = jax.tree.map(
        lambda leaf: numbers.normal(0, 0.1, leaf.shape).astype(np.float32),
        task.init(jax.random.key(0)),
    )

    found, whole = jax.jit(partial(student, task))(lora, task.frozen, batch)
    mask = batch.mask
    np.testing.assert_allclose(np.asarray(found)[mask], np.asarray(whole)[mask], atol=2e-5)


def test_the_command_brings_the_student_nearer_on_what_it_read(setting, trained):
    lines = (setting.folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    figures = [r for r in map(json.loads, lines) if r["kind"] == "evaluation"]
    task = make_task(setting.run())
    before = task.evaluate(task.init(jax.random.key(0)))
    name = "pooled_100" if setting.kind == "encoder" else "divergence_100"
    assert figures[-1][name] < 0.9 * before[name]


def test_the_adapter_says_what_it_is(setting, trained):
    found = read_adapter(trained, read_architecture(Path(setting.model)))
    assert found.kind is None and found.head is None
    assert (found.config.rank, found.config.alpha) == (4, 8.0)
    paths = {path.split("/")[-2] for path in flatten_dict(found.lora, sep="/")}
    assert len(paths) == len(TARGETS[setting.kind])
    said = {name: found.task[name] for name in ("task", "rows", "steps", "seed")}
    assert said == {"task": "reading", "rows": str(setting.rows), "steps": 30, "seed": 0}
    tensors = load_file(trained / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"float16"}


def output(model) -> np.ndarray:
    """What a model makes of merged texts."""
    if model.kind == "encoder":
        return encode(model, TEXTS[:2], 100, pool="mean", batch_size=2).vectors
    found = score(model, [(TEXTS[0], [" yes", " no"])], 100, batch_size=2)
    return np.array(found[0].scores)


def test_a_model_reads_by_it_and_is_itself_left_alone(setting, trained):
    model = load(setting.model, str(setting.rows))
    before = output(model)
    if model.kind == "decoder":
        _ = model.step_params
    adapted = model.with_adapter(str(trained))
    after = output(adapted)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_array_equal(output(model), before)
    np.testing.assert_allclose(
        output(load(setting.model, str(setting.rows), adapter=str(trained))), after, rtol=1e-6
    )
    if model.kind == "decoder":
        leaves = zip(*map(jax.tree.leaves, (adapted.step_params, model.step_params)), strict=True)
        assert any(np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-4 for a, b in leaves)


def test_rows_that_it_did_not_learn_are_warned_of(setting, trained, caplog):
    load(setting.model, "fvt", adapter=str(trained))
    said = "learnt to read rows of rows "
    assert said in caplog.text and ", not of fvt" in caplog.text
    caplog.clear()
    copied = shutil.copytree(setting.rows, setting.folder / "another name", dirs_exist_ok=True)
    model = load(setting.model, str(copied), adapter=str(trained))
    assert said not in caplog.text
    model.with_rows("weighted")
    assert said in caplog.text


def test_an_adapter_upon_another_is_refused(setting, trained):
    model = load(setting.model, str(setting.rows), adapter=str(trained))
    assert model.adapter is not None and model.adapter.name == str(trained)
    with pytest.raises(DyntokError, match="reads with one already"):
        model.with_adapter(str(trained))


def test_the_one_that_ships_is_found_by_the_model(setting, trained, tmp_path, monkeypatch):
    model = load(setting.model, str(setting.rows))
    with pytest.raises(DyntokError, match="no adapter ships for"):
        model.with_adapter("default")
    folder = tmp_path / "tiny"
    (folder / shipped.ADAPTER).mkdir(parents=True)
    shipped.write_mark(folder, "tiny", model.source, model.tokenizer)
    for file in trained.iterdir():
        (folder / shipped.ADAPTER / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    expected = output(model.with_adapter(str(trained)))
    np.testing.assert_array_equal(output(model.with_adapter("default")), expected)


def test_the_one_that_ships_is_read_by_another_copy_of_its_model(
    setting, trained, tmp_path, monkeypatch, caplog
):
    folder = tmp_path / "shipped" / "tiny"
    model = load(setting.model, str(setting.rows))
    shutil.copytree(trained, folder / shipped.ADAPTER)
    shipped.write_mark(folder, "tiny", model.source, model.tokenizer)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
    quantized = dataclasses.replace(
        model, params=jax.tree.map(lambda leaf: leaf + 1e-4, model.params)
    )
    adapted = quantized.with_adapter("default")
    assert "learnt on another copy of this model" in caplog.text
    difference = np.abs(output(adapted) - output(model.with_adapter(str(trained)))).max()
    assert 0 < difference < 0.1
    with pytest.raises(DyntokError, match="adapter: the adapter was trained on another model"):
        quantized.with_adapter(str(trained))


def test_a_decoders_names_are_those_of_peft(setting, trained):
    said = json.loads((trained / "adapter_config.json").read_text("utf-8"))
    names = load_file(trained / "adapter_model.safetensors").keys()
    if setting.kind == "decoder":
        assert said["task_type"] == "CAUSAL_LM"
        assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    else:
        assert said["task_type"] == "FEATURE_EXTRACTION"
        assert "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight" in names


# peft asks transformers by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_reads_it(setting, trained):
    peft = pytest.importorskip("peft", reason="needs torch and peft")
    torch = pytest.importorskip("torch")
    import transformers

    auto = {"encoder": "AutoModel", "decoder": "AutoModelForCausalLM"}[setting.kind]
    base = getattr(transformers, auto).from_pretrained(setting.model)
    theirs = peft.PeftModel.from_pretrained(base, trained).eval()
    ids = np.arange(5, 17)[None]
    with torch.no_grad():
        output = theirs(torch.from_numpy(ids))
        expected = (output[0] if setting.kind == "encoder" else output.logits).numpy()
    model = load(setting.model, "base", adapter=str(trained))
    batch = model.batch([ids[0].tolist()])
    states = np.asarray(model.forward(batch, gathered))[0][batch.mask[0]]
    if setting.kind == "decoder":
        states = states @ np.asarray(model.output_rows).T
    np.testing.assert_allclose(states, expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("setting", ["decoder"], indirect=True)
def test_score_and_generate_take_it_where_something_merges(setting, trained, tmp_path, monkeypatch):
    lines = tmp_path / "prompts.jsonl"
    lines.write_text(json.dumps({"prompt": TEXTS[0], "choices": [" yes", " no"]}) + "\n", "utf-8")
    options = [str(lines), "--model", setting.model, "--rows", str(setting.rows)]
    adapter = ["--adapter", str(trained)]
    plain, adapted = (
        json.loads(CliRunner().invoke(score_command.command, [*options, *more]).stdout)["scores"]
        for more in ([], adapter)
    )
    model = load(setting.model, str(setting.rows), adapter=str(trained))
    expected = score(model, [(TEXTS[0], [" yes", " no"])], 100, batch_size=8)[0].scores
    np.testing.assert_allclose(adapted, expected, rtol=1e-5)
    assert np.abs(np.subtract(plain, adapted)).max() > 1e-3
    loaded = []

    def noted(*given, **named):
        loaded.append(load(*given, **named))
        return loaded[-1]

    monkeypatch.setattr("dyntok_jax.dynamic_model.load", noted)
    unmerged = [*adapter, "--reduction", "0"]
    refused = CliRunner().invoke(score_command.command, [*options, *unmerged])
    assert refused.exit_code == 2 and "--adapter: it is for merged tokens" in refused.output
    lines.write_text(json.dumps({"prompt": TEXTS[0]}) + "\n", "utf-8")
    short = [*options, "--max-new-tokens", "8"]
    for more in ([], adapter):
        assert CliRunner().invoke(generate_command.command, [*short, *more]).exit_code == 0
    assert loaded[0].adapter is None and loaded[1].adapter.name == str(trained)
    refused = CliRunner().invoke(generate_command.command, [*short, *unmerged])
    assert refused.exit_code == 2 and "--adapter: it is for merged tokens" in refused.output
    more = [*unmerged, "--rewrite-words", "2"]
    taken = CliRunner().invoke(generate_command.command, [*short, *more])
    assert taken.exit_code == 0, taken.output


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["decoder"], indirect=True)
def test_two_processes_train_one_adapter(setting, tmp_path):
    steps = ["training.steps=6", "training.evaluate_every=3", "compute.mesh.data=2", OPTIMIZER]
    run_both(["-c", READING], setting.path, f"training.out={tmp_path / 'run'}", *steps)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    kinds = [(record["step"], record["kind"]) for record in map(json.loads, lines)]
    assert kinds.count((3, "evaluation")) == kinds.count((6, "evaluation")) == 1
    model = load(setting.model, str(setting.rows))
    adapted = model.with_adapter(str(tmp_path / "run" / "adapter"))
    assert np.abs(output(adapted) - output(model)).max() > 1e-5


@pytest.mark.parametrize("change", ["lora.alpha=9", "distill.merge_rates=[50, 100]", "rows"])
def test_a_run_goes_on_by_its_own_settings_only(setting, trained, change, tmp_path):
    if change == "rows":
        config, params = load_hypernet(setting.rows)
        params["positions"] = np.asarray(params["positions"]) + 1
        save_hypernet(tmp_path / "other", config, params)
        change = f"rows={tmp_path / 'other'}"
    with pytest.raises(SystemExit, match="has other settings"):
        main(["--config", str(setting.path), OPTIMIZER, change])


def test_a_table_of_languages_is_refused(setting, tmp_path):
    rows = of_languages(tmp_path / "rows", Path(setting.model), ["de", "en"])
    with pytest.raises(DyntokError, match="have a table of languages"):
        load_base(setting.run(f"rows={rows}"))


def test_rows_of_another_width_are_refused(setting, tmp_path):
    config, params = load_hypernet(setting.rows)
    save_hypernet(tmp_path / "wide", dataclasses.replace(config, vocab_size=10**6), params)
    with pytest.raises(DyntokError, match="wide: "):
        load_base(setting.run(f"rows={tmp_path / 'wide'}"))


def test_others_adapters_are_refused(setting, trained, tmp_path):
    architecture = read_architecture(Path(setting.model))
    model = load(setting.model, str(setting.rows))
    found = read_adapter(trained, architecture)
    write_adapter(tmp_path / "other", found._replace(base="0" * 64), architecture, "x")
    with pytest.raises(DyntokError, match="other: the adapter was trained on another model"):
        model.with_adapter(str(tmp_path / "other"))
    with pytest.raises(DyntokError, match="no-such"):
        model.with_adapter(str(tmp_path / "no-such"))
    if setting.kind == "encoder":
        width = architecture.config.width
        head = {
            "classes": {"kernel": np.zeros((width, 2), np.float32), "bias": np.zeros(2, np.float32)}
        }
        task = Adapter(found.config, found.lora, head, "token", ("O", "B"), found.base, {})
        write_adapter(tmp_path / "task", task, architecture, "x")
        with pytest.raises(DyntokError, match="is for a task"):
            model.with_adapter(str(tmp_path / "task"))


@pytest.mark.parametrize("setting", ["encoder"], indirect=True)
def test_encode_takes_it_where_something_merges(setting, trained, tmp_path):
    lines = tmp_path / "texts.jsonl"
    lines.write_text(json.dumps({"text": TEXTS[0]}) + "\n", "utf-8")
    options = [str(lines), "--model", setting.model, "--rows", str(setting.rows)]
    options += ["--out", str(tmp_path / "v.safetensors"), "--adapter", str(trained)]
    assert CliRunner().invoke(encode_command.command, options).exit_code == 0
    vector = load_file(tmp_path / "v.safetensors")["vectors"][0]
    model = load(setting.model, str(setting.rows), adapter=str(trained))
    expected = encode(model, TEXTS[:1], 100, pool="mean", batch_size=32).vectors[0]
    np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-6)
    refused = CliRunner().invoke(encode_command.command, [*options, "--reduction", "0"])
    assert refused.exit_code == 2
    assert "--adapter: it is for merged tokens" in refused.output


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rows=fvt"], "rows fvt: valid are the folder of a hypernetwork"),
        (["rows=default"], "rows default: valid are the folder of a hypernetwork"),
        (["lora.targets=[quary]"], "'quary' reaches nothing"),
        (["lora.dropout=0.1"], "lora.dropout: distillation has none"),
        (["distill.layers=1"], "distill.layers: an adapter is of all layers"),
        (["held_out_batches=0"], "held_out_batches: 0"),
        (["held_out=null"], "training.evaluate_every needs held_out texts"),
        (["held_out.sources=[{language: xx, files: /no/such.txt}]"], "/no/such.txt"),
        (["distill.sequences=3"], "3 do not split over"),
    ],
)
def test_command_refuses_in_one_line(overrides, words, setting):
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "--config",
                str(setting.path),
                "training.out=" + str(setting.folder / "no"),
                *overrides,
            ]
        )
    said = str(caught.value)
    assert words in said and said.startswith("error: ") and "\n" not in said


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_file_is_valid_and_says_its_command(path, monkeypatch):
    monkeypatch.setenv("TEXT", "texts")
    run = read_config(ReadingRun, path)
    make_schedule(run.training.optimizer.phases, run.training.steps)
    assert f"python -m train.reading --config configs/reading/{path.name}" in path.read_text(
        "utf-8"
    )


def test_texts_are_those_of_the_hypernetworks_they_read():
    assert FILES
    for path in FILES:
        own, other = (
            yaml.safe_load((ROOT / "configs" / kind / path.name).read_text("utf-8"))
            for kind in ("reading", "hypernet")
        )
        assert own["data"]["sources"] == other["data"]["sources"]
        assert own["held_out"]["sources"] == other["held_out"]["sources"]
