"""Adapters are trained: batches are what they should be, the loss falls, runs go on and export."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from head_commands import commands

from dyntok_jax.adapter_files import read_adapter, write_adapter
from dyntok_jax.config import ComputeConfig, MeshConfig, read_config
from dyntok_jax.embed.cache import RowCache
from dyntok_jax.embed.source import FvtRows
from dyntok_jax.lora import adapted_params
from dyntok_jax.merging.batch import merge
from dyntok_jax.merging.budget import Budget
from dyntok_jax.models.hf_config import read_architecture
from dyntok_jax.models.lora import LoraConfig
from dyntok_jax.models.weights import load_model
from dyntok_jax.tasks import uner
from dyntok_jax.tasks.source import TaskSource
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.types import DyntokError
from train.loop import TrainingConfig
from train.lora import main, make_task
from train.lora_config import LoraRun, TokenizationConfig
from train.lora_task import LoraTask
from train.optim import OptimizerConfig, Phase, make_schedule
from train.task_batches import BINS, reduction_bins

TAGGED = [
    *[("Der", "O"), ("Großvater", "B-PER"), ("erzählte", "O"), ("den", "O"), ("Kindern", "B-ORG")],
    *[("jeden", "I-ORG"), ("Abend", "O"), ("Geschichten", "O"), ("über", "O"), ("ferne", "B-LOC")],
    *[("Länder", "I-LOC"), (".", "O")],
]
WORDS, TAGS = ([pair[i] for pair in TAGGED] for i in range(2))
SENTENCES = [(WORDS[i:], TAGS[i:]) for i in range(10)]
SENTENCES += [(WORDS[:i], TAGS[:i]) for i in range(1, 12)] + [(["The", "lazy", "dog"], ["O"] * 3)]
PAIRS = [
    (" ".join(words), words[0], ["Der", "Großvater"].count(words[0]) + (words[0] == "Der"))
    for words, _ in SENTENCES
]
CONFIGS = Path(__file__).parents[2] / "configs" / "lora"
COMPUTE = ComputeConfig(mesh=MeshConfig(data=1))


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A file of each task."""
    folder = tmp_path_factory.mktemp("tasks")
    iob2 = "\n\n".join(
        "\n".join(
            f"{i + 1}\t{word}\t{tag}" for i, (word, tag) in enumerate(zip(*pair, strict=True))
        )
        for pair in SENTENCES
    )
    (folder / "uner.iob2").write_text(iob2 + "\n", "utf-8")
    (folder / "xnli.tsv").write_text("\n".join("\t".join(map(str, pair)) for pair in PAIRS))
    return {"uner": str(folder / "uner.iob2"), "xnli": str(folder / "xnli.tsv")}


@pytest.fixture
def make(encoder, files, tmp_path):
    """A small run, with changes."""

    def run(task: Any = "uner", **changes: Any) -> LoraRun:
        training = TrainingConfig(
            tmp_path / "run",
            steps=6,
            checkpoint_every=3,
            log_every=1,
            optimizer=OptimizerConfig(phases=(Phase(peak=1e-2),)),
        )
        source = TaskSource(files=files[task], language="xx")
        fields: dict[str, Any] = {
            "data": (source,),
            "training": training,
            "rows": "fvt",
            "lora": LoraConfig(rank=4, alpha=8),
            "sequences": 8,
            "max_length": 24,
            "compute": COMPUTE,
        }
        return LoraRun(str(encoder), task, **fields | changes)

    return run


def tokenized(mode: Any, reduction: float = 50.0, per_sample: bool = False) -> TokenizationConfig:
    """A mode, with the reduction where it has one."""
    return TokenizationConfig(mode, reduction if mode == "fixed" else None, per_sample)


