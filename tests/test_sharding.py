"""The sharded forward: same numbers on every mesh, and everything lies where the rules say."""

# pyright: reportArgumentType=false

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dyntok_jax import sharding
from dyntok_jax.config import MeshConfig
from dyntok_jax.models.decoder import Decoder, DecoderConfig, DecoderLayer
from dyntok_jax.models.encoder import Encoder, EncoderConfig, EncoderLayer
from dyntok_jax.models.heads import SequenceClassifier
from dyntok_jax.models.layers import abstract_params, parameter
from dyntok_jax.sharding import (
    batch_part,
    compiled_forward,
    forward,
    gathered,
    make_mesh,
    param_shardings,
    shard_params,
)
from dyntok_jax.types import DyntokError

BATCH = P(("data", "fsdp"))
MODULES = {
    "encoder": Encoder(EncoderConfig(32, 2, 8, 48, 20, 2, 2, vocab_size=50)),
    "decoder": Decoder(DecoderConfig(32, 2, 16, 8, 4, 48, sliding_window=3, vocab_size=50)),
}
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((30, 32)).astype(np.float32)
IDS = RNG.integers(0, 30, (8, 12)).astype(np.int32)
MASK = np.arange(12) < np.arange(5, 13)[:, None]


def params_of(module) -> Any:
    inputs = jnp.zeros((1, 2, 32)), jnp.ones((1, 2), bool)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(1), *inputs)["params"])
    return jax.tree.map(lambda x: np.asarray(x * 5 if x.ndim == 3 else x), params)


@pytest.fixture(scope="module", params=list(MODULES))
def case(request):
    module = MODULES[request.param]
    params = params_of(module)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    placed = shard_params(params, abstract_params(module), mesh)
    return module, params, forward(module, placed, ROWS, IDS, MASK, mesh=mesh)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_same_numbers_on_every_mesh(case, sizes):
    module, params, alone = case
    mesh = make_mesh(MeshConfig(*sizes))
    placed = shard_params(params, abstract_params(module), mesh)
    hidden = forward(module, placed, ROWS, IDS, MASK, mesh=mesh)
    assert hidden.sharding.spec == BATCH and len(hidden.sharding.device_set) == 8
    assert hidden.addressable_shards[0].data.shape[0] == 8 // (sizes[0] * sizes[1])
    np.testing.assert_allclose(hidden[MASK], alone[MASK], atol=1e-5)
    assert np.abs(alone[MASK]).max() > 0.5


def test_parameters_lie_where_the_rules_say():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    module = MODULES["encoder"]
    params = shard_params(params_of(module), abstract_params(module), mesh)
    layers = params["stack"]["layers"]
    specs = {
        "query": (layers["attention"]["query"]["kernel"], P(None, "fsdp", "model"), (2, 16, 16)),
        "output": (layers["attention"]["output"]["kernel"], P(None, "model", "fsdp"), (2, 16, 16)),
        "key bias": (layers["attention"]["key"]["bias"], P(None, "model"), (2, 16)),
        "up": (layers["up"]["kernel"], P(None, "fsdp", "model"), (2, 16, 24)),
        "down": (layers["down"]["kernel"], P(None, "model", "fsdp"), (2, 24, 16)),
        "norm": (layers["attention_norm"]["scale"], P(None, "fsdp"), (2, 16)),
        "positions": (params["positions"], P(None, None), (20, 32)),
    }
    for name, (array, spec, part) in specs.items():
        assert array.sharding.spec == spec, name
        assert array.addressable_shards[0].data.shape == part, name


def test_activations_are_split_at_embeddings_and_residuals(case):
    module, params, _ = case
    mesh = make_mesh(MeshConfig(2, 2, 2))
    seen: dict[str, Any] = {}
    layer_class = EncoderLayer if isinstance(module, Encoder) else DecoderLayer

    def look(name, x):
        jax.debug.inspect_array_sharding(x, callback=lambda found: seen.update({name: found}))

    def spy(call, args, kwargs, context):
        if isinstance(context.module, layer_class):
            look("into a layer", args[0])
        result = call(*args, **kwargs)
        if isinstance(context.module, layer_class):
            look("out of a layer", result)
        return result

    def spied(module, *inputs):
        with nn.intercept_methods(spy):
            return gathered(module, *inputs)

    placed = shard_params(params, abstract_params(module), mesh)
    forward(module, placed, ROWS, IDS, MASK, mesh=mesh, method=spied)
    assert seen.keys() == {"into a layer", "out of a layer"}
    for name, found in seen.items():
        expected = jax.sharding.NamedSharding(mesh, BATCH)
        assert found.is_equivalent_to(expected, 3), name
    program = compiled_forward(module, mesh, gathered).lower(placed, ROWS, IDS, MASK, ()).as_text()
    # Of the rows, of what enters the layers, and of both residuals in a layer.
    assert program.count("sdy.sharding_constraint") == 4


