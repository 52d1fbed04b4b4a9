"""Full-size models, by shapes alone."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from dyntok_jax.models.decoder import Decoder, DecoderConfig
from dyntok_jax.models.encoder import Encoder, EncoderConfig
from dyntok_jax.models.layers import abstract_params


def count(module):
    shapes = [leaf.shape for leaf in jax.tree.leaves(nn.unbox(abstract_params(module)))]
    return sum(map(math.prod, shapes))


def test_xlm_r_base_has_its_parameters():
    # transformers counts 278,043,648 for XLMRobertaModel with its pooler of 768 * 768 + 768.
    config = EncoderConfig()
    pooler = config.width * config.width + config.width
    words = config.vocab_size * config.width
    assert count(Encoder(config)) + words + pooler == 278_043_648


def test_mistral_7b_has_its_parameters():
    config = DecoderConfig()
    tables = 2 * config.vocab_size * config.width
    assert count(Decoder(config)) + tables == 7_241_732_096


@pytest.mark.parametrize("module", [Encoder(EncoderConfig()), Decoder(DecoderConfig())])
def test_full_size_forward_keeps_shape(module):
    c = module.config
    x = jax.ShapeDtypeStruct((2, 64, c.width), jnp.float32)
    mask = jax.ShapeDtypeStruct((2, 64), jnp.bool_)
    hidden = jax.eval_shape(
        lambda p, x, m: module.apply({"params": p}, x, m),
        nn.unbox(abstract_params(module)),
        x,
        mask,
    )
    assert hidden.shape == x.shape and hidden.dtype == jnp.float32


def test_layers_are_stacked():
    kernel = abstract_params(Encoder(EncoderConfig()))["stack"]["layers"]["up"]["kernel"]
    assert kernel.names == ("L", "D", "F") and kernel.value.shape == (12, 768, 3072)