@pytest.mark.parametrize(
    ("mode", "per_sample"),
    [("static", False), *product(["fixed", "merges", "reduction", "bins"], [False, True])],
)
def test_an_epoch_holds_every_example_once(make, mode, per_sample):
    tokenization = tokenized(mode, 60.0, per_sample)
    task = make_task(make(tokenization=tokenization, grouped=2))
    batcher, seen = task.batcher, []
    for number, chosen in enumerate(batcher.order(0)):
        seen += chosen.tolist()
        merged = batcher.merged(chosen, number)
        batch = batcher.arrays(chosen, merged)
        assert batch.ids.shape[0] == batch.labels.shape[0] == 8
        assert batch.ids.shape[1] % 8 == 0
        assert batch.mask.sum() == sum(len(sequence.tokens) for sequence in merged)
        for row, (i, sequence) in enumerate(zip(chosen, merged, strict=True)):
            base = batcher.examples.base[i]
            # The same bytes, and at the first token of each word its tag.
            assert "".join(map(str, sequence.tokens)) == "".join(map(str, base.tokens))
            found = batch.labels[row][batch.labels[row] >= 0]
            kept = sorted(set(base.word_ids.tolist()) - {-1})
            assert [uner.LABELS[n] for n in found] == [SENTENCES[i][1][w] for w in kept]
            table = np.asarray(batch.rows)
            for place, token in enumerate(sequence.tokens):
                expected = task.model.cache._provider.rows([token]).input[0]
                np.testing.assert_allclose(table[batch.ids[row, place]], expected)
    assert sorted(seen) == list(range(len(SENTENCES)))
    assert batcher.per_epoch == 3
    assert not np.array_equal(np.concatenate(batcher.order(0)), np.concatenate(batcher.order(1)))


def test_modes_merge_as_far_as_they_say(make):
    def sizes(mode, reduction=50.0, per_sample=False, numbers=30):
        tokenization = tokenized(mode, reduction, per_sample)
        batcher = make_task(make(tokenization=tokenization)).batcher
        chosen = batcher.order(0)[0]
        base = [batcher.examples.base[i] for i in chosen]
        before = sum(len(sequence.tokens) for sequence in base)
        least = sum(len(s.tokens) for s in merge(base, Budget(reduction=100)).sequences)
        saved = [
            before - sum(len(s.tokens) for s in batcher.merged(chosen, number))
            for number in range(numbers)
        ]
        return np.array(saved) / (before - least)

    assert not sizes("static", numbers=2).any()
    fixed = sizes("fixed", 75.0, numbers=2)
    assert fixed[0] == fixed[1] and 0.75 <= fixed[0] < 0.85
    for mode in ("merges", "reduction", "bins"):
        drawn = sizes(mode)
        assert len(set(drawn.tolist())) > 5 and drawn.min() < 0.35 and drawn.max() > 0.7
    # Each of 8 sentences has a draw of its own: their sum varies less.
    assert sizes("reduction", per_sample=True).std() < 0.75 * sizes("reduction").std()


def test_bins_are_of_equal_width_and_none_is_empty():
    merges = np.array([0, 1, 2, 3, 50, 51])
    lengths = np.array([100, 70, 69, 40, 1, 0])
    bins = reduction_bins(merges, lengths)
    assert [part.tolist() for part in bins] == [[0], [1, 2], [3], [50, 51]]
    assert len(reduction_bins(np.arange(91), 90 - np.arange(91))) == BINS
    assert [part.tolist() for part in reduction_bins(np.array([0]), np.array([5]))] == [[0]]


def test_batches_are_of_similar_length(make):
    run = make(grouped=3, sequences=4)
    widths = [
        sorted(np.ptp([len(task.batcher.examples.base[i].tokens) for i in part]) for part in order)
        for task in (make_task(run), make_task(replace(run, grouped=1)))
        for order in [task.batcher.order(0)]
    ]
    assert sum(widths[0]) < 0.5 * sum(widths[1])


def test_batches_are_the_same_from_a_position_on(make):
    task = make_task(make(tokenization=TokenizationConfig("merges")))
    stream = task.batches(None)
    batches = [next(stream) for _ in range(5)]
    again = task.batches(json.loads(json.dumps(batches[2].position)))
    for wanted in batches[3:]:
        jax.tree.map(np.testing.assert_array_equal, next(again).batch, wanted.batch)
    assert batches[0].tokens == batches[0].batch.mask.sum()


