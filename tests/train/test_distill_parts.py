"""Distillation in several processes: each reads and merges its own, and they train as one."""

from __future__ import annotations

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distill_parts import joined, part_streams, write_run
from safetensors.numpy import load_file
from test_two_processes import HYPERNET, run_both

from dyntok_jax.config import read_config
from dyntok_jax.embed.zett import save_hypernet
from dyntok_jax.encoding import mean_over
from dyntok_jax.sharding import BatchPart, on_host
from train.config import HypernetRun
from train.distill_losses import cosine_distance
from train.hypernet import make_task
from train.loop import train

LOSSES = {
    "encoder": {"hidden": 1.0, "pooled": 1.0},
    "decoder": {"hidden": 1.0, "pooled": 0.0, "divergence": 1.0, "output": 1.0},
}


@pytest.fixture(params=["encoder", "decoder"])
def task(request, tmp_path):
    folder = request.getfixturevalue(request.param)
    path = write_run(tmp_path / "parts", folder, LOSSES[request.param])
    return make_task(read_config(HypernetRun, path, ["compute.mesh={data: 1}"]))


@pytest.mark.parametrize("blocks", [((0,), (1,)), ((0, 3), (1, 2))])
def test_parts_together_lose_what_they_lose_alone(task, blocks):
    first, second = (next(stream).batch for stream in part_streams(task))
    assert first.sizes != second.sizes or not np.array_equal(first.base_ids, second.base_ids)
    whole = joined(task, [first, second], blocks)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * rng.normal(size=leaf.shape).astype(leaf.dtype),
        task.init(jax.random.key(0)),
    )
    loss = jax.jit(lambda batch: task.loss(params, task.frozen, batch, jax.random.key(1))[1])
    parts, together = [loss(first), loss(second)], loss(whole)
    weights = {"hidden": [batch.mask.sum() for batch in (first, second)]}
    following = [(batch.mask[:, 1:] & batch.mask[:, :-1]).sum() for batch in (first, second)]
    weights |= {"output": following, "divergence": following}
    for name in set(weights) & set(together):
        expected = np.average([part[name] for part in parts], weights=weights[name])
        assert float(together[name]) == pytest.approx(expected, rel=1e-4), name
    if "pooled" in together:
        pooled = []
        for part in (first, second):
            batch = jax.tree.map(jnp.asarray, part)
            states = task.states(task.predicted(params, task.frozen, batch), task.frozen, batch)
            # The states of dynamic tokens, each for every base token that it stands for.
            owner = jnp.minimum(batch.owner, batch.mask.shape[1] - 1)
            spread = jnp.take_along_axis(states.student, owner[..., None], axis=1)
            pooled.append((mean_over(spread, batch.base_mask), states.pooled))
        student, teacher = (jnp.concatenate(arrays) for arrays in zip(*pooled, strict=True))
        expected = cosine_distance(student, teacher, jnp.ones((len(student), 1), bool))
        assert float(together["pooled"]) == pytest.approx(float(expected), rel=1e-4)


def test_a_part_is_the_batch_in_larger_arrays(task):
    batch = next(part_streams(task)[0]).batch
    sizes = [size + 3 for size in batch.sizes]
    part = task.preparation.as_part(batch, sizes, BatchPart(1, 2, (1,)))
    assert list(part.sizes) == sizes
    rows = np.where(batch.mask, batch.ids - len(batch.own), -1)
    moved = part.ids[:, : batch.ids.shape[1]]
    short, long = (getattr(part, name) for name in ("short", "long"))
    for row, place in zip(*np.nonzero(batch.mask), strict=True):
        index, before = moved[row, place], rows[row, place]
        if before < 0:
            assert part.own[index - len(part.own)] == batch.own[batch.ids[row, place]]
        elif before < len(batch.short):
            np.testing.assert_array_equal(
                short[index - 2 * len(part.own) - len(short)], batch.short[before]
            )
        else:
            start = 2 * (len(part.own) + len(short)) + len(long)
            np.testing.assert_array_equal(
                long[index - start], batch.long[before - len(batch.short)]
            )
    assert (part.owner[~part.base_mask] == sizes[0]).all()
    assert np.isneginf(part.short_shift[-3:]).all() and np.isneginf(part.long_shift[-3:]).all()
    assert (short[-3:] == task.preparation.pad_id).all()


@pytest.mark.slow
def test_two_processes_train_as_one_on_both_parts(decoder, tmp_path, monkeypatch):
    two = write_run(tmp_path / "two", decoder, LOSSES["decoder"])
    run_both(["-c", HYPERNET], two, "compute.mesh={data: 1, fsdp: 2}")
    monkeypatch.setitem(os.environ, "XLA_FLAGS", "")
    path = write_run(tmp_path / "one", decoder, LOSSES["decoder"])
    run = read_config(HypernetRun, path, ["compute.mesh={data: 1}"])
    alone = make_task(run)

    def both(position):
        for loaded in zip(*part_streams(alone, position), strict=True):
            yield loaded[0]._replace(batch=joined(alone, [part.batch for part in loaded]))

    monkeypatch.setattr(alone, "batches", both)
    params = alone.hypernet_params(train(alone, run.training))
    save_hypernet(tmp_path / "alone", alone.hypernet_config, on_host(params), dtype=jnp.float16)
    found, expected = (
        load_file(tmp_path / folder / "model.safetensors")
        for folder in ("two/run/hypernet", "alone")
    )
    assert found.keys() == expected.keys()
    run = json.loads((tmp_path / "two/run/checkpoints/6/run/metadata").read_text("utf-8"))
    texts = [part["sources"][0] for part in run["position"]["of_parts"]]
    assert texts == [6 * 16, 6 * 16]  # of all parts, of files that are read by turns
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, atol=2e-3, err_msg=name)
