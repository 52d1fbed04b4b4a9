"""Checkpoints: what they give back, onto which mesh, and what damage does."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dyntok_jax.checkpoint import Checkpoints
from dyntok_jax.config import MeshConfig
from dyntok_jax.sharding import make_mesh, replicated
from dyntok_jax.types import DyntokError

SETTINGS = {"model": {"name": "a", "sizes": (1, 2)}, "data": ["x"]}


def trees(step, devices=1):
    """Parameters and the rest after some steps, the first parameter cut over the devices."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    cut, whole = NamedSharding(mesh, PartitionSpec("data")), replicated(mesh)
    params = {
        "cut": jax.device_put(np.arange(64.0, dtype=np.float32).reshape(8, 8) + step, cut),
        "half": jax.device_put(jnp.full(5, step, jnp.bfloat16), whole),
    }
    rest = {
        "count": jax.device_put(np.int32(step), whole),
        "flag": jax.device_put(np.array([True, False]), whole),
        "key": jax.device_put(jax.random.key_data(jax.random.key(step)), whole),
    }
    return params, rest


def abstract(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def save(checkpoints, step, **options):
    position = {"file": "ünï", "line": [step]}
    checkpoints.save(step, *trees(step), position, SETTINGS, **options)


def warned(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("dyntok_jax")]


def restore(checkpoints, devices=1, settings=SETTINGS, **options):
    return checkpoints.restore(*map(abstract, trees(0, devices)), settings, **options)


def saved(folder, *steps):
    """A folder with these checkpoints; the figure is the better, the earlier."""
    with Checkpoints(folder, keep=5, best="score") as checkpoints:
        for step in steps:
            save(checkpoints, step, figures={"score": -step})
        checkpoints.wait()
    return folder


def equal(restored, step):
    assert restored.step == step
    assert restored.position == {"file": "ünï", "line": [step]}
    found = (restored.trainables, restored.rest)
    jax.tree.map(np.testing.assert_array_equal, found, trees(step))
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(
        lambda leaf: leaf.dtype, trees(step)
    )


@pytest.mark.parametrize("devices", [1, 8])
def test_the_newest_comes_back_on_any_mesh(tmp_path, devices):
    saved(tmp_path, 3, 7)
    with Checkpoints(tmp_path) as checkpoints:
        restored = restore(checkpoints, devices)
    assert restored is not None
    equal(restored, 7)
    assert restored.trainables["cut"].addressable_shards[0].data.shape == (8 // devices, 8)


def test_an_empty_folder_has_none_and_says_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO, "absl")
    with Checkpoints(tmp_path / "new" / "deep") as checkpoints:
        assert restore(checkpoints) is None
        assert checkpoints.steps() == []
    assert not caplog.records


def test_the_last_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2, best="score") as checkpoints:
        for step, score in enumerate([0.1, 0.9, 0.3, 0.2, 0.4]):
            save(checkpoints, step, figures={"score": score})
        save(checkpoints, 5)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 4, 5]
    with Checkpoints(tmp_path, keep=2, best="score") as checkpoints:
        assert checkpoints.steps() == [1, 4, 5]
        assert checkpoints.best_step() == 1


@pytest.mark.parametrize("direction", ["max", "min"])
def test_a_figure_that_is_not_finite_is_never_the_best(tmp_path, caplog, direction):
    scores = (0.5, float("nan"), 0.7 if direction == "min" else 0.3, float("inf"))
    with Checkpoints(tmp_path, keep=1, best="score", direction=direction) as checkpoints:
        for step, score in enumerate(scores):
            save(checkpoints, step, figures={"score": score})
            checkpoints.wait()
            assert checkpoints.best_step() == 0
        assert checkpoints.steps() == [0, 3]
    assert [said.split(": ")[1] for said in warned(caplog)] == [
        "step 1 cannot be the best",
        "step 3 cannot be the best",
    ]


def test_what_is_being_saved_may_be_overwritten(tmp_path):
    """The training step takes over the arrays it was given while the save is running."""
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    big = jnp.arange(2_000_000, dtype=jnp.float32)
    with Checkpoints(tmp_path) as checkpoints:
        params = {"big": big + 0}
        where = abstract(params)
        rest = {"one": jnp.zeros(())}
        checkpoints.save(1, params, rest, None, {})
        for _ in range(3):
            params = step(params)
        jax.block_until_ready(params)
        checkpoints.wait()
        restored = checkpoints.restore(where, abstract(rest), {})
    assert restored is not None
    np.testing.assert_array_equal(restored.trainables["big"], big)


def truncate(folder):
    for path in files(folder):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder):
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def change_values(folder):
    """Another checkpoint's parameters: whole files, but not what was saved here."""
    shutil.rmtree(folder / "trainables")
    shutil.copytree(folder.parent / "3" / "trainables", folder / "trainables")


def garble_json(folder):
    for path in files(folder / "run"):
        path.write_bytes(b"{garbled")


def lose_metadata(folder):
    (folder / "_CHECKPOINT_METADATA").write_bytes(b"\0" * 10)
    truncate(folder / "rest")


