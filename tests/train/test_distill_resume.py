"""A run of distillation goes on with the model and the dtype it began with, or not at all."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyntok_jax.checkpoint import Checkpoints
from dyntok_jax.config import ComputeConfig
from dyntok_jax.embed.zett import save_hypernet
from dyntok_jax.models.weights import load_model, save_model
from dyntok_jax.run_settings import check_same, plain_settings
from dyntok_jax.types import DyntokError
from train.config import HypernetRun, HypernetShape
from train.data import DataConfig
from train.distill_config import DistillConfig
from train.hypernet import make_task
from train.loop import TrainingConfig, _Run, train
from train.text_sources import TextSource


@pytest.fixture
def run(encoder, tmp_path) -> HypernetRun:
    text_file = tmp_path / "xx.txt"
    text_file.write_text("The lazy dog sleeps all day long.\n" * 8, "utf-8")
    data = DataConfig((TextSource("xx", files=str(text_file)),), texts=4, workers=0)
    shape = HypernetShape(hidden=16, feed_forward=16, layers=1, heads=2, surface_length=6)
    sizes = DistillConfig(sequences=8, max_length=32)
    out = TrainingConfig(tmp_path / "run", steps=4)
    return HypernetRun(str(encoder), data, out, hypernet=shape, distill=sizes)


def test_settings_tell_other_weights_and_another_start(run, encoder, tmp_path):
    task = make_task(run)
    first = task.settings
    shutil.copytree(encoder, tmp_path / "tuned")
    model = load_model(encoder)
    save_model(tmp_path / "tuned", model._replace(params=jax.tree.map(jnp.sin, model.params)))
    tuned = make_task(dataclasses.replace(run, model=str(tmp_path / "tuned"))).settings
    assert {name for name in first if first[name] != tuned[name]} == {"base"}
    params = task.hypernet_params(task.init(jax.random.key(0)))
    save_hypernet(tmp_path / "start", task.hypernet_config, params)
    shape = dataclasses.replace(run.hypernet, start=tmp_path / "start")
    started = make_task(dataclasses.replace(run, hypernet=shape)).settings
    assert {name for name in first if first[name] != started[name]} == {"start"}


def test_what_evaluations_read_is_known(run):
    assert make_task(run).evaluated == {}
    held_out = dataclasses.replace(run.data, texts=8)
    run = dataclasses.replace(run, held_out=held_out, held_out_batches=1)
    first = make_task(run)
    texts = dataclasses.replace(held_out, texts=12)
    for other in (
        dataclasses.replace(run, held_out_batches=2),
        dataclasses.replace(run, held_out=texts),
    ):
        task = make_task(other)
        assert task.settings == first.settings and task.evaluated != first.evaluated
    workers = dataclasses.replace(held_out, workers=1)
    assert make_task(dataclasses.replace(run, held_out=workers)).evaluated == first.evaluated


def test_a_changed_text_file_is_named(run, tmp_path):
    held_out = dataclasses.replace(run.data, texts=8)
    run = dataclasses.replace(run, held_out=held_out, held_out_batches=1)
    task, text_file = make_task(run), tmp_path / "xx.txt"
    saved, evaluated = task.settings, plain_settings(task.evaluated)
    check_same(plain_settings(saved), make_task(run).settings, tmp_path)
    text = text_file.read_text("utf-8")
    text_file.write_text(text[:-9] + "at night\n", "utf-8")
    changed = make_task(run)
    for before, now in ((plain_settings(saved), changed.settings), (evaluated, changed.evaluated)):
        with pytest.raises(
            DyntokError, match=rf"contents\.{text_file}: \S+ bytes, .* there,"
        ) as error:
            check_same(before, now, tmp_path)
        assert str(error.value).count(" there, ") == 1
    text_file.unlink()
    with pytest.raises(DyntokError, match=rf"{text_file} \(xx\): no such file"):
        print(task.settings)


def test_another_model_or_dtype_cannot_go_on(run, encoder, tmp_path):
    task, training = make_task(run), run.training
    with Checkpoints(training.out / "checkpoints") as checkpoints:
        settings = _Run(task, training, checkpoints).settings
        checkpoints.save(1, {"a": jnp.zeros(1)}, {"b": jnp.zeros(1)}, None, settings)
    shutil.copytree(encoder, tmp_path / "other")
    content = json.loads((encoder / "config.json").read_text("utf-8"))
    content |= {"layer_norm_eps": 1e-3, "intermediate_size": 32}
    (tmp_path / "other" / "config.json").write_text(json.dumps(content), "utf-8")
    workers = dataclasses.replace(run.data, workers=1)
    compute = ComputeConfig(dtype="bfloat16")
    changed = dataclasses.replace(run, model=str(tmp_path / "other"), compute=compute, data=workers)
    with pytest.raises(DyntokError) as raised:
        train(make_task(changed), training)
    said = str(raised.value)
    assert 'dtype: "float32" there, "bfloat16" here' in said
    assert "model.layer_norm_eps: absent there, 0.001 here" in said
    assert said.count(" there, ") == 2 and "\n" not in said


def test_a_distillation_goes_on_from_its_own_position(run):
    training = dataclasses.replace(run.training, checkpoint_every=2)
    whole = train(make_task(run), training)
    shutil.rmtree(training.out / "checkpoints" / "4")
    again = train(make_task(run), training)
    jax.tree.map(np.testing.assert_array_equal, whole, again)
