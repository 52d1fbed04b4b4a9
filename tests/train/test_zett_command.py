"""The command with the objective ``zett``: what it leaves behind."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
from zett_run import write_run

from dyntok_jax.config import read_config
from dyntok_jax.dynamic_model import load
from dyntok_jax.embed.shipped import table_languages
from dyntok_jax.embed.zett import load_hypernet
from dyntok_jax.models.weights import load_model
from dyntok_jax.types import DyntokError
from train.config import HypernetRun
from train.hypernet import main, make_task
from train.optim import OptimizerConfig, Phase
from train.transfer import transfer
from train.zett import ZettTask
from train.zett_config import ZettConfig, check_steps
from train.zett_hypernet import FirstParameters


@pytest.mark.slow
def test_a_trained_backbone_becomes_a_model_that_can_be_transferred(
    decoder, new_tokenizer, tmp_path
):
    main(["--config", str(write_run(tmp_path, decoder))])
    run = tmp_path / "run"
    before, after = load_model(decoder), load_model(run / "model")
    for old, new in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True):
        assert not np.array_equal(old, new)
    np.testing.assert_array_equal(before.source.input, after.source.input)
    shape, _ = load_hypernet(run / "hypernet")
    assert shape.width == before.config.width
    transfer(run / "model", str(run / "hypernet"), new_tokenizer, tmp_path / "moved")
    moved = load_model(tmp_path / "moved")
    for old, new in zip(*map(jax.tree.leaves, (after.params, moved.params)), strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(moved.source.input) == len(
        json.loads((new_tokenizer / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    )


@pytest.mark.slow
def test_a_trained_hypernetwork_and_its_model_train_on_one_tokenizer(
    decoder, new_tokenizer, tmp_path
):
    first, second = (write_run(tmp_path / name, decoder) for name in ("first", "second"))
    main(["--config", str(first), "zett.train_backbone=false"])
    before = tmp_path / "first" / "run" / "hypernet"
    own = [f"hypernet.start={before}", f"zett.tokenizer={new_tokenizer}", "zett.identity_steps=0"]
    main(["--config", str(second), *own, "training.optimizer.weight_decay=0.01"])
    run = tmp_path / "second" / "run"
    (_, old), (_, new) = load_hypernet(before), load_hypernet(run / "hypernet")
    for part in ("rescale", "rescale_source"):
        jax.tree.map(np.testing.assert_array_equal, old[part], new[part])
    assert not np.array_equal(old["head"]["kernel"], new["head"]["kernel"])
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [r["step"] for r in map(json.loads, lines) if "overlap_loss" in r] == [1, 2, 3, 4, 4]
    transfer(run / "model", str(run / "hypernet"), new_tokenizer, tmp_path / "moved")
    assert not np.array_equal(
        *(
            load_model(folder).params["final_norm"]["scale"]
            for folder in (decoder, tmp_path / "moved")
        )
    )


def test_the_result_says_which_row_is_of_which_language(decoder, tmp_path, monkeypatch):
    monkeypatch.setattr("train.hypernet.train", lambda task, _: task.init(jax.random.key(0)))
    path = write_run(tmp_path, decoder)
    sources = [{"language": name, "files": str(tmp_path / "en.txt")} for name in ("fr", "en")]
    own = [
        "zett.identity_only=true",
        "zett.train_backbone=false",
        "held_out=null",
        f"data.sources={sources}",
    ]
    main(["--config", str(path), *own])
    folder = tmp_path / "run" / "hypernet"
    assert table_languages(folder) == ["en", "fr"]
    with pytest.raises(DyntokError, match=r"languages 0 to 1 \(0 en, 1 fr\)"):
        load(str(decoder), rows=str(folder))
    (folder / "base.json").unlink()
    assert load(str(decoder), rows=str(folder), language=1).rows is not None


def test_training_starts_from_another_hypernetwork(decoder, tmp_path, monkeypatch):
    path = write_run(tmp_path, decoder)

    def made(*overrides):
        task = make_task(read_config(HypernetRun, path, overrides))
        assert isinstance(task, ZettTask)
        return task

    def source(name):
        return {"language": name, "files": str(tmp_path / "en.txt")}

    monkeypatch.setattr("train.hypernet.train", lambda task, _: task.init(jax.random.key(0)))
    two = f"data.sources={[source('fr'), source('en')]}"
    only = ["zett.identity_only=true", "zett.train_backbone=false", "held_out=null"]
    main(["--config", str(path), two, *only, "training.seed=5"])
    folder = tmp_path / "run" / "hypernet"
    start = f"hypernet.start={folder}"
    shape, params = load_hypernet(folder)
    for task in (made(start), made(start, f"data.sources={[source('fr')]}")):
        assert task.hypernet_config == shape
        found = task.hypernet_params(task.init(jax.random.key(0)))
        jax.tree.map(np.testing.assert_array_equal, found, params)
    assert task.languages == ["en", "fr"]
    assert int(next(task.batches({"identity": 2, "language": None})).batch.language) == 1
    assert task.settings["start"] is not None and made().settings["start"] is None
    with pytest.raises(DyntokError, match="data is of de, which the table of languages lacks"):
        made(start, f"data.sources={[source('de')]}")
    with pytest.raises(DyntokError, match="layers is 1 there and 2 here"):
        made(start, "hypernet.layers=2")
    (folder / "base.json").unlink()
    with pytest.raises(DyntokError, match="start has 2 languages and does not say which"):
        made(start)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("training.steps=2", "steps: all of the run's 2 steps are among these 2, .*identity_only"),
        (
            "training.steps=6 training.optimizer.accumulate=3",
            "2 are no multiple of .*accumulate, 3",
        ),
        ("training.optimizer.weight_decay=0.1", "train_backbone: optimizer.weight_decay would shr"),
        ("hypernet.rescale=false", "hypernet.rescale: the objective zett always rescales"),
        (
            "zett.identity_only=true zett.train_backbone=false",
            "held_out is of texts, and with identity_only there are none",
        ),
    ],
)
def test_settings_that_mean_something_else_are_refused(decoder, tmp_path, overrides, message):
    path = write_run(tmp_path, decoder)
    with pytest.raises(SystemExit, match=message):
        main(["--config", str(path), *overrides.split()])


def test_what_evaluations_read_is_known_apart_from_what_trains(decoder, tmp_path, monkeypatch):
    path = write_run(tmp_path, decoder)
    monkeypatch.setattr("train.zett.first_parameters", lambda *_: FirstParameters({}, {}))

    def made(*overrides):
        return make_task(read_config(HypernetRun, path, overrides))

    first = made()
    for other in ("zett.evaluation_batches=2", "held_out.texts=16", "zett.targets=['500']"):
        assert made(other).settings == first.settings
        assert made(other).evaluated != first.evaluated
    same = made("held_out.workers=3")
    assert same.settings == first.settings and same.evaluated == first.evaluated


def test_a_rate_that_knows_nothing_of_the_identity_steps_is_warned_of(caplog):
    config = ZettConfig(identity_steps=10)
    check_steps(config, 30, OptimizerConfig(phases=(Phase(steps=4), Phase(steps=6), Phase())))
    check_steps(ZettConfig(0), 30, OptimizerConfig())
    check_steps(ZettConfig(identity_only=True), 30, OptimizerConfig())
    assert not caplog.records
    check_steps(config, 30, OptimizerConfig(phases=(Phase(steps=4), Phase())))
    assert "no phase of the optimizer ends after these 10 steps" in caplog.text


def test_a_model_in_the_place_of_the_runs_own_is_refused(decoder, tmp_path):
    folder = tmp_path / "run" / "model"
    shutil.copytree(decoder, folder)
    with pytest.raises(SystemExit, match=r"model: .* is where this run writes its own model"):
        main(["--config", str(write_run(tmp_path, decoder)), f"model={folder}"])
    assert load_model(folder).params


def test_a_file_in_the_place_of_the_trained_model_is_found_before_the_training(decoder, tmp_path):
    run = ["--config", str(write_run(tmp_path, decoder))]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").write_text("", "utf-8")
    with pytest.raises(SystemExit, match="run/model: is no folder, but the run's result is"):
        main([*run, "zett.train_backbone=true"])
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"model", ".lock"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("zett.targets=[nothing]", "unknown model 'nothing'"),
        ("held_out.sources=[{language: en, files: missing.txt}]", "missing.txt .*no such file"),
        ("data.sources=[{language: en, files: missing.txt}]", "missing.txt .*no such file"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_cannot_be_had_is_missed_before_the_first_step(
    decoder, tmp_path, override, message, dry
):
    with pytest.raises(SystemExit, match=message):
        main(["--config", str(write_run(tmp_path, decoder)), override, *dry])
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