def lose_figures(folder):
    """Damage to what is saved, and to the figures on top."""
    garble_json(folder)
    garble_figures(folder)


def garble_figures(folder):
    (folder / "metrics" / "metrics").write_bytes(b"\xff{garbled")


def other_figures(folder):
    (folder / "metrics" / "metrics").write_text('{"other": 1.0, "score": "good"}')


def no_figures(folder):
    (folder / "metrics" / "metrics").write_text("[1.0]")


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


DAMAGES = [truncate, empty, change_values, garble_json, lose_metadata, lose_figures]


@pytest.mark.parametrize("best", [None, "score"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, damage, best):
    saved(tmp_path, 3, 7)
    damage(tmp_path / "7")
    left = {path.relative_to(tmp_path): path.read_bytes() for path in files(tmp_path / "7")}
    caplog.clear()
    with (
        Checkpoints(tmp_path, best=best) as checkpoints,
        caplog.at_level(logging.WARNING, "dyntok_jax"),
    ):
        restored = restore(checkpoints)
        assert restored is not None
        equal(restored, 3)
        warnings = warned(caplog)
        assert len(warnings) == 1
        assert "step 3" in warnings[0] and "7: " in warnings[0] and "\n" not in warnings[0]
        aside = tmp_path.with_name(f"{tmp_path.name}_damaged")
        assert f"now in {aside} (" in warnings[0]
        assert {path.relative_to(aside): path.read_bytes() for path in files(aside)} == left
        save(checkpoints, 7, figures={"score": 1.0})
        checkpoints.wait()
        again = restore(checkpoints)
        assert again is not None
        equal(again, 7)
        assert checkpoints.best_step() == 7
        assert warned(caplog) == warnings


def test_damage_to_a_step_made_anew_is_set_aside_beside_the_first(tmp_path):
    folder = saved(tmp_path / "run", 3)
    for _ in range(2):
        saved(folder, 7)
        garble_json(folder / "7")
        with Checkpoints(folder) as checkpoints:
            restored = restore(checkpoints)
        assert restored is not None and restored.step == 3
    assert {path.name for path in (tmp_path / "run_damaged").iterdir()} == {"7", "7_2"}


def test_damage_that_cannot_be_moved_is_an_error(tmp_path, monkeypatch):
    folder = saved(tmp_path / "run", 3, 7)
    garble_json(folder / "7")
    with Checkpoints(folder) as checkpoints, monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", Mock(side_effect=OSError(errno.EROFS, "read-only")))
        with pytest.raises(DyntokError, match=r"run_damaged: .*cannot be moved \(.*read-only"):
            restore(checkpoints)
    assert (folder / "7").is_dir()


NOT_OF_THE_FILES = [
    OSError(errno.EMFILE, "Too many open files"),
    TimeoutError("no answer"),
    MemoryError(),
    ValueError('UNAVAILABLE: Error opening "zarr" driver'),
]


@pytest.mark.parametrize("error", NOT_OF_THE_FILES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("read", ["_read_run", "_read_arrays", "_read_trainables"])
def test_what_cannot_be_read_now_is_no_damage(tmp_path, monkeypatch, error, read):
    saved(tmp_path, 3, 7)
    with Checkpoints(tmp_path, best="score", direction="min") as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, read, Mock(side_effect=error))
            reads: list[Any] = [lambda: checkpoints.restore_best(abstract(trees(0)[0]))]
            if read != "_read_trainables":
                reads.append(lambda: restore(checkpoints))
            for attempt in reads if read != "_read_arrays" else reads[1:]:
                with pytest.raises(
                    DyntokError, match=r"checkpoint 7 cannot be read now \(.*may be"
                ):
                    attempt()
        assert checkpoints.steps() == [3, 7] and (tmp_path / "7").is_dir()
        restored = restore(checkpoints)
        assert restored is not None
        equal(restored, 7)


def test_figures_that_cannot_be_read_now_are_no_damage(tmp_path, monkeypatch):
    saved(tmp_path, 3)
    error = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.metrics", Mock(side_effect=error))
    with pytest.raises(DyntokError, match=r"figures of step 3: .*Input/output error"):
        Checkpoints(tmp_path, best="score")


def test_damage_that_another_process_sees_is_damage_to_all(tmp_path, monkeypatch):
    saved(tmp_path, 3, 7)
    # Two reads of step 7, two of step 3, and the move.
    answers = iter([[None, None], [None, ["cut", True]], *[[None, None]] * 3])
    monkeypatch.setattr("dyntok_jax.checkpoint.of_all_processes", lambda _: next(answers))
    with Checkpoints(tmp_path) as checkpoints:
        restored = restore(checkpoints)
        assert restored is not None and restored.step == 3
        answers = iter([[["cut", True], ["no answer", False]]])
        with pytest.raises(DyntokError, match=r"3 cannot be read now \(no answer\)"):
            restore(checkpoints)


@pytest.mark.parametrize("direction", ["max", "min"])
@pytest.mark.parametrize("damage", [garble_figures, other_figures, no_figures])
def test_damaged_figures_are_never_the_best(tmp_path, caplog, damage, direction):
    saved(tmp_path, 3, 5, 7)
    for step in ("3", "7"):  # the best of either direction
        damage(tmp_path / step)
    with (
        Checkpoints(tmp_path, best="score", direction=direction) as checkpoints,
        caplog.at_level(logging.WARNING, "dyntok_jax"),
    ):
        restored = restore(checkpoints)
        assert restored is not None
        equal(restored, 7)
        assert checkpoints.best_step() == 5
        (warning,) = warned(caplog)
        assert "cannot be the best (3: " in warning and "; 7: " in warning
        save(checkpoints, 8)
        checkpoints.wait()
        assert checkpoints.steps() == [5, 7, 8]


def test_another_figure_may_be_the_best_from_now_on(tmp_path, caplog):
    saved(tmp_path, 3, 7)
    with Checkpoints(tmp_path, best="loss", direction="min") as checkpoints:
        assert restore(checkpoints) is not None
        assert warned(caplog)[0].endswith(
            "cannot be the best (3: no finite figure 'loss'; 7: no finite figure 'loss')"
        )
        assert checkpoints.restore_best(abstract(trees(0)[0])) is None
        save(checkpoints, 8, figures={"loss": 2.0})
        checkpoints.wait()
        assert checkpoints.best_step() == 8


def test_figures_are_not_read_where_no_best_is_kept(tmp_path, caplog):
    saved(tmp_path, 3)
    garble_figures(tmp_path / "3")
    with Checkpoints(tmp_path) as checkpoints:
        restored = restore(checkpoints)
    assert restored is not None and not warned(caplog)


def test_reads_that_end_too_late_say_nothing(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    before = sys.unraisablehook
    with Checkpoints(tmp_path):
        for words in ("Event loop is closed", "another"):
            said: Any = SimpleNamespace(exc_value=RuntimeError(words))
            sys.unraisablehook(said)
    assert [str(said.exc_value) for said in heard] == ["another"]
    assert sys.unraisablehook == before


def test_a_folder_that_cannot_be_made_leaves_logging_as_it_was(tmp_path):
    (tmp_path / "file").touch()
    before = logging.getLogger("absl").level, sys.unraisablehook
    with pytest.raises(DyntokError, match="cannot hold checkpoints"):
        Checkpoints(tmp_path / "file" / "run")
    assert (logging.getLogger("absl").level, sys.unraisablehook) == before


def test_nothing_but_damage_is_an_error_and_nothing_is_moved(tmp_path):
    saved(tmp_path, 3, 7)
    truncate(tmp_path / "3")
    truncate(tmp_path / "7")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(DyntokError, match=r"no checkpoint can be read \(7: .*; 3: "),
    ):
        restore(checkpoints)
    assert (tmp_path / "3").is_dir() and (tmp_path / "7").is_dir()


def test_a_checkpoint_says_what_its_figures_are_of(tmp_path):
    saved(tmp_path, 3)
    run = tmp_path / "3" / "run" / "metadata"
    content = json.loads(run.read_text("utf-8"))
    assert content.pop("evaluated") == {}
    with Checkpoints(tmp_path, best="score") as checkpoints:
        with pytest.raises(DyntokError, match=r"evaluated\.texts: absent there, 9 here"):
            restore(checkpoints, evaluated={"texts": 9})
        run.write_text(json.dumps(content), "utf-8")
        with pytest.raises(DyntokError, match=r"no checkpoint can be read \(3: it lacks evaluated"):
            restore(checkpoints)


FULL = """
import resource, signal, sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
import jax, jax.numpy as jnp
from dyntok_jax.checkpoint import Checkpoints
from dyntok_jax.types import DyntokError
from test_checkpoint import abstract

params = {"a": jax.random.normal(jax.random.key(0), (300_000,))}
rest = {"count": jnp.int32(0)}
with Checkpoints(Path(sys.argv[1]), keep=1) as checkpoints:
    checkpoints.save(1, params, rest, None, {})
    checkpoints.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    try:
        checkpoints.save(2, {"a": params["a"] + 1}, rest, None, {})
        checkpoints.wait()
    except DyntokError as error:
        print("SAID", error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with Checkpoints(Path(sys.argv[1]), keep=1) as checkpoints:
    restored = checkpoints.restore(abstract(params), abstract(rest), {})
    assert restored.step == 1, restored.step
    assert (restored.trainables["a"] == params["a"]).all()
    checkpoints.save(2, params, rest, None, {})
    checkpoints.wait()
    print("STEPS", checkpoints.steps())
"""


def test_a_full_disk_leaves_the_earlier_checkpoint_good(tmp_path):
    """A limit on the size of files stands for the full disk."""
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), str(root / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), tmp_path],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said, steps = done.stdout.strip().splitlines()
    assert "a checkpoint could not be saved" in said and "earlier checkpoints are good" in said
    assert steps == "STEPS [2]"
