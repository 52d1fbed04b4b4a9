"""The hypernetwork against recorded outputs, stage by stage, and its variants."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.sharding import PartitionSpec

from dyntok_jax.config import MeshConfig
from dyntok_jax.embed.hypernet import Hypernet, HypernetConfig, abstract_hypernet
from dyntok_jax.embed.zett import load_hypernet
from dyntok_jax.models.encoder import EncoderLayer
from dyntok_jax.sharding import forward, make_mesh, param_shardings, shard_params

NAMES = [
    "tiny_tied_lang",
    "tiny_tied_nolang_norescale_nobias",
    "mistral_like_two_heads",
    "default_heads_hidden128",
]
TINY = HypernetConfig(
    width=4, hidden=8, feed_forward=16, layers=2, heads=2, surface_length=3,
    vocab_size=10, extra_tokens=2, pad_id=1, languages=3, separate_output=True,
)  # fmt: skip
LAYERS = ("['last']", "['stack']['layers']")
FORMS = np.array([[0, 5, 1], [11, 1, 1], [1, 1, 1], [9, 10, 2]], np.int32)


def source_of(config: HypernetConfig) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((config.vocab_size, config.source_width)).astype(np.float32)


@cache
def random_params(config: HypernetConfig) -> dict[str, Any]:
    """Parameters of a config, none of them at the zeros or ones they begin with."""
    shapes = meta.unbox(abstract_hypernet(config))
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda s: (rng.standard_normal(s.shape) * 0.3 + 0.1).astype(np.float32), shapes
    )


@partial(jax.jit, static_argnames=("config", "dtype"))
def apply(config, params, forms, mask, source, language=0, dtype=jnp.float32) -> Any:
    return Hypernet(config, dtype).apply({"params": params}, source, forms, mask, language)


def run(config: HypernetConfig, params: dict[str, Any], **options: Any) -> Any:
    mask = np.not_equal(FORMS, config.pad_id)
    return apply(config, params, FORMS, mask, source_of(config), **options)


@pytest.mark.parametrize("name", NAMES)
def test_recorded_outputs(recorded_hypernet, name: str):
    """All 262 rows of each recording, those without any piece too, to 1e-5."""
    recorded = recorded_hypernet(name)
    config, params = load_hypernet(recorded.folder)
    forms = recorded.outputs["surface_forms"]
    forward = jax.jit(Hypernet(config).apply)
    for language in recorded.facts["lang_indexes"]:
        rows = forward(
            {"params": params}, recorded.source, forms, forms != config.pad_id, language or 0
        )
        case = "nolang" if language is None else f"lang{language}"
        compared = {"in": rows.input, "out": rows.output, "bias": rows.bias}
        compared = {key: value for key, value in compared.items() if value is not None}
        for key, value in compared.items():
            np.testing.assert_allclose(value, recorded.outputs[f"{case}_{key}"], atol=1e-5, rtol=0)
            assert value.dtype == jnp.float32
        left = {key for key in ("in", "out", "bias") if f"{case}_{key}" in recorded.outputs}
        # The original gives zeros where it predicts no bias.
        assert left - compared.keys() == (set() if config.predict_bias else {"bias"})


@pytest.mark.parametrize("name", NAMES)
def test_recorded_stages(recorded_hypernet, name: str):
    recorded = recorded_hypernet(name)
    config, params = load_hypernet(recorded.folder)
    forms = recorded.outputs["surface_forms"][:24]
    language = recorded.facts["lang_indexes"][0]
    capture = partial(Hypernet(config).apply, capture_intermediates=True, mutable=["intermediates"])
    _, state = jax.jit(capture)(
        {"params": params}, recorded.source, forms, forms != config.pad_id, language or 0
    )
    stages: Any = state["intermediates"]
    case = "nolang" if language is None else f"lang{language}"
    found = {
        "input_projection": stages["read_projector"]["__call__"][0],
        "embeddings_after_ln": stages["embedding_norm"]["__call__"][0],
    }
    before = stages["stack"]["layers"]["__call__"][0] if config.layers > 1 else []
    layers = [*before, stages["last"]["__call__"][0]]
    found |= {f"layer{i}": layer for i, layer in enumerate(layers)}
    assert len(layers) == config.layers and layers[-1].shape[1] == 1
    for stage, value in found.items():
        wanted = recorded.outputs[f"{case}_stage_{stage}_first24rows"][:, : value.shape[1]]
        np.testing.assert_allclose(value, wanted, atol=1e-5, rtol=0, err_msg=stage)


def test_a_last_layer_gives_what_a_whole_one_has_at_the_first_place():
    config = replace(TINY, layers=3).encoder
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(5, 4, config.width)), jnp.float32)
    mask = jnp.asarray(rng.random((5, 1, 4)) < 0.6).at[..., 0].set(True)
    whole, last = EncoderLayer(config), EncoderLayer(config, first=True)
    params: Any = meta.unbox(whole.init(jax.random.key(0), x, mask))
    found, wanted = (
        np.asarray(last.apply(params, x, mask)),
        np.asarray(whole.apply(params, x, mask)),
    )
    assert found.shape == (5, 1, config.width)
    np.testing.assert_allclose(found, wanted[:, :1], atol=1e-6)


def test_tied_variants_predict_input_rows_only():
    config = replace(TINY, separate_output=False, predict_bias=False)
    rows = run(config, random_params(config))
    assert rows.input.shape == (4, 4) and rows.output is None and rows.bias is None


def test_one_head_equals_two_with_its_halves():
    """A single head is a projection shared by both and two halves of the last kernel."""
    single = replace(TINY, single_head=True)
    params = random_params(single)
    two = dict(params)
    head, projector = params["head"], params["head_projector"]
    two["head"] = {"kernel": head["kernel"][:, :4], "bias": head["bias"][:4]}
    two["output_head"] = {"kernel": head["kernel"][:, 4:], "bias": head["bias"][4:]}
    two["output_head_projector"] = projector
    one_rows, two_rows = run(single, params), run(TINY, two)
    for one, other in zip(one_rows, two_rows, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.abs(np.asarray(one_rows.input) - np.asarray(one_rows.output)).max() > 0.1


def test_every_parameter_but_the_unused_rows_matters():
    """Each parameter moves the rows: none is declared and then left out."""
    params = random_params(TINY)

    def total(params: dict[str, Any]) -> jax.Array:
        weights = jnp.arange(1.0, 5.0)
        rows = run(TINY, params)
        return (rows.input * weights).sum() + (rows.output**2).sum() + rows.bias.sum()

    gradients = jax.jit(jax.grad(total))(params)
    still = [
        jax.tree_util.keystr(path)
        for path, gradient in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.abs(gradient).max() > 1e-7
    ]
    # Keys' biases move no softmax.
    assert still == [f"{layer}['attention']['key']['bias']" for layer in LAYERS]


def test_padding_is_not_read_and_the_language_is():
    params = random_params(TINY)
    rows = run(TINY, params)
    source = source_of(TINY)
    source[1] = 100.0
    moved = apply(TINY, params, FORMS, FORMS != 1, source)
    # A token without pieces is read from its first slot all the same.
    with_pieces = np.array([0, 1, 3])
    np.testing.assert_allclose(moved.input[with_pieces], rows.input[with_pieces], atol=1e-6)
    other = run(TINY, params, language=2)
    assert np.abs(np.asarray(other.input) - np.asarray(rows.input)).max(axis=1).min() > 1e-4


def test_extra_rows_follow_the_table_whatever_its_length():
    """With a table of the rows in use only, ids counted anew give the same rows."""
    params = random_params(TINY)
    used = [0, 1, 2, 5, 9]
    anew = {old: new for new, old in enumerate(used)} | {10: 5, 11: 6}
    forms = np.vectorize(anew.get)(FORMS)
    short = apply(TINY, params, forms, FORMS != 1, source_of(TINY)[used])
    for a, b in zip(short, run(TINY, params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_bfloat16_is_near_float32():
    params = random_params(TINY)
    rows = run(TINY, params, dtype=jnp.bfloat16)
    for a, b in zip(rows, run(TINY, params), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.1)


@pytest.mark.parametrize("config", [TINY, replace(TINY, single_head=True, predict_bias=False)])
def test_sharded_over_eight_devices_it_is_the_same(config: HypernetConfig):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    abstract = abstract_hypernet(config)
    params = shard_params(random_params(config), abstract, mesh)
    for path, sharding in jax.tree_util.tree_leaves_with_path(param_shardings(abstract, mesh)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("kernel") and not name.startswith("bias"):
            assert set(sharding.spec) - {None} == {"fsdp", "model"}, name
    found = jax.tree.map(lambda leaf: leaf.sharding, params)
    assert jax.tree.leaves(found) == jax.tree.leaves(param_shardings(abstract, mesh))
    mask = np.not_equal(FORMS, config.pad_id)
    inputs: Any = (source_of(config), FORMS, mask, 1)
    rows = forward(Hypernet(config), params, *inputs, mesh=mesh, method=Hypernet.__call__)
    wanted = run(config, random_params(config), language=1)
    assert rows.input.sharding.spec == PartitionSpec(("data", "fsdp"))
    for table, want in zip(rows, wanted, strict=True):
        np.testing.assert_array_equal(table is None, want is None)
        if table is not None:
            np.testing.assert_allclose(table, want, atol=1e-5)


def test_the_full_size_is_the_papers():
    """Width 4096 for Mistral-7B: every kernel can be cut over 8 devices, nothing is computed."""
    config = HypernetConfig(
        width=4096, hidden=4096, feed_forward=8192, layers=3, heads=32, surface_length=7,
        vocab_size=32_000, extra_tokens=522, pad_id=2, separate_output=True,
    )  # fmt: skip
    abstract = abstract_hypernet(config)
    param_shardings(abstract, make_mesh(MeshConfig(fsdp=4, model=2)))
    layer = 4 * 4096**2 + 2 * 4096 * 8192 + 9 * 4096 + 8192
    projector = 2 * 4096 * 8192 + 8192 + 3 * 4096
    heads = 2 * (projector + 4096**2 + 4096) + 4097
    read = 8192 * 4096 + 4096 + projector
    tables = (514 + 1 + 2) * 4096 + 522 * 8192
    rescale = 2 * (8192 + 2 * 4096)
    total = sum(leaf.size for leaf in jax.tree.leaves(meta.unbox(abstract)))
    assert total == 3 * layer + heads + read + tables + rescale