def test_base_rows_are_read_by_id(make, encoder):
    task = make_task(make(rows="base"))
    chosen = task.batcher.order(0)[0]
    batch = next(task.batches(None)).batch
    table = load_model(encoder).source.input
    for row, i in enumerate(chosen):
        ids = task.batcher.examples.base[i].ids
        np.testing.assert_allclose(np.asarray(batch.rows)[batch.ids[row, : len(ids)]], table[ids])


@pytest.mark.parametrize("task", ["uner", "xnli"])
def test_loss_falls_and_the_adapter_is_what_was_trained(make, task, encoder):
    source = make(task).data[0]
    run = make(
        task,
        tokenization=TokenizationConfig("fixed", 100.0),
        held_out=(source,),
        held_out_reductions=(0.0, 100.0),
        # One shape, and so one compilation.
        sequences=24,
    )
    # The first token of a random encoder tells little of the others.
    peak, falls, least = {"uner": (1e-2, 0.7, 60), "xnli": (5e-2, 0.9, 50)}[task]
    optimizer = OptimizerConfig(phases=(Phase(peak=peak),))
    training = replace(run.training, steps=40, optimizer=optimizer)
    training = replace(training, evaluate_every=40, checkpoint_every=40)
    run = replace(run, training=training)
    config = run.training.out.with_name("run.yaml")
    config.write_text(yaml.safe_dump(_plain(run)))
    main(["--config", str(config)])
    lines = (training.out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert np.mean(losses[-5:]) < falls * np.mean(losses[:5])
    figures = next(record for record in records if record["kind"] == "evaluation")
    name = {"uner": "f1", "xnli": "accuracy"}[task]
    assert figures[f"{name}_100"] == figures[f"{name}_xx_100"] > least
    assert figures[f"{name}_0"] == figures[f"{name}_xx_0"]

    model = load_model(encoder)
    adapter = read_adapter(training.out / "adapter", model.architecture)
    assert adapter.task["task"] == task and adapter.task["tokenization"]["mode"] == "fixed"
    assert adapter.task["steps"] == 40
    merged = adapted_params(model, adapter)
    assert {*merged} == {"model", "head"}
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), merged["model"], model.params)
    attention = changed["stack"]["layers"]["attention"]
    assert attention["query"]["kernel"] and attention["value"]["kernel"]
    assert sum(jax.tree.leaves(changed)) == 2


