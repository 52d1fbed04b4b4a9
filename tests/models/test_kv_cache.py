"""Steps through a cache are the whole decoder, token by token."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import load

from dyntok_jax.models.decoder import Decoder, DecoderConfig
from dyntok_jax.models.decoder_step import UnrolledDecoder, layer_caches, settled, unrolled
from dyntok_jax.models.kv_cache import KeyValues, seen_slots
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.weights import model_module

ROOM = 16


@functools.partial(jax.jit, static_argnames=("module", "keep"))
def run(module: Any, params: Any, rows: Any, mask: Any, keep: bool = False) -> Any:
    """The whole decoder."""
    return module.apply({"params": params}, rows, mask, keep=keep)


def prefilled(module: Any, params: Any, rows: Any, lengths: np.ndarray) -> tuple[Any, Any]:
    """Hidden states of the first tokens of each row, and each layer's cache with room for more."""
    mask = np.arange(lengths.max()) < lengths[:, None]
    hidden, kept = run(module, params, rows[:, : lengths.max()], mask, keep=True)
    return hidden, layer_caches(kept, ROOM)


def stepping(name: str, dtype: Any = jnp.float32) -> tuple[Any, ...]:
    """The decoder, its parameters, the function of a step, and rows of 11 tokens each."""
    tiny = load(name)
    config: Any = tiny.model.config
    apply: Any = jax.jit(UnrolledDecoder(config, dtype).apply)
    variables = {"params": unrolled(jax.tree.map(jnp.asarray, tiny.model.params), config, dtype)}
    rows = np.asarray(tiny.model.source.input, np.float32)[tiny.record["ids"]]
    module = model_module(tiny.model.architecture, dtype)

    def step(fed: Any, cache: Any, length: Any, *recent: Any) -> tuple[Any, Any]:
        hidden, new = apply(variables, fed, cache, length, *recent)
        return hidden, new if recent else settled(cache, new, jnp.asarray(length))

    return module, tiny.model.params, step, rows


@pytest.mark.parametrize("name", ["mistral", "llama_tied", "llama_linear"])
def test_every_step_is_the_whole_forward(name):
    module, params, step, rows = stepping(name)
    whole = np.asarray(run(module, params, rows, np.ones(rows.shape[:2], bool)))
    length = np.array([3, 7, 1])
    first, cache = prefilled(module, params, rows, length)
    for row, count in enumerate(length):
        np.testing.assert_allclose(first[row, :count], whole[row, :count], atol=1e-5)
    for _ in range(4):
        fed = rows[np.arange(3), length][:, None]
        hidden, cache = step(fed, cache, length)
        expected = whole[np.arange(3), length]
        assert np.abs(expected).max() > 0.5
        np.testing.assert_allclose(hidden[:, 0], expected, atol=1e-5)
        length = length + 1


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_biases_go_with_their_maps(kv_heads):
    shape = {"width": 12, "layers": 2, "heads": 4, "kv_heads": kv_heads, "head_width": 4}
    config = DecoderConfig(
        **shape, feed_forward=10, attention_bias=True, feed_forward_bias=True, vocab_size=5
    )
    module, random = Decoder(config), np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, 0.5, leaf.shape), jnp.float32),
        nn.meta.unbox(abstract_params(module)),
    )
    rows = random.normal(size=(1, 6, 12)).astype(np.float32)
    whole = run(module, params, rows, np.ones((1, 6), bool))
    _, cache = prefilled(module, params, rows, np.array([4]))
    step = {"params": unrolled(params, config, jnp.float32)}
    hidden, _ = UnrolledDecoder(config).apply(step, jnp.asarray(rows[:, 4:]), cache, jnp.array([4]))
    np.testing.assert_allclose(hidden, whole[:, 4:], atol=1e-5)


def test_several_tokens_at_once_and_again():
    module, params, step, rows = stepping("mistral")
    whole = np.asarray(run(module, params, rows, np.ones(rows.shape[:2], bool)))
    length = np.array([3, 6, 1])
    _, cache = prefilled(module, params, rows, length)
    # What was read and taken back leaves no trace.
    _, cache = step(rows[::-1, :5], cache, length)
    fed = np.stack([row[n : n + 4] for row, n in zip(rows, length, strict=True)])
    hidden, _ = step(fed, cache, length)
    for row, n in enumerate(length):
        np.testing.assert_allclose(hidden[row], whole[row, n : n + 4], atol=1e-5)


