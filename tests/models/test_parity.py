"""The models against torch, part by part and whole, on tiny random checkpoints."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import NAMES, load

from dyntok_jax.models import layers
from dyntok_jax.models.weights import model_module

PARTS = {
    "encoder": {
        "embeddings": ("embedding_norm",),
        "attention": ("stack", "layers", "attention"),
        "feed_forward": ("stack", "layers", "down"),
        "layers": ("stack", "layers"),
    },
    "decoder": {
        "attention": ("layers", "attention"),
        "feed_forward": ("layers", "feed_forward"),
        "layers": ("layers",),
        "final": ("final_norm",),
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_every_part_is_torchs(name):
    tiny = load(name)
    module = model_module(tiny.model.architecture)

    @jax.jit
    def captured(params, *inputs):
        variables = {"params": params}
        return module.apply(variables, *inputs, capture_intermediates=True, mutable=True)[1]

    outputs = captured(tiny.model.params, *tiny.inputs)["intermediates"]
    real = tiny.record["mask"]
    for part, path in PARTS[tiny.model.kind].items():
        ours = outputs
        for key in path:
            ours = ours[key]
        ours, theirs = np.asarray(ours["__call__"][0]), tiny.record[part]
        assert ours.shape == theirs.shape
        assert np.abs(theirs[..., real, :]).max() > 0.5  # nothing to compare otherwise
        np.testing.assert_allclose(
            ours[..., real, :], theirs[..., real, :], atol=1e-5, rtol=1e-5, err_msg=part
        )


@pytest.fixture
def small_blocks(monkeypatch):
    """Sequences of more than 4 tokens attend block by block."""
    monkeypatch.setattr(layers, "QUERY_BLOCK", 4)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_whose_queries_go_block_by_block_is_torchs(name, small_blocks):
    tiny = load(name)
    hidden, expected = np.asarray(tiny.hidden()), tiny.expected
    real = tiny.record["mask"]
    np.testing.assert_allclose(hidden[real], expected[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_whole_model_with_head_is_torchs(name):
    tiny = load(name)
    ours, theirs = tiny.logits(tiny.hidden()), tiny.record["logits"]
    where = tiny.record["mask"] if theirs.ndim == 3 else slice(None)
    assert theirs.std() > 0.1
    np.testing.assert_allclose(ours[where], theirs[where], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert_masked_lm", "mistral", "roberta_sequence"])
def test_bfloat16_is_close_to_float32(name):
    tiny = load(name)
    hidden = tiny.hidden(jnp.bfloat16)
    assert hidden.dtype == jnp.bfloat16
    real = tiny.record["mask"]
    errors = np.abs(np.asarray(hidden, np.float32) - tiny.expected)[real]
    assert 0 < errors.max() < 0.06 * np.abs(tiny.expected[real]).max()
    scores, theirs = (
        np.asarray(tiny.logits(hidden, jnp.bfloat16), np.float32),
        tiny.record["logits"],
    )
    where = real if theirs.ndim == 3 else slice(None)
    assert np.abs(scores - theirs)[where].max() < 0.06 * np.abs(theirs).max()


@pytest.mark.parametrize("name", ["xlm_roberta_masked_lm", "llama_tied"])
def test_remat_gives_the_same_gradients(name):
    tiny = load(name)
    rows, *rest = tiny.inputs

    def loss(params, rows, remat):
        module = model_module(tiny.model.architecture, remat=remat)
        hidden: Any = module.apply({"params": params}, rows, *map(jnp.asarray, rest))
        return jnp.sum(jnp.sin(hidden) * tiny.record["mask"][..., None])

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    kept, recomputed = (gradient(tiny.model.params, rows, remat) for remat in (False, True))
    for ours, theirs in zip(jax.tree.leaves(recomputed), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-4)
    assert np.abs(kept[1]).max() > 0.1
    programs = [str(gradient.trace(tiny.model.params, rows, r).jaxpr) for r in (False, True)]
    assert ["checkpoint" in program or "remat" in program for program in programs] == [False, True]