def test_the_adapter_says_of_which_step_it_is(make, encoder, monkeypatch):
    monkeypatch.setattr("train.lora.public_name", lambda name: f"org/{Path(name).name}")
    run = make(held_out=make().data, sequences=24)
    figures = iter([{"f1_0": 9.0}, {"f1_0": 5.0}])
    monkeypatch.setattr(LoraTask, "evaluate", lambda *_: next(figures))
    training = replace(run.training, steps=4, evaluate_every=2, best="f1_0")
    config = training.out.with_name("run.yaml")
    config.write_text(yaml.safe_dump(_plain(replace(run, training=training))))
    main(["--config", str(config)])
    adapter = read_adapter(training.out / "adapter", read_architecture(encoder))
    assert adapter.task["steps"] == 2
    peft = json.loads((training.out / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert peft["base_model_name_or_path"] == f"org/{encoder.name}"


def test_rows_that_say_little_are_counted_at_the_end(make, capsys, monkeypatch):
    run = make(sequences=24, held_out=make().data, rows="fvt")
    training = replace(run.training, steps=1, evaluate_every=1)
    config = run.training.out.with_name("run.yaml")
    config.write_text(yaml.safe_dump(_plain(replace(run, training=training))))
    monkeypatch.setattr(RowCache, "cut", 7)
    monkeypatch.setattr(FvtRows, "rows", counting(FvtRows.rows))
    main(["--config", str(config)])
    said = capsys.readouterr().err
    for of in ("training", "evaluations"):
        wanted = f"{of}: 7 rows of the first pieces only, 1 rows of the unknown token\n"
        assert wanted in said


def counting(rows: Any) -> Any:
    """Rows of a provider that has met one token without pieces."""

    def counted(provider: Any, tokens: Any) -> Any:
        provider.unknown = 1
        return rows(provider, tokens)

    return counted


def test_evaluation_is_of_the_network_that_is_trained(make):
    run = make(held_out=make().data, held_out_reductions=(100.0,), rows="fvt")
    task = make_task(replace(run, tokenization=TokenizationConfig("fixed", 100.0)))
    trained = task.init(jax.random.key(0))
    trained = jax.tree.map(
        lambda x: x + 0.3 * jnp.ones_like(x) * jnp.cos(jnp.arange(x.shape[-1])), trained
    )
    evaluated = task._network(trained)
    batch = next(task.batches(None)).batch
    labels = np.where(batch.mask, 1, -1)
    batch = batch._replace(labels=labels)
    _, metrics = jax.jit(task.loss)(trained, task.frozen, batch, jax.random.key(1))
    variables = {"params": evaluated.params}
    scores = jax.jit(evaluated.module.apply)(variables, batch.rows[batch.ids], batch.mask)
    right = (np.asarray(scores).argmax(-1) == 1)[batch.mask].mean()
    np.testing.assert_allclose(metrics["right"], right, atol=1e-6)


def test_dropout_is_drawn_by_the_steps_key(make):
    task = make_task(make(lora=LoraConfig(rank=4, alpha=8, dropout=0.5)))
    trained = jax.tree.map(lambda x: x + 0.1, task.init(jax.random.key(0)))
    batch = jax.tree.map(jnp.asarray, next(task.batches(None)).batch)
    loss = jax.jit(lambda key: task.loss(trained, task.frozen, batch, key)[0])
    assert loss(jax.random.key(1)) == loss(jax.random.key(1)) != loss(jax.random.key(2))


@pytest.mark.slow
def test_a_stopped_run_goes_on_exactly(make, tmp_path):
    # One shape, and so one compilation; every step has a dropout of its own.
    run = make(lora=LoraConfig(rank=4, dropout=0.3), sequences=24)
    whole = _losses(run, tmp_path / "whole", 6, stop=None)
    parts = _losses(run, tmp_path / "parts", 6, stop=2)
    assert len(whole) == len(parts) == 6 and whole == parts


def _losses(run, out, steps, stop):
    training = replace(run.training, out=out, steps=steps, checkpoint_every=100)
    run = replace(run, training=training)
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(_plain(run)))
    if stop is not None:

        def kill():
            metrics = out / "metrics.jsonl"
            while not metrics.exists() or len(metrics.read_text().splitlines()) < stop:
                time.sleep(0.002)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=kill, daemon=True).start()
        with pytest.raises(SystemExit) as ended:
            main(["--config", str(config)])
        assert ended.value.code == 0 and not (out / "adapter").exists()
    main(["--config", str(config)])
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_dry_run_says_what_a_step_needs(make, capsys):
    run = make()
    config = run.training.out.with_name("run.yaml")
    config.write_text(yaml.safe_dump(_plain(run)))
    main(["--config", str(config), "--dry-run", "compute.dtype=bfloat16"])
    said = capsys.readouterr().out
    # A and B of two maps in two layers, and a head of 7 classes.
    assert f" {2 * 2 * 2 * 16 * 4 + 16 * 7 + 7:,} parameters, " in said
    assert not run.training.out.exists()


@pytest.mark.parametrize("mode", ["static", "fixed", "merges"])
def test_a_dry_run_takes_the_widest_batch(make, tmp_path, mode):
    long = [f"{i + 1}\tErzählte\tO" for i in range(8)]
    short = ["1\tDer\tO", ""] * 20
    path = tmp_path / "long.iob2"
    path.write_text("\n".join([*short, *long, "", *short]), "utf-8")
    source = TaskSource(files=str(path), language="xx")
    tokenization = tokenized(mode)
    task = make_task(make(data=(source,), max_length=40, sequences=4, tokenization=tokenization))
    stream = task.batches(None)
    widths = [next(stream).batch.ids.shape[1] for _ in range(task.batcher.per_epoch)]
    (place,) = task.beginnings
    assert next(task.batches(place)).batch.ids.shape[1] == max(widths) > widths[0]


def test_epochs_are_counted_in_steps(make):
    run = make(epochs=4, training=replace(make().training, steps=0))
    assert make_task(run).steps == 12


