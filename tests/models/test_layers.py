"""Attention, norms, rotary positions and padding, against formulas written out."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf
from tiny_models import load

from dyntok_jax.models import layers
from dyntok_jax.models.decoder import causal_mask
from dyntok_jax.models.encoder import Encoder, EncoderConfig, EncoderLayer, EncoderStack
from dyntok_jax.models.layers import (
    ACTIVATIONS,
    LayerNorm,
    RMSNorm,
    abstract_params,
    attend,
    positions_from_mask,
)
from dyntok_jax.models.products import product
from dyntok_jax.models.rotary import Llama3Scaling, RotaryConfig, frequencies, rotary_table, rotate
from dyntok_jax.models.weights import model_module
from dyntok_jax.types import DyntokError

RNG = np.random.default_rng(0)


def normal(*shape) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def run(module, params, *inputs) -> Any:
    return jax.jit(module.apply)({"params": params}, *inputs)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("per_query", [False, True])
def test_attention_is_softmax_of_scaled_products(groups, per_query):
    query, key, value = normal(2, 5, 6, 4), normal(2, groups, 4, 5), normal(2, groups, 5, 4)
    mask: Any = RNG.random((2, 5 if per_query else 1, 5)) < 0.6
    mask[:, :, 0] = True
    ours = attend(*map(jnp.asarray, (query, key, value, mask)))
    for n in range(6):
        k = n // (6 // groups)
        scores = query[:, :, n] @ key[:, k] / 2.0
        theirs = softmax(np.where(mask, scores, -np.inf)) @ value[:, k]
        np.testing.assert_allclose(ours[:, :, n], theirs, atol=1e-6)


def test_row_without_tokens_attends_to_all_alike():
    query, key, value = 50 * normal(1, 4, 2, 3), 50 * normal(1, 2, 3, 4), normal(1, 2, 4, 3)
    mask = jnp.zeros((1, 1, 4), bool)
    mixed = attend(*map(jnp.asarray, (query, key, value, mask)))
    np.testing.assert_allclose(mixed, np.broadcast_to(value.mean(2), (1, 4, 2, 3)), atol=1e-6)


def test_stack_is_its_layers_one_after_another():
    config = EncoderConfig(16, 3, 2, 24, layer_norm_eps=1e-2, activation="relu")
    x, mask = normal(2, 5, 16), np.arange(5) < np.array([[5], [0]])
    variables = nn.unbox(jax.jit(EncoderStack(config).init)(jax.random.key(0), x, mask))
    whole = run(EncoderStack(config), variables["params"], x, mask)
    for i in range(3):
        params = jax.tree.map(lambda p, i=i: p[i], variables["params"]["layers"])
        x = run(EncoderLayer(config), params, x, mask[:, None])
    np.testing.assert_allclose(whole, x, atol=1e-6)
    assert np.isfinite(whole).all()


def test_norms():
    x = 3 + normal(4, 8)
    params = {"scale": normal(8), "bias": normal(8)}
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt(x.var(-1, keepdims=True) + 0.1) * params["scale"] + params["bias"]
    np.testing.assert_allclose(run(LayerNorm(0.1), params, x), expected, atol=1e-5)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * params["scale"]
    np.testing.assert_allclose(
        run(RMSNorm(0.1), {"scale": params["scale"]}, x), expected, atol=1e-5
    )


def test_products_and_their_gradients():
    x, kernel, weights = normal(2, 5, 8), normal(8, 6), normal(2, 5, 6)

    def loss(x, kernel):
        return (product(x, kernel) * weights).sum()

    of_x, of_kernel = jax.jit(jax.grad(loss, (0, 1)))(x, kernel)
    exact = product(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(exact, x @ kernel, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_x, weights @ kernel.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_kernel, np.einsum("bti,bto->io", x, weights), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_factors_rounded_to_bfloat16_are_summed_exactly(dtype):
    def rounded(values):
        return np.asarray(jnp.asarray(values, jnp.bfloat16), np.float64)

    x, kernel, weights = normal(3, 4, 16), normal(16, 6), normal(3, 4, 6)
    with jax.default_matmul_precision("bfloat16"):
        given = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)
        y, back = jax.vjp(product, *given)
        of_x, of_kernel = back(jnp.asarray(weights))
    assert (y.dtype, of_x.dtype, of_kernel.dtype) == (jnp.float32, dtype, dtype)
    near = 1e-5 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(y, rounded(x) @ rounded(kernel), rtol=1e-5, atol=1e-5)
    assert not np.allclose(y, x @ kernel, rtol=1e-5, atol=1e-5)
    wanted = rounded(weights) @ rounded(kernel).T
    np.testing.assert_allclose(np.asarray(of_x, np.float32), wanted, rtol=near, atol=near)
    wanted = np.einsum("bti,bto->io", rounded(x), rounded(weights))
    np.testing.assert_allclose(np.asarray(of_kernel, np.float32), wanted, rtol=near, atol=near)


def test_float32_products_are_exact_on_any_device():
    """Devices that round by default are told not to; CPUs would not show it in the values."""
    x, kernel = normal(4, 8), normal(8, 6)

    def operations():
        jaxpr = str(jax.make_jaxpr(jax.grad(lambda *a: product(*a).sum(), (0, 1)))(x, kernel))
        return jaxpr.count("dot_general["), jaxpr.count("HIGHEST")

    count, exact = operations()
    assert count >= 2 and exact >= count
    with jax.default_matmul_precision("bfloat16"):
        assert operations() == (count, 0)


def test_gelu_is_exact():
    x: Any = np.linspace(-6, 6, 101, dtype=np.float32)
    expected = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    given = jnp.asarray(x)
    np.testing.assert_allclose(ACTIVATIONS["gelu"](given), expected, atol=1e-6)
    assert np.abs(ACTIVATIONS["gelu_new"](given) - expected).max() > 1e-4


def test_rotation_depends_on_distance_only():
    config = RotaryConfig(theta=100.0)
    q, k = normal(1, 1, 2, 6), normal(1, 1, 2, 6)

    def product(a, b):
        turned = [
            rotate(jnp.asarray(x), *rotary_table(config, jnp.array([[p]]), 6))
            for x, p in ((q, a), (k, b))
        ]
        return np.einsum("btnh,btnh->n", *map(np.asarray, turned))

    np.testing.assert_allclose(product(9, 4), product(25, 20), rtol=1e-4)
    assert np.abs(product(9, 4) - product(9, 5)).max() > 1e-2
    np.testing.assert_allclose(product(3, 3), np.einsum("btnh,btnh->n", q, k), rtol=1e-5)


def test_llama3_stretches_long_wavelengths_only():
    plain = RotaryConfig(500.0)
    scaled = dataclasses.replace(plain, factor=8.0, llama3=Llama3Scaling(1.0, 4.0, 64))
    wavelength = 2 * np.pi / frequencies(plain, 32)
    stretch = 2 * np.pi / frequencies(scaled, 32) / wavelength
    np.testing.assert_allclose(stretch[wavelength < 16], 1.0, rtol=1e-6)
    np.testing.assert_allclose(stretch[wavelength > 64], 8.0, rtol=1e-6)
    between = stretch[(wavelength > 16) & (wavelength < 64)]
    assert len(between) > 1 and ((between > 1) & (between < 8)).all()


def test_causal_mask_with_window():
    mask = jnp.array([[False, True, True, True]])
    expected = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(causal_mask(mask, 2)[0], np.array(expected, bool))
    np.testing.assert_array_equal(causal_mask(mask, None)[0, 3], mask[0])


def test_positions_count_real_tokens():
    mask = jnp.array([[0, 0, 1, 1], [1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(positions_from_mask(mask), [[0, 0, 0, 1], [0, 1, 1, 1]])


@pytest.mark.parametrize("name", ["mistral", "llama_tied", "xlm_roberta_masked_lm", "bert_token"])
def test_padding_left_or_right_changes_nothing(name):
    tiny = load(name)
    module = model_module(tiny.model.architecture)
    apply = jax.jit(lambda x, mask: module.apply({"params": tiny.model.params}, x, mask))
    x = normal(2, 7, module.config.width)
    alone = apply(x, np.ones((2, 7), bool))
    for left, right in ((0, 4), (4, 0), (3, 1)):
        padded = np.pad(x, ((0, 0), (left, right), (0, 0)), constant_values=9.0)
        mask = np.pad(np.ones((2, 7), bool), ((0, 0), (left, right)))
        np.testing.assert_allclose(apply(padded, mask)[:, left : left + 7], alone, atol=1e-5)


def test_encoder_refuses_more_tokens_than_positions():
    module = Encoder(EncoderConfig(8, 1, 2, 8, max_positions=10, position_offset=2))
    abstract_params(module, np.zeros((1, 8, 8)), np.ones((1, 8), bool))
    with pytest.raises(DyntokError, match="9 tokens in a sequence: this encoder has 8 positions"):
        abstract_params(module, np.zeros((1, 9, 8)), np.ones((1, 9), bool))


@pytest.mark.parametrize("length", [9, 24, 43])
@pytest.mark.parametrize("causal", [False, True])
def test_blocks_of_queries_attend_as_all_at_once(length, causal, monkeypatch):
    monkeypatch.setattr(layers, "QUERY_BLOCK", 4)
    rng = np.random.default_rng(0)
    inputs = [
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((2, length, 4, 4), (2, 2, 4, length), (2, 2, length, 4))
    ]
    mask = jnp.tril(jnp.ones((1, length, length), bool)) | (not causal)
    mask &= jnp.arange(length) > 2

    def whole(query: Any, key: Any, value: Any) -> Any:
        return layers.attend_parts(query, [(key, value, mask)])

    def blocks(query: Any, key: Any, value: Any) -> Any:
        return layers.attend(query, key, value, mask, causal=causal)

    # The first queries of a causal sequence see nothing here.
    first = 3 if causal else 0
    np.testing.assert_allclose(blocks(*inputs)[:, first:], whole(*inputs)[:, first:], atol=1e-5)
    assert np.isfinite(blocks(*inputs)).all()
    ours, theirs = (
        jax.grad(lambda *x, f=f: jnp.square(f(*x)[:, first:]).sum(), argnums=(0, 1, 2))(*inputs)
        for f in (blocks, whole)
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_scores_of_all_pairs_are_never_in_memory_at_once():
    length, heads = 8 * layers.QUERY_BLOCK, 2
    shapes = (1, length, heads, 8), (1, heads, 8, length), (1, heads, length, 8)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    mask = jax.ShapeDtypeStruct((1, length, length), jnp.bool_)
    attend = jax.jit(partial(layers.attend, causal=True))
    analysis = attend.lower(*inputs, mask).compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 0.5 * 4 * heads * length**2