def test_one_compilation_for_each_shape(case):
    module, params, _ = case
    mesh = make_mesh(MeshConfig(4, 1, 2))
    placed = shard_params(params, abstract_params(module), mesh)
    for length in (12, 8, 12, 8):
        forward(module, placed, ROWS, IDS[:, :length], MASK[:, :length], mesh=mesh)
    assert compiled_forward(module, mesh, gathered)._cache_size() == 2


def test_other_inputs_and_ways_into_a_module():
    module, mesh = MODULES["encoder"], make_mesh(MeshConfig(4, 1, 2))
    params = params_of(module)
    placed = shard_params(params, abstract_params(module), mesh)
    types = RNG.integers(0, 2, IDS.shape)
    ours = forward(module, placed, ROWS, IDS, MASK, types, mesh=mesh)
    theirs: Any = jax.jit(module.apply)({"params": params}, ROWS[IDS], MASK, types)
    np.testing.assert_allclose(ours[MASK], theirs[MASK], atol=1e-5)

    def first(module, rows, ids, mask, scale):
        return {"first": scale * module(rows[ids], mask)[:, 0], "ids": ids}

    ours = forward(module, placed, ROWS, IDS, MASK, 2.0, mesh=mesh, method=first)
    theirs = jax.jit(module.apply)({"params": params}, ROWS[IDS], MASK)
    np.testing.assert_allclose(ours["first"], 2 * theirs[:, 0], atol=2e-5)
    assert ours["first"].sharding.spec == ours["ids"].sharding.spec == BATCH


def test_bfloat16_runs_sharded(case):
    module, params, alone = case
    mesh = make_mesh(MeshConfig(2, 2, 2))
    rough = module.clone(dtype=jnp.bfloat16)
    placed = shard_params(params, abstract_params(rough), mesh)
    hidden = forward(rough, placed, ROWS, IDS, MASK, mesh=mesh)
    assert hidden.dtype == jnp.bfloat16
    error = np.abs(np.asarray(hidden, np.float32) - alone)[MASK].max()
    assert 0 < error < 0.06 * np.abs(alone[MASK]).max()


def test_heads_have_shardings_too():
    head = SequenceClassifier(3)
    abstract = abstract_params(head, jnp.zeros((1, 1, 32)))
    shardings = param_shardings(abstract, make_mesh(MeshConfig(2, 2, 2)))
    assert shardings["dense"]["kernel"].spec == P("fsdp", "model")
    assert shardings["classes"]["kernel"].spec == P("model", None)


class Odd(nn.Module):
    axes: tuple[str | None, ...] | None

    @nn.compact
    def __call__(self, x):
        if self.axes is None:
            return x + self.param("odd", nn.initializers.zeros, (32, 32))
        return x + parameter(self, "odd", nn.initializers.zeros, (32, 32), self.axes)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Odd(None), "parameter odd is declared without logical axes"),
        (Odd(("D", "X")), "parameter odd: no sharding rule for axis 'X' (of B, T, D, "),
        (Odd(("F", "NH")), "parameter odd: axes ('F', 'NH') are cut along 'model' twice"),
    ],
)
def test_parameters_without_a_place_are_refused(module, said):
    with pytest.raises(DyntokError) as error:
        param_shardings(abstract_params(module, jnp.zeros((32, 32))), make_mesh(MeshConfig()))
    assert said in str(error.value)