@pytest.mark.parametrize("name", ["mistral", "llama_tied"])
def test_recent_tokens_apart_from_the_cache(name):
    module, params, step, rows = stepping(name)
    whole = np.asarray(run(module, params, rows, np.ones(rows.shape[:2], bool)))
    length = np.array([3, 4, 1])
    _, cache = prefilled(module, params, rows, length)
    recent = tuple(past.emptied(6) for past in cache)
    count = 0
    # What lies behind the tokens is not read.
    recent = tuple(jax.tree.map(lambda part: part + 9, past) for past in recent)
    for tokens in (1, 2, 1, 2):  # more than Mistral's window
        fed = np.stack([r[n + count :][:tokens] for r, n in zip(rows, length, strict=True)])
        hidden, recent = step(fed, cache, length, recent, count)
        for row, n in enumerate(length):
            expected = whole[row, n + count :][:tokens]
            np.testing.assert_allclose(hidden[row], expected, atol=1e-5)
        count += tokens
    cache = settled(cache, recent, jnp.asarray(length))
    fed = rows[np.arange(3), length + count][:, None]
    hidden, _ = step(fed, cache, length + count)
    np.testing.assert_allclose(hidden[:, 0], whole[np.arange(3), length + count], atol=1e-5)


def test_bfloat16_is_the_whole_forward_in_bfloat16():
    module, params, step, rows = stepping("llama_tied", jnp.bfloat16)
    whole = run(module, params, rows, np.ones(rows.shape[:2], bool))
    length = np.array([4, 4, 4])
    _, cache = prefilled(module, params, rows, length)
    assert cache[0].key.dtype == jnp.bfloat16
    hidden, _ = step(rows[:, 4:5], cache, length)
    assert hidden.dtype == jnp.bfloat16
    config: Any = module.config
    for path, leaf in jax.tree.leaves_with_path(unrolled(params, config, jnp.bfloat16)):
        assert leaf.dtype == (jnp.float32 if path[-1].key == "scale" else jnp.bfloat16)
    expected = np.asarray(whole[:, 4], np.float32)
    errors = np.abs(np.asarray(hidden[:, 0], np.float32) - expected)
    assert errors.max() < 0.03 * np.abs(expected).max()


def test_the_cache_is_kept_by_position():
    value = jnp.arange(2 * 3 * 4 * 2.0).reshape(2, 3, 4, 2)
    old = KeyValues(value.swapaxes(2, 3), value + 1)
    new = KeyValues(-jnp.ones((2, 3, 2, 1)), -jnp.ones((2, 3, 1, 2)))
    kept = old.followed_by(new, jnp.array([1, 3]))
    for found, before in ((kept.value, value + 1), (kept.key.swapaxes(2, 3), value)):
        expected = np.asarray(before).copy()
        expected[0, :, 1], expected[1, :, 3] = -1, -1
        np.testing.assert_array_equal(found, expected)
    numbers = -1 - jnp.broadcast_to(jnp.arange(3.0)[:, None], (2, 3, 3, 2))
    late = KeyValues(numbers.swapaxes(2, 3), numbers)
    kept = old.followed_by(late, jnp.array([1, 2]))
    for found, before in ((kept.value, value + 1), (kept.key.swapaxes(2, 3), value)):
        expected = np.asarray(before).copy()
        # The last token of the second sequence would lie beyond the room.
        expected[0, :, 1:], expected[1, :, 2:] = numbers[0], numbers[1, :, :2]
        np.testing.assert_array_equal(found, expected)
    kept = old.replaced(new, 2)
    for found, before in ((kept.value, value + 1), (kept.key.swapaxes(2, 3), value)):
        expected = np.asarray(before).copy()
        expected[:, :, 2] = -1
        np.testing.assert_array_equal(found, expected)
    assert jax.tree.map(np.shape, old.emptied(5)) == jax.tree.map(np.shape, old.grown(5))
    assert kept.grown(6).value.shape == (2, 3, 6, 2)
    assert kept.grown(6).key.shape == (2, 3, 2, 6)
    seen = seen_slots(jnp.array([[2], [0]]), 4, window=2)
    assert seen[:, 0].tolist() == [[False, True, True, False], [True, False, False, False]]


def test_layers_that_keep_nothing_are_as_before():
    tiny = load("mistral")
    module: Any = model_module(tiny.model.architecture)
    assert isinstance(module, Decoder)
    params, real = tiny.model.params, tiny.record["mask"][0]
    hidden, _ = run(module, params, *tiny.inputs, keep=True)
    np.testing.assert_allclose(hidden[0, real], tiny.hidden()[0, real], atol=1e-6)