def test_training_goes_on_from_an_adapter(make, encoder, tmp_path):
    run = make(rows="base")
    task = make_task(run)
    first = jax.tree.map(lambda x: x + 0.1, task.init(jax.random.key(5)))
    architecture = read_architecture(encoder)
    write_adapter(tmp_path / "first", task.adapter(first), architecture, run.model)
    started = make_task(replace(run, start=tmp_path / "first"))
    jax.tree.map(np.testing.assert_array_equal, started.init(jax.random.key(0)), first)
    assert task.adapter(first).task["start"] is None
    said = started.adapter(first).task["start"]
    assert said == {"folder": str(tmp_path / "first"), **task.adapter(first).task}
    assert said["seed"] == run.training.seed and said["row_provider"] == "base"
    other = replace(run, start=tmp_path / "first", lora=replace(run.lora, rank=2))
    with pytest.raises(DyntokError, match="not of the shape"):
        make_task(other)
    for said, changes in (
        ("base 0000, here", {"base": "0000"}),
        ("kind sequence, here token", {"kind": "sequence"}),
        ("labels .*, here", {"labels": task.adapter(first).labels[::-1]}),
        ("task xnli, here uner", {"task": {"task": "xnli"}}),
        ("alpha 800.0, here", {"config": replace(run.lora, alpha=800.0)}),
    ):
        with pytest.raises(DyntokError, match=said):
            LoraTask(run, task.model, architecture, task.adapter(first)._replace(**changes))


def test_settings_tell_contents_apart(make, tmp_path):
    """What is named by its place only may be another when a run goes on."""
    run = make()
    path = Path(run.data[0].files)
    before = make_task(run).settings
    assert make_task(run).settings == before
    text = path.read_text("utf-8")
    path.write_text(text.replace("Großvater", "Urgroßvater", 1), "utf-8")
    after = make_task(run).settings
    assert before["contents"]["data"] != after["contents"]["data"]
    assert {**before, "contents": 0} == {**after, "contents": 0}


def test_what_evaluations_read_is_told_by_its_contents(make):
    run = make(held_out=make().data)
    task = make_task(run)
    path = Path(run.held_out[0].files)
    path.write_text(path.read_text("utf-8").replace("Großvater", "Urgroßvater", 1), "utf-8")
    others = make_task(run), make_task(replace(run, held_out_reductions=(0.0, 50.0)))
    assert others[0].evaluated != task.evaluated
    assert others[1].evaluated["held_out"] == others[0].evaluated["held_out"]
    assert others[1].evaluated != others[0].evaluated


def test_held_out_files_are_read_before_the_first_step(make):
    source = replace(make().data[0], files="nowhere.iob2", language="yy")
    with pytest.raises(DyntokError, match=r"nowhere\.iob2"):
        make_task(make(held_out=(source,)))


@pytest.mark.slow
def test_eight_devices_take_the_same_step(make):
    losses = []
    for mesh in (MeshConfig(data=1), MeshConfig(data=2, fsdp=2, model=2)):
        task = make_task(make(compute=ComputeConfig(mesh=mesh)))
        batch, trained = next(task.batches(None)).batch, task.init(jax.random.key(0))
        trained = jax.tree.map(lambda x: x + 0.05, trained)
        step = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
        (loss, _), grads = step(trained, task.frozen, batch, jax.random.key(0))
        losses.append((float(loss), jax.device_get(grads)))
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), losses[0][1], losses[1][1]
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": ()}, "data is empty"),
        ({"epochs": 1}, "either epochs or training.steps"),
        ({"epochs": -1}, "epochs: -1"),
        (
            {"rows": "base", "tokenization": tokenized("fixed")},
            "valid with them is static",
        ),
        ({"rows": "base", "base_rows": "predicted"}, "predicted is nothing to base rows"),
        ({"sequences": 0}, "sequences: 0"),
        ({"held_out_reductions": (101.0,)}, "valid are 0 to 100"),
        ({"lora": LoraConfig(targets=("quary",))}, "'quary' reaches nothing"),
        ({"language": 3}, "language 3: fvt rows have none"),
        ({"compute": ComputeConfig(mesh=MeshConfig(data=3))}, "8 do not split over"),
        ({"max_length": 1}, "max length 1"),
    ],
)
def test_runs_that_cannot_be(make, changes, said):
    with pytest.raises(DyntokError, match=said):
        make_task(make(**changes))


