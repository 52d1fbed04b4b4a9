"""Operations of matrix products, counted by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax.core import meta

from dyntok_jax.flops import product_flops
from dyntok_jax.models.encoder import EncoderConfig, EncoderStack


def test_loops_count_as_often_as_they_run():
    kernels = jnp.ones((5, 8, 8))

    def chain(x):
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]

    x = jnp.ones((3, 8))
    assert product_flops(chain, x) == 5 * 2 * 3 * 8 * 8
    # The gradient of x is as many products again, and needs none of those of the value.
    gradient = jax.grad(lambda x: chain(x).sum())
    assert product_flops(gradient, x) == 5 * 2 * 3 * 8 * 8
    both = jax.value_and_grad(lambda x: chain(x).sum())
    assert product_flops(both, x) == 2 * 5 * 2 * 3 * 8 * 8


@pytest.mark.parametrize("layers", [1, 3])
def test_an_encoder_costs_what_its_shape_says(layers):
    width, feed_forward, batch, length = 8, 16, 2, 4
    stack = EncoderStack(EncoderConfig(width, layers, 2, feed_forward))
    x, mask = jnp.ones((batch, length, width)), jnp.ones((batch, length), bool)
    params = meta.unbox(jax.eval_shape(stack.init, jax.random.key(0), x, mask))
    maps = 4 * width**2 + 2 * width * feed_forward
    expected = layers * 2 * batch * (length * maps + 2 * length**2 * width)
    assert product_flops(jax.jit(stack.apply), params, x, mask) == expected
    remat = EncoderStack(EncoderConfig(width, layers, 2, feed_forward), remat=True)
    loss = jax.grad(lambda x, params: jnp.sum(jnp.asarray(remat.apply(params, x, mask))))
    # Nothing but x has a gradient; recomputing costs less than a forward more.
    assert 2 * expected < product_flops(jax.jit(loss), x, params) <= 3.5 * expected
