"""Floating-point operations of a forward pass, by formula and counted on the program.

A multiplication and an addition are two operations. Attention counts the pairs of tokens whose
scores are computed; the output layer is left out: prefilling needs it at one token only.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta

from dyntok_jax.embed.hypernet import Hypernet, HypernetConfig, abstract_hypernet
from dyntok_jax.flops import product_flops
from dyntok_jax.models.decoder import Decoder, DecoderConfig
from dyntok_jax.models.kv_cache import Number
from dyntok_jax.models.layers import PREFIXES, QUERY_BLOCK, abstract_params


def decoder_flops(config: DecoderConfig, tokens: Number) -> Number:
    """Of the layers of a decoder, for one sequence.

    Args:
        config: shape of the decoder.
        tokens: T, or many of them.
    """
    c = config
    query, groups = c.heads * c.head_width, c.kv_heads * c.head_width
    maps = 2 * query + 2 * groups + 3 * c.feed_forward
    return c.layers * (2 * tokens * c.width * maps + 4 * scored_pairs(tokens) * query)


def scored_pairs(tokens: Number) -> Number:
    """Pairs of tokens whose scores causal attention computes (``layers.attend``), of T tokens."""
    blocks = tokens // QUERY_BLOCK
    pairs = tokens % QUERY_BLOCK * tokens
    for part in range(PREFIXES):
        # Of so many blocks; its keys end with it.
        share = (blocks + PREFIXES - 1 - part) // PREFIXES
        ends = sum((blocks + PREFIXES - 1 - before) // PREFIXES for before in range(part + 1))
        pairs = pairs + QUERY_BLOCK**2 * share * ends
    return pairs


def hypernet_flops(config: HypernetConfig, tokens: Number) -> Number:
    """Of a hypernetwork, for so many tokens."""
    c = config
    slots = c.surface_length + bool(c.languages)
    projector = 2 * c.hidden * c.feed_forward
    read = c.surface_length * (c.source_width * c.hidden + projector)
    maps = 4 * c.hidden**2 + 2 * c.hidden * c.feed_forward
    layers = (c.layers - 1) * (slots * maps + 2 * slots**2 * c.hidden)
    # In the last one, keys and values aside, only the first slot is computed.
    layers += 2 * slots * c.hidden**2 + maps - 2 * c.hidden**2 + 2 * slots * c.hidden
    both = c.separate_output and not c.single_head
    heads = (1 + both) * projector + c.hidden * (c.source_width + c.predict_bias)
    return 2 * tokens * (read + layers + heads)


def decoder_products(config: DecoderConfig, tokens: int) -> int:
    """As :func:`decoder_flops`, of the matrix products in the program."""
    module = Decoder(config)
    inputs = _floats(1, tokens, config.width), jax.ShapeDtypeStruct((1, tokens), jnp.bool_)
    return product_flops(module.apply, _variables(abstract_params(module)), *inputs)


def hypernet_products(config: HypernetConfig, tokens: int) -> int:
    """As :func:`hypernet_flops`, of the matrix products in the program."""
    form = (tokens, config.surface_length)
    inputs = (
        _floats(config.vocab_size, config.source_width),
        jax.ShapeDtypeStruct(form, jnp.int32),
        jax.ShapeDtypeStruct(form, jnp.bool_),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    return product_flops(Hypernet(config).apply, _variables(abstract_hypernet(config)), *inputs)


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _variables(abstract: Any) -> Any:
    return {"params": meta.unbox(abstract)}
