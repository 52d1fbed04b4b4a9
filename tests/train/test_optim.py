"""Schedules by value, and where the optimizer's arrays lie."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dyntok_jax.config import MeshConfig
from dyntok_jax.embed.hypernet import HypernetConfig, abstract_hypernet
from dyntok_jax.models.encoder import EncoderConfig
from dyntok_jax.models.hf_config import Architecture
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.weights import model_module
from dyntok_jax.sharding import make_mesh
from dyntok_jax.types import DyntokError
from train import optim
from train.optim import OptimizerConfig, Phase, make_optimizer, optimizer_shardings


def rates(steps, *phases, at):
    _, schedule = make_optimizer(OptimizerConfig(phases=phases), steps)
    return [np.asarray(schedule(step)).item() for step in at]


def test_linear_with_warmup():
    found = rates(110, Phase(peak=1.0, warmup=10, end=0.5), at=(0, 5, 10, 60, 110))
    np.testing.assert_allclose(found, [0, 0.5, 1, 0.75, 0.5], atol=1e-6)


def test_cosine():
    found = rates(100, Phase(peak=2.0, decay="cosine", end=0.1), at=(0, 50, 100))
    np.testing.assert_allclose(found, [2, 1.1, 0.2], atol=1e-6)


def test_constant():
    found = rates(100, Phase(peak=3e-4, warmup=2, decay="constant"), at=(1, 2, 99))
    np.testing.assert_allclose(found, [1.5e-4, 3e-4, 3e-4], rtol=1e-6)


def test_two_phases_of_zett():
    """Linear to 3e-4 while learning the identity, linear to 4e-5, then cosine to a tenth."""
    phases = (
        Phase(peak=3e-4, steps=100, warmup=100),
        Phase(peak=4e-5, warmup=100, decay="cosine", end=0.1),
    )
    found = rates(1000, *phases, at=(0, 50, 99, 100, 150, 200, 600, 1000))
    np.testing.assert_allclose(
        found, [0, 1.5e-4, 2.97e-4, 0, 2e-5, 4e-5, 2.2e-5, 4e-6], rtol=1e-5, atol=1e-12
    )


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ((Phase(steps=3), Phase(steps=4)), r"3 \+ 4 do not add up to the run's 10"),
        ((Phase(steps=-1), Phase(steps=4)), r"-1 \+ 4 do not"),
        ((Phase(steps=10), Phase()), r"10 \+ -1 do not"),
        ((), "none do not"),
        ((Phase(warmup=11),), r"phases\[0\]\.warmup: 11"),
    ],
)
def test_phases_that_do_not_fit(phases, said):
    with pytest.raises(DyntokError, match=said):
        make_optimizer(OptimizerConfig(phases=phases), 10)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"accumulate": 0}, "accumulate: 0"),
        ({"accumulate": 4}, "4 batches make an update, and the last 2 .* 10 none; 12 steps would"),
        ({"accumulate": 11}, "the last 10 of the run's 10 none; 11 steps would do"),
        ({"name": "muon", "update_rms": 0.0}, "update_rms: 0.0"),
    ],
)
def test_values_that_do_not_exist(fields, said):
    with pytest.raises(DyntokError, match=said):
        make_optimizer(OptimizerConfig(**fields), 10)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_decay_leaves_vectors_alone(name):
    phases = (Phase(peak=0.1, decay="constant"),)
    vectors = {
        "bias": jnp.ones(2),
        "stacked": {"bias": jnp.ones((3, 2)), "scale": jnp.ones((3, 2))},
    }
    matrices = {"kernel": jnp.ones((2, 2)), "positions": jnp.ones((1, 2))}
    params = {"bias": matrices, "norm": vectors}
    optimizer, _ = make_optimizer(OptimizerConfig(name, phases, weight_decay=0.5), 10)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates: Any = optimizer.update(zero, optimizer.init(params), params)[0]
    for update in jax.tree.leaves(updates["norm"]):
        np.testing.assert_array_equal(update, np.zeros_like(update))
    expected = -0.05 if name == "adamw" else -0.5
    for update in jax.tree.leaves(updates["bias"]):
        np.testing.assert_allclose(update, np.full_like(update, expected), rtol=1e-6)


def test_decay_leaves_the_vectors_of_every_network_alone():
    encoder = EncoderConfig(16, 2, 2, 32, 66, vocab_size=8)
    networks = [
        abstract_params(model_module(Architecture(encoder, "xlm-roberta", None, True, 64))),
        abstract_hypernet(HypernetConfig(16, 16, 32, 2, 2, 7, 8, 1, 0, 2, separate_output=True)),
    ]
    for network in networks:
        mask = optim._matrices(nn.unbox(network))
        tables = ("kernel", "positions", "token_types", "languages", "extra")
        for path, decays in jax.tree_util.tree_leaves_with_path(mask):
            assert decays == (path[-1].key in tables), path


def test_the_gradient_is_clipped_as_a_whole():
    optimizer, _ = make_optimizer(OptimizerConfig(clip=1.0), 10)
    params = {"one": jnp.zeros(1), "two": jnp.zeros(1)}
    grads = {"one": jnp.array([3.0]), "two": jnp.array([4.0])}
    _, state = optimizer.update(grads, optimizer.init(params), params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (1,)]
    np.testing.assert_allclose(np.ravel(moments)[:2], [0.06, 0.08], rtol=1e-6)


def steps_of_muon(params, grads, **fields):
    phases = (Phase(peak=0.1, decay="constant"),)
    optimizer, _ = make_optimizer(OptimizerConfig("muon", phases, clip=0.0, **fields), 10)
    return optimizer.update(grads, optimizer.init(params), params)[0]


def test_muon_makes_all_directions_of_a_kernel_equally_strong():
    """Stacked or not, and of the size asked for, whatever the gradient's."""
    random = np.random.default_rng(0)
    plain, stacked = random.normal(size=(6, 4)), random.normal(size=(3, 4, 6))
    # Singular values of 100 : 10 : 3 : 1 in the gradient.
    left, _, right = np.linalg.svd(plain, full_matrices=False)
    grads = {"kernel": jnp.asarray(left * [100, 10, 3, 1] @ right)}, {"kernel": stacked}
    params = jax.tree.map(jnp.zeros_like, grads)
    updates: Any = steps_of_muon(params, grads, update_rms=0.5)
    for update in [updates[0]["kernel"], *updates[1]["kernel"]]:
        # Orthogonal matrices of this size have a root mean square of 6 ** -0.5 without the scale.
        values = np.linalg.svd(update, compute_uv=False) / (0.1 * 0.5 * np.sqrt(6))
        assert values.min() > 0.2 and values.max() < 1.3
    alignment = np.sum(np.asarray(updates[0]["kernel"]) * grads[0]["kernel"])
    assert alignment < 0


def test_muon_leaves_tables_and_vectors_to_nadam():
    params = {"bias": jnp.ones(4), "positions": jnp.ones((4, 4))}
    grads = jax.tree.map(lambda leaf: 3.0 * leaf, params)
    updates: Any = steps_of_muon(params, grads)
    nadam = optax.nadam(0.1, 0.9, 0.999, 1e-8)
    expected: Any = nadam.update(grads, nadam.init(params), params)[0]
    for name in params:
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_moments_lie_where_their_parameters_do(name):
    mesh = make_mesh(MeshConfig())
    cut = NamedSharding(mesh, PartitionSpec(None, "data"))
    whole = NamedSharding(mesh, PartitionSpec())
    params = {"cut": jnp.zeros((256, 256)), "small": jnp.zeros((8, 8))}
    where = {"cut": cut, "small": cut}
    optimizer, _ = make_optimizer(OptimizerConfig(name, accumulate=2), 10)
    found = optimizer_shardings(optimizer, params, where, mesh)
    state = optimizer.init(params)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True):
        assert sharding == (cut if leaf.shape in ((256, 256), (8, 8)) else whole)
    assert jax.tree.leaves(found).count(cut) == {"adamw": 6, "adafactor": 3}[name]