def test_parts_must_be_equal():
    module = Encoder(EncoderConfig(36, 2, 4, 48))
    with pytest.raises(
        DyntokError, match=r"attention/key/bias: axis KH of 36 cannot be cut into 8"
    ):
        param_shardings(abstract_params(module), make_mesh(MeshConfig(1, 1, 8)))
    module = MODULES["encoder"]
    mesh = make_mesh(MeshConfig(2, 2, 2))
    placed = shard_params(params_of(module), abstract_params(module), mesh)
    with pytest.raises(DyntokError, match="a batch of 6 does not split over data×fsdp = 4"):
        forward(module, placed, ROWS, IDS[:6], MASK[:6], mesh=mesh)


def test_parameters_must_be_on_the_mesh(case):
    module, params, _ = case
    mesh = make_mesh(MeshConfig())
    other = shard_params(params, abstract_params(module), make_mesh(MeshConfig(1, 8, 1)))
    for misplaced in (params, jax.tree.map(jnp.asarray, params), other):
        with pytest.raises(DyntokError, match="pass them through shard_params"):
            forward(module, misplaced, ROWS, IDS, MASK, mesh=mesh)


def of_processes(monkeypatch, processes):
    """A mesh whose blocks along data×fsdp lie, one by one, on devices of these processes."""

    class Device:
        """Known by itself, as a dictionary's key."""

        def __init__(self, process: int):
            self.process_index = process

    devices = {Device(p): (slice(i, i + 1),) for i, p in processes}
    found = SimpleNamespace(devices_indices_map=lambda shape: devices)
    monkeypatch.setattr(sharding, "batch_sharding", lambda mesh: found)
    blocks = 1 + max(i for i, _ in processes)
    return SimpleNamespace(shape={"data": 1, "fsdp": blocks, "model": 1})


def test_the_part_of_a_process_follows_the_mesh(monkeypatch):
    # As on a v4-16, where the mesh follows the wires and not the hosts.
    mesh: Any = of_processes(monkeypatch, [*enumerate([0, 1, 0, 1, 0, 1, 0, 1])])
    first, second = batch_part(mesh, 0), batch_part(mesh, 1)
    assert first == (0, 2, (0, 2, 4, 6)) and second == (1, 2, (1, 3, 5, 7))
    np.testing.assert_array_equal(second.places(8), [2, 3, 6, 7, 10, 11, 14, 15])
    whole = np.arange(16)
    both = np.concatenate([first.of(whole), second.of(whole)])
    assert sorted(both) == [*whole]
    with pytest.raises(DyntokError, match="6 rows do not split over 4"):
        first.places(6)
    with pytest.raises(DyntokError, match="15 rows do not split into 2"):
        first.of(whole[:15])


def test_processes_apart_along_model_hold_the_same_part(monkeypatch):
    mesh: Any = of_processes(monkeypatch, [(0, 0), (1, 0), (0, 1), (1, 1), (2, 2), (3, 2), (2, 3)])
    with pytest.raises(DyntokError, match="1×4×1"):
        batch_part(mesh, 0)  # the last process holds less than the third
    pairs = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 2), (3, 2), (2, 3), (3, 3)]
    mesh = of_processes(monkeypatch, pairs)
    assert [batch_part(mesh, p) for p in range(4)] == [(0, 2, (0, 1))] * 2 + [(1, 2, (2, 3))] * 2


@pytest.mark.parametrize("processes", [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1]])
def test_parts_of_one_size_are_wanted(monkeypatch, processes):
    """All processes say so, since those that went on would wait for the others."""
    mesh: Any = of_processes(monkeypatch, [*enumerate(processes)])
    for process in (0, 1):
        with pytest.raises(DyntokError, match="a part of one size"):
            batch_part(mesh, process)


def test_mesh_sizes(caplog):
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "model": 1}
    assert dict(make_mesh(MeshConfig(2, -1, 2)).shape) == {"data": 2, "fsdp": 2, "model": 2}
    with caplog.at_level(logging.WARNING):
        assert make_mesh(MeshConfig(1, 2, 1)).size == 2
    assert "mesh 1×2×1 uses 2 of 8 devices" in caplog.text
    for sizes in ((0, 1, 1), (-1, -1, 1), (-2, 1, 1), (-1, 3, 1), (16, 1, 1), (-1, 16, 1)):
        with pytest.raises(DyntokError, match="mesh"):
            make_mesh(MeshConfig(*sizes))
