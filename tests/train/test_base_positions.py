"""Distillation where dynamic tokens have the positions of their base tokens."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from dyntok_jax.config import ComputeConfig
from dyntok_jax.embed.zett import load_hypernet, save_hypernet
from dyntok_jax.models.encoder import Encoder
from dyntok_jax.types import DyntokError
from train.config import HypernetRun, HypernetShape
from train.data import DataConfig
from train.distill import Distillation
from train.distill_config import DistillConfig
from train.hypernet import make_task
from train.loop import TrainingConfig
from train.text_sources import TextSource

SHAPE = HypernetShape(hidden=16, feed_forward=16, layers=1, heads=2, surface_length=6)
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Habari ya asubuhi? Watoto wanacheza mpira nje ya nyumba ya babu yao.",
]


@pytest.fixture
def run(tmp_path):
    """A run for a model."""
    (tmp_path / "xx.txt").write_text("\n".join(TEXTS * 8), "utf-8")

    def make(folder, **shape) -> HypernetRun:
        return HypernetRun(
            str(folder),
            DataConfig((TextSource("xx", files=str(tmp_path / "xx.txt")),), texts=16, workers=0),
            TrainingConfig(tmp_path / "run", steps=1),
            hypernet=dataclasses.replace(SHAPE, **shape),
            distill=DistillConfig(sequences=8, max_length=32, merge_rates=(100.0, 100.0)),
            compute=ComputeConfig(),
        )

    return make


def test_all_else_stays_where_it_was(run, encoder):
    """A token keeps its position wherever the text before it is merged."""
    task = make_task(run(encoder, base_positions=True))
    own = make_task(run(encoder))
    batch = next(task.batches(None)).batch
    assert batch.mask.sum() < batch.base_mask.sum()
    table = np.asarray(task.frozen["model"]["positions"])

    def student(task, positions):
        # Of a network whose only memory of positions is the given table.
        frozen = task.frozen | {"model": task.frozen["model"] | {"positions": positions}}
        rows = task.predicted(task.init(jax.random.key(0)), frozen, batch)
        return np.asarray(jax.jit(task.states)(rows, frozen, batch).student)

    assert isinstance(task, Distillation) and isinstance(task.network, Encoder)
    offset = task.network.config.position_offset
    row = 0
    counts = np.diff(batch.last[row][batch.mask[row]], prepend=-1)
    middle = batch.last[row][batch.mask[row]] - (counts - 1) // 2
    # Rows of the table put where the plain network looks for them.
    moved = table.copy()
    moved[offset : offset + len(middle)] = table[offset + middle]
    wanted, found = student(own, moved), student(task, table)
    real = batch.mask[row]
    np.testing.assert_allclose(found[row][real], wanted[row][real], rtol=1e-4, atol=1e-5)
    assert np.abs(found[row][real] - student(own, table)[row][real]).max() > 1e-3


def test_decoders_are_refused(run, decoder):
    with pytest.raises(DyntokError, match=r"hypernet\.base_positions: a decoder"):
        make_task(run(decoder, base_positions=True))


def test_goes_on_from_a_hypernetwork_of_other_positions(run, encoder, tmp_path):
    task = make_task(run(encoder))
    params = jax.device_get(task.hypernet_params(task.init(jax.random.key(0))))
    save_hypernet(tmp_path / "first", task.hypernet_config, params)
    later = make_task(run(encoder, base_positions=True, start=tmp_path / "first"))
    assert later.hypernet_config.base_positions
    save_hypernet(tmp_path / "second", later.hypernet_config, params)
    assert load_hypernet(tmp_path / "second")[0].base_positions
    assert not load_hypernet(tmp_path / "first")[0].base_positions