def test_words_that_merge_away_are_not_learnt_from(make):
    # Of a pair the label is one, whatever merges.
    merging = TokenizationConfig("merges", boundary=Boundary.SENTENCE)
    make("xnli", tokenization=merging)
    make("uner", tokenization=replace(merging, mode="static"))
    said = r"tokenization\.boundary: sentence merges words of uner"
    with pytest.raises(DyntokError, match=said):
        make("uner", tokenization=merging)
    with pytest.raises(DyntokError, match=said):
        unmerged = replace(merging, mode="static")
        make("uner", tokenization=unmerged, held_out_reductions=(0.0, 100.0))


def test_bad_fields():
    with pytest.raises(DyntokError, match=r"lora\.dropout: 1"):
        LoraConfig(dropout=1.0)
    with pytest.raises(DyntokError, match=r"tokenization\.reduction: 120"):
        TokenizationConfig("fixed", 120)
    with pytest.raises(DyntokError, match=r"tokenization\.reduction: None; valid is a percentage"):
        TokenizationConfig("fixed")
    for mode in ("static", "merges", "reduction", "bins"):
        with pytest.raises(DyntokError, match=f"reduction: 75 is nothing to the mode {mode}; it"):
            TokenizationConfig(mode, 75)
    with pytest.raises(DyntokError, match="per_sample: nothing merges in the mode static"):
        TokenizationConfig("static", per_sample=True)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.out=", "training.out: is empty; give a value"),
        ("lora.dropout=.nan", "lora.dropout: nan is no finite number"),
        ("lora.targets=query", "lora.targets: 'query'; valid is a list, in square brackets"),
        ("data={files: a.tsv}", "data: {'files': 'a.tsv'}; valid is a list, in square brackets"),
        ("training.log_every=0", "training: log_every: 0 is not at least 1"),
        (
            "tokenization.boundary=words",
            "`tokenization.boundary`: Couldn't parse 'words' into one of: pretoken, word, "
            "word-hyphen, sentence",
        ),
        (
            "tokenization.boundary=[word]",
            "`tokenization.boundary`: Couldn't parse '['word']' into one of: pretoken, word, "
            "word-hyphen, sentence",
        ),
    ],
)
def test_what_is_said_of_a_field_is_all_that_is_said(make, tmp_path, override, said):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(_plain(make())))
    with pytest.raises(DyntokError) as error:
        read_config(LoraRun, path, [override])
    assert str(error.value) == f"{path}: {said}"


def test_a_decoder_is_refused(make, decoder):
    with pytest.raises(DyntokError, match="is a decoder: uner needs an encoder"):
        make_task(replace(make(), model=str(decoder)))


def test_what_cannot_be_read_is_counted(make, caplog):
    with caplog.at_level("INFO"):
        make_task(make(max_length=6))
    (said,) = [r.message for r in caplog.records if "examples" in r.message]
    assert f"{len(SENTENCES)} examples, 21 cut to 6 tokens" in said
    assert "unread words" in said and "0 mapped tags" in said


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_files_are_valid_and_say_their_command(path, monkeypatch):
    for name in ("NLI", "XNLI", "UNER", "LABELS"):
        monkeypatch.setenv(name, "folder")
    run = read_config(LoraRun, path)
    make_schedule(run.training.optimizer.phases, 1000)
    head = path.read_text("utf-8").split("model:")[0]
    assert f"python -m train.lora --config configs/lora/{path.name}" in head
    assert all(line.startswith("#") for line in head.splitlines())
    overrides = ["rows=default", "tokenization.mode=merges", "training.out=out"]
    if run.tokenization.mode == "fixed":
        overrides += ["tokenization.reduction=null"]
    assert read_config(LoraRun, path, overrides).tokenization.mode == "merges"
    # Those at the head are all valid, and each makes a folder of its own.
    runs = [read_config(LoraRun, path, each) for each in commands(path, "train.lora")]
    assert len(runs) > 1 and runs[0] == run
    assert len({found.training.out for found in runs}) == len(runs)


def _plain(run: LoraRun):
    return json.loads(json.dumps(asdict(run), default=str))
