"""The training loop: values, resuming, stopping, bad batches."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from regression_task import Regression, config
from safetensors.numpy import load_file

from dyntok_jax.sharding import BatchPart
from dyntok_jax.types import DyntokError
from train import loop
from train.dry_run import dry_run
from train.loop import train, trained
from train.optim import OptimizerConfig, Phase
from train.run_folder import alone

PROGRAM = Path(__file__).with_name("regression_task.py")


def records(out, kind="train"):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def checkpoints(out):
    """Steps with a finished checkpoint; unfinished ones carry a longer name."""
    names = (path.name for path in (out / "checkpoints").iterdir())
    return sorted(int(name) for name in names if name.isdigit())


def started(out, steps):
    """The regression in a process of its own, on one device."""
    root = PROGRAM.parents[2]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(root)}
    return subprocess.Popen(
        [sys.executable, PROGRAM, out, str(steps)], env=env, cwd=root, stderr=subprocess.PIPE
    )


def wait_for_step(out, step, saved=False):
    """Until the step is recorded and, with ``saved``, a checkpoint is finished."""
    for _ in range(600):
        found = records(out) if (out / "metrics.jsonl").exists() else []
        if found and found[-1]["step"] >= step and (not saved or checkpoints(out)):
            return
        time.sleep(0.05)
    raise AssertionError(f"no step {step} within 30 seconds")


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_loss_falls_and_every_figure_is_recorded(tmp_path):
    train(Regression(), config(tmp_path, 60, evaluate_every=30))
    found = records(tmp_path)
    assert [record["step"] for record in found] == list(range(2, 61, 2))
    assert found[-1]["loss"] < 0.3 * found[0]["loss"]
    assert found[0]["learning_rate"] == pytest.approx(1e-2 / 3)
    assert all(record["tokens_per_s"] > 0 and record["grad_norm"] > 0 for record in found)
    assert found[0]["compilations"] == found[-1]["compilations"] == 1
    assert [r["step"] for r in records(tmp_path, "evaluation")] == [30, 60]


def test_steps_are_those_of_a_plain_loop(tmp_path):
    """The same updates written out: batch by batch, key by key."""
    found = train(Regression(), config(tmp_path, 5))
    task = Regression()
    first, key = jax.random.split(jax.random.key(0))
    params = task.init(first)
    schedule = optax.join_schedules(
        [optax.linear_schedule(0, 1e-2, 3), optax.cosine_decay_schedule(1e-2, 2, 0.1)], [3]
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0))
    moments = optimizer.init(params)
    for step, loaded in zip(range(5), task.batches(None), strict=False):
        grads = jax.grad(task.loss, has_aux=True)(
            params, task.frozen, loaded.batch, jax.random.fold_in(key, step)
        )[0]
        updates, moments = optimizer.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, params)


def test_products_of_a_step_are_rounded_on_request(tmp_path):
    exact = train(Regression(), config(tmp_path / "exact", 5))
    rounded = train(Regression(), config(tmp_path / "rounded", 5, products="bfloat16"))
    assert not all(np.array_equal(exact[name], rounded[name]) for name in exact)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2), exact, rounded)
    with pytest.raises(DyntokError, match='products: "float32" there, "bfloat16" here'):
        train(Regression(), config(tmp_path / "exact", 5, products="bfloat16"))


def test_a_complete_run_gives_its_parameters_without_another_step(tmp_path):
    first = train(Regression(), config(tmp_path))
    task = Regression()
    again = train(task, config(tmp_path))
    assert task.taken == []
    equal(first, again)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = started(killed, 40)
    step = random.randrange(6, 30)
    try:
        wait_for_step(killed, step, saved=True)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    last = checkpoints(killed)[-1]
    assert 0 < last < 40
    task = Regression()
    resumed = train(task, config(killed, 40))
    assert task.taken[0] == last + 1
    equal(resumed, train(Regression(), config(whole, 40)))
    steps = [record["step"] for record in records(killed)]
    assert steps == list(range(2, 41, 2))
    kept = ("step", "loss", "grad_norm", "root", "learning_rate")
    assert [[r[name] for name in kept] for r in records(killed)] == [
        [r[name] for name in kept] for r in records(whole)
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path, number):
    process = started(tmp_path, 4000)
    try:
        wait_for_step(tmp_path, 6)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, errors.decode()
    step = checkpoints(tmp_path)[-1]
    assert f"stopped by signal after step {step};" in errors.decode()
    assert step >= records(tmp_path)[-1]["step"]


def test_more_devices_go_on_where_one_stopped(tmp_path):
    """Half the steps on one device, half on eight, against all of them on one."""
    whole = train(Regression(), config(tmp_path / "one", 20))
    settled = tmp_path / "moved"
    stopping = Regression()
    stop_after(stopping, 10)
    with pytest.raises(SystemExit) as stopped:
        train(stopping, config(settled, 20, log_every=1, evaluate_every=1))
    assert stopped.value.code == 0
    assert checkpoints(settled)[-1] == 10
    moved = train(Regression(devices=8), config(settled, 20))
    assert moved["first"].sharding.num_devices == 8
    assert moved["first"].addressable_shards[0].data.shape == (4, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved, whole)


def test_an_update_that_is_not_finite_never_reaches_the_parameters(tmp_path):
    phases = (Phase(peak=float("inf"), decay="constant"),)
    with pytest.raises(DyntokError, match=r"step 1: .* the optimizer's update is not finite"):
        train(Regression(), config(tmp_path, 4, optimizer=OptimizerConfig(phases=phases)))
    phases = (Phase(peak=1e-2, warmup=2, steps=2), Phase(peak=float("inf"), decay="constant"))
    with pytest.raises(DyntokError, match="in the checkpoint of step 2"):
        train(Regression(), config(tmp_path / "later", 4, optimizer=OptimizerConfig(phases=phases)))
    assert checkpoints(tmp_path / "later")[-1] == 2


@pytest.mark.parametrize("fields", [{}, {"best": "nothing"}])
def test_a_failing_evaluation_keeps_the_steps_before_it(tmp_path, monkeypatch, fields):
    task = Regression()
    if not fields:
        monkeypatch.setattr(task, "evaluate", lambda trainables: 1 / 0)
    with pytest.raises((ZeroDivisionError, DyntokError), match=r"division|no figure 'nothing'"):
        train(task, config(tmp_path, 9, evaluate_every=3, **fields))
    assert checkpoints(tmp_path) == [3]


@pytest.mark.parametrize("out", ["", "."])
def test_a_run_has_a_folder_of_its_own(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DyntokError, match=r"training\.out: is the current folder"):
        train(Regression(), config(out))
    assert not list(tmp_path.iterdir())


def stop_after(task, step):
    """Sends this process SIGTERM in the evaluation after a step."""
    evaluate, calls = task.evaluate, []

    def stopping(trainables):
        calls.append(None)
        if len(calls) == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(trainables)

    task.evaluate = stopping


def test_a_loss_that_is_not_finite_keeps_the_parameters_before(tmp_path):
    task = Regression(bad=(7,))
    with pytest.raises(DyntokError, match=r"step 7: loss nan.*nan_batch_7\.safetensors.*step 6"):
        train(task, config(tmp_path, 20))
    saved = load_file(tmp_path / "nan_batch_7.safetensors")
    expected = [loaded.batch for loaded, _ in zip(task.batches(None), range(7), strict=False)][6]
    equal(saved, expected)
    assert np.isnan(saved["y"]).any()
    assert checkpoints(tmp_path)[-1] == 6
    resumed = train(Regression(), config(tmp_path, 20))
    equal(resumed, train(Regression(), config(tmp_path / "good", 20)))


def test_a_loss_that_is_not_finite_is_told_where_nothing_can_be_saved(tmp_path, monkeypatch):
    def full(self, *_: object) -> None:
        raise DyntokError("no space left")

    monkeypatch.setattr(loop.Checkpoints, "save", full)
    said = r"step 3: loss nan.* the batch is in .*nan_batch_3\.safetensors; and no space left"
    with pytest.raises(DyntokError, match=said):
        train(Regression(bad=(3,)), config(tmp_path, 20, checkpoint_every=0))
    assert np.isnan(load_file(tmp_path / "nan_batch_3.safetensors")["y"]).any()


def test_a_signal_does_not_interrupt_the_last_checkpoint(tmp_path, monkeypatch):
    wait = loop.Checkpoints.wait

    def told(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        wait(self)

    monkeypatch.setattr(loop.Checkpoints, "wait", told)
    before = signal.getsignal(signal.SIGTERM)
    train(Regression(), config(tmp_path, 4, checkpoint_every=0))
    assert checkpoints(tmp_path) == [4] and signal.getsignal(signal.SIGTERM) == before


def test_event_files_that_cannot_be_written_end_the_run_in_one_line(tmp_path, monkeypatch):
    train(Regression(), config(tmp_path / "good", 4, tensorboard=True))
    (file,) = (tmp_path / "good" / "tensorboard").iterdir()
    assert b"train/loss" in file.read_bytes()

    def full(self, event: Any) -> None:
        if event.HasField("summary"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("train.metrics.EventsWriter.write_event", full)
    with pytest.raises(DyntokError, match=r"tensorboard: cannot be written \(No space left"):
        train(Regression(), config(tmp_path / "full", 4, tensorboard=True))


def test_other_settings_are_all_named(tmp_path):
    train(Regression(), config(tmp_path, 4))
    other = replace(config(tmp_path, 4), seed=5, keep=9, log_every=1)
    with pytest.raises(DyntokError) as raised:
        train(Regression(width=16), other)
    message = str(raised.value)
    assert "model.width: 8 there, 16 here" in message
    assert "training.seed: 0 there, 5 here" in message
    assert message.count(" there, ") == 2
    assert "\n" not in message


def test_figures_of_other_texts_do_not_rank_beside_those_that_are_there(tmp_path):
    run = replace(config(tmp_path, 4), evaluate_every=2, best="size")
    other = Regression()
    other.evaluated = {"texts": 9}
    train(Regression(), run)
    with pytest.raises(DyntokError, match=r"evaluated\.texts: 8 there, 9 here"):
        train(other, run)
    # Without a best they change nothing.
    equal(train(other, replace(run, best=None)), train(Regression(), replace(run, best=None)))


def test_each_shape_is_compiled_once(tmp_path):
    train(Regression(lengths=(4, 8, 2)), config(tmp_path, 12))
    assert [r["compilations"] for r in records(tmp_path)] == [3, 3, 3, 3, 3, 3]


def test_time_lost_to_the_input_is_measured(tmp_path):
    train(Regression(delay=0.1), config(tmp_path, 10, checkpoint_every=0))
    # Some batches are made ahead while the step is compiled.
    assert all(0.7 < record["input_wait"] <= 1 for record in records(tmp_path)[-2:])


def test_a_slow_step_hides_the_input(tmp_path):
    task = Regression(delay=0.01, rows=2048, width=1024)
    train(task, config(tmp_path, 10))
    assert all(record["input_wait"] < 0.1 for record in records(tmp_path)[1:])


def test_an_error_of_the_input_side_reaches_the_caller(tmp_path):
    class Broken(Regression):
        def batches(self, position):
            yield next(super().batches(position))
            raise DyntokError("de: no text")

    with pytest.raises(DyntokError, match="de: no text"):
        train(Broken(), config(tmp_path, checkpoint_every=0))
    # The step before it is not lost.
    task = Regression()
    train(task, config(tmp_path, checkpoint_every=0))
    assert task.taken[0] == 2


def test_tokens_that_are_lost_are_recorded(tmp_path):
    class Crowded(Regression):
        def batches(self, position):
            for loaded in super().batches(position):
                number = loaded.position["next"]
                yield loaded._replace(dropped=loaded.tokens // 3, cut=number % 2)

    train(Crowded(), config(tmp_path, 4, log_every=2))
    for record in records(tmp_path):
        assert record["dropped"] == pytest.approx(0.25, abs=0.01)
        assert record["cut"] == 0.5  # of each batch, on average


def test_batches_are_agreed_on_between_steps_and_failures_too(tmp_path):
    asked = []

    class Agreeing(Regression):
        @property
        def agree(self):
            return self.doubled

        def doubled(self, batch):
            asked.append((threading.current_thread(), batch))
            return batch and {name: np.concatenate([part, part]) for name, part in batch.items()}

        def batches(self, position):
            yield from islice(super().batches(position), 3)
            raise DyntokError("de: no text")

    with pytest.raises(DyntokError, match="de: no text"):
        train(Agreeing(), config(tmp_path, 10, log_every=1))
    assert {thread for thread, _ in asked} == {threading.main_thread()}
    # The process whose input failed says so to the others, before it raises.
    assert [batch is None for _, batch in asked] == [False, False, False, True]
    assert sum(record["kind"] == "train" for record in records(tmp_path)) == 3


def test_the_positions_of_all_parts_are_kept(tmp_path, monkeypatch):
    """As if there were two parts, of which this process has the second."""
    config_, taken = config(tmp_path, 4, checkpoint_every=2), []

    class Second(Regression):
        def batches(self, position):
            taken.append(position)
            return super().batches(position)

    def everybody(value):
        return [[1 - value[0], {"next": 100}], value]

    monkeypatch.setattr(loop, "batch_part", lambda mesh: BatchPart(1, 2, (1,)))
    monkeypatch.setattr(loop, "of_all_processes", everybody)
    train(Second(), config_)
    run = json.loads((tmp_path / "checkpoints" / "2" / "run" / "metadata").read_text("utf-8"))
    assert run["position"] == {"of_parts": [{"next": 100}, {"next": 2}]}
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    for index, place in ((1, 2), (0, 100)):
        monkeypatch.setattr(loop, "batch_part", lambda mesh, i=index: BatchPart(i, 2, (i,)))
        shutil.copytree(tmp_path, tmp_path.parent / f"run_{index}")
        train(Second(), replace(config_, out=tmp_path.parent / f"run_{index}"))
        assert taken[-1] == {"next": place}


def test_accumulated_batches_equal_a_large_one(tmp_path):
    class Parts(Regression):
        """Each batch of 16 in four parts, without the noise that their shapes would change."""

        def batches(self, position):
            for loaded in super().batches(position):
                for part in range(4):
                    rows = slice(4 * part, 4 * part + 4)
                    batch = {name: array[rows] for name, array in loaded.batch.items()}
                    yield loaded._replace(batch=batch)

    def run(task, steps, accumulate, warmup):
        task.frozen = {"noise": jnp.float32(0)}
        phases = (Phase(peak=1e-2, warmup=warmup, decay="constant"),)
        optimizer = OptimizerConfig(phases=phases, accumulate=accumulate)
        out = tmp_path / str(accumulate)
        return train(task, config(out, steps, optimizer=optimizer))

    large, parts = run(Regression(), 6, 1, 2), run(Parts(), 24, 4, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), large, parts)


def test_the_best_is_kept_beside_the_newest(tmp_path):
    class Scored(Regression):
        def evaluate(self, trainables):
            self.calls = getattr(self, "calls", 0) + 1
            return {"error": [0.5, 0.1, 0.4, 0.3, 0.2][self.calls - 1]}

    changes = {"evaluate_every": 2, "best": "error", "direction": "min", "checkpoint_every": 0}
    train(Scored(), config(tmp_path, 10, keep=2, **changes))
    assert checkpoints(tmp_path) == [4, 8, 10]


def test_the_best_parameters_are_the_result(tmp_path, caplog):
    class Scored(Regression):
        """Says that it was best at step 4."""

        def evaluate(self, trainables):
            self.seen = [*getattr(self, "seen", []), jax.tree.map(np.array, trainables)]
            return {"error": 0.1 if len(self.seen) == 2 else 0.5}

    changes = {"evaluate_every": 2, "best": "error", "direction": "min"}
    task = Scored()
    with caplog.at_level("INFO"):
        found, step = trained(task, config(tmp_path, 8, **changes))
    equal(found, task.seen[1])
    assert step == 4
    assert np.abs(task.seen[3]["first"] - task.seen[1]["first"]).max() > 1e-4
    assert "best error at step 4" in caplog.text
    equal(train(Regression(devices=8), config(tmp_path, 8, **changes)), found)
    caplog.clear()
    best = tmp_path / "checkpoints" / "4" / "trainables"
    for path in filter(Path.is_file, best.rglob("*")):
        path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level("INFO"):
        last = trained(Regression(), config(tmp_path, 8, **changes))
    equal(last.trainables, task.seen[3])
    assert last.step == 8
    assert "4, is damaged" in caplog.text and "the last step, 8" in caplog.text


def test_a_figure_that_is_not_evaluated_cannot_be_best(tmp_path):
    with pytest.raises(DyntokError, match=r"best: no figure 'accuracy' in the evaluation \(size\)"):
        train(Regression(), config(tmp_path, 4, evaluate_every=2, best="accuracy"))
    with pytest.raises(DyntokError, match="evaluate_every is 0"):
        train(Regression(), config(tmp_path, 4, best="accuracy"))


def test_parameters_that_the_task_also_holds_are_not_overwritten(tmp_path, monkeypatch):
    task = Regression()
    start = task.init(jax.random.key(1))
    before = jax.tree.map(np.array, start)
    monkeypatch.setattr(task, "init", lambda key: start)
    after = train(task, config(tmp_path, 4))
    equal(before, start)
    assert np.abs(after["first"] - before["first"]).max() > 1e-4


def test_a_dry_run_says_what_a_step_needs(tmp_path):
    (found,) = dry_run(Regression(devices=8, width=64), config(tmp_path, 4))
    assert found.parameters == 4 * 64 + 64 + 64
    (one,) = dry_run(Regression(width=64), config(tmp_path, 4))
    # Of 16 x 4 rows: forward, a gradient of the first matrix, and those of the second's factors.
    assert one.flops == 2 * 16 * 4 * 64 * (2 * 4 + 3 * 1)
    assert found.flops == one.flops and found.bytes_per_device < one.bytes_per_device
    assert one.bytes_per_device > 3 * 4 * one.parameters
    assert one.compile_seconds > 0
    assert not (tmp_path / "checkpoints").exists()


def test_a_folder_is_kept_until_its_results_are_written(tmp_path):
    with alone(tmp_path / "run"):
        train(Regression(), config(tmp_path / "run", 4))  # which leaves it kept
        other = (tmp_path / "run" / ".lock").open("ab")
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(DyntokError, match="another run is writing"), alone(tmp_path / "run"):
        pass
    other.close()


def test_a_folder_is_of_one_run_at_a_time_until_that_is_killed(tmp_path):
    first = started(tmp_path, 2000)
    try:
        wait_for_step(tmp_path, 4, saved=True)
        with pytest.raises(DyntokError, match=r"^training\.out: another run is writing to "):
            train(Regression(), config(tmp_path, 2000))
        done = records(tmp_path)[-1]["step"]
        wait_for_step(tmp_path, done + 4)
    finally:
        first.kill()
        first.communicate()
    for checkpoint in checkpoints(tmp_path):
        shutil.rmtree(tmp_path / "checkpoints" / str(checkpoint))
    train(Regression(), config(tmp_path, 4))
    assert checkpoints(tmp_path) == [4]


def test_a_folder_that_cannot_be_locked_is_trained_in(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    train(Regression(), config(tmp_path, 4))
    assert checkpoints(tmp_path) == [4]
