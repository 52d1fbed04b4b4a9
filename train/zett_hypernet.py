"""The hypernetwork that a training starts from: its tokenizer (ZeTT's) and first parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dyntok_jax.embed.hypernet import Hypernet, HypernetConfig, abstract_hypernet
from dyntok_jax.sharding import apply, param_shardings
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.zett_conversion import convert_to_byte_level, is_converted
from dyntok_jax.types import Rows

FIRST_DEVIATION = 0.02
"""Standard deviation of a model's first parameters, to which ZeTT scales the rows of pieces too."""

EXAMPLES = 2048
"""Tokens from whose first predictions the scale of all is set."""

RESCALERS = ("rescale_source", "rescale", "rescale_output")


class FirstParameters(NamedTuple):
    """Parameters at step 0, on the mesh.

    Attributes:
        trained: what is trained.
        rescalers: what never changes.
    """

    trained: dict[str, Any]
    rescalers: dict[str, Any]


def hypernet_tokenizer(tokenizer: BaseTokenizer) -> tuple[dict[str, Any], int]:
    """The tokenizer.json by which the hypernetwork reads, and how many tokens it has beyond V."""
    if is_converted(tokenizer.tokenizer_json):
        return tokenizer.tokenizer_json, 0
    return convert_to_byte_level(tokenizer.tokenizer_json)


def first_parameters(
    network: Hypernet,
    source: Float[Array, "V E"],
    mesh: Mesh,
    seed: int,
    deviation: float = FIRST_DEVIATION,
) -> FirstParameters:
    """Random parameters, and rescalers fitted to the model's rows and the first predictions.

    Args:
        network: what they are for.
        source: the model's rows.
        mesh: devices.
        seed: of the random ones.
        deviation: that the rows of pieces are scaled to, and of the first position table. The
            table is added to what LayerNorm gives, of deviation 1: with much less than that the
            order of pieces is hardly seen at first.
    """
    config = network.config
    shardings = param_shardings(dict(abstract_hypernet(config)), mesh)

    def init(key: PRNGKeyArray) -> Any:
        return random_parameters(network, key)

    found = jax.jit(init, out_shardings=shardings)(jax.random.key(seed))
    found["positions"] *= deviation / FIRST_DEVIATION
    params, rescalers = split_rescalers(found)
    if rescalers:
        where = {name: shardings[name] for name in rescalers}

        def fit(params: Any, rescalers: Any, source: Any) -> dict[str, Any]:
            return _fitted(network, params, rescalers, source, mesh, deviation)

        rescalers = jax.jit(fit, out_shardings=where)(params, rescalers, source)
    return FirstParameters(params, rescalers)


def random_parameters(network: Hypernet, key: PRNGKeyArray) -> dict[str, Any]:
    """Parameters of a hypernetwork as flax draws them."""
    config = network.config
    rows = jnp.zeros((1, config.source_width))
    forms = jnp.zeros((1, config.surface_length), jnp.int32)
    states = jnp.zeros((*forms.shape, config.width))
    return nn.unbox(network.init(key, rows, forms, forms == 0, 0, states))["params"]


def split_rescalers(params: Mapping[str, Any]) -> FirstParameters:
    """All parameters as what is trained and what never changes."""
    trained = {name: part for name, part in params.items() if name not in RESCALERS}
    return FirstParameters(trained, {name: params[name] for name in RESCALERS if name in params})


def predict(
    network: Hypernet,
    params: Any,
    source: Float[Array, "V E"],
    forms: Int[Array, "U S"],
    language: Int[Array, ""],
    mesh: Mesh,
) -> Rows:
    """What a hypernetwork makes of U surface forms; for use inside a jitted function."""
    count = len(forms)
    # The mesh divides what the network reads.
    forms = jnp.pad(forms, ((0, -count % mesh.devices.size), (0, 0)), mode="edge")
    # The padding token itself is a piece where it stands first.
    mask = (forms != network.config.pad_id).at[:, 0].set(True)
    method = Hypernet.__call__
    # What it reads of the model's states, if it does, it begins by multiplying with zero.
    states = jnp.zeros((*forms.shape, network.config.width))
    inputs = source, forms, mask, language, states
    rows = apply(network, params, *inputs, mesh=mesh, method=method)
    return jax.tree.map(lambda table: table[:count], rows)


def examples(config: HypernetConfig) -> Int[np.ndarray, " N"]:
    """Ids from all over the vocabulary, the same on every mesh."""
    count = min(EXAMPLES, config.vocab_size)
    return np.linspace(0, config.vocab_size - 1, count).astype(np.int32)


def _fitted(
    network: Hypernet,
    params: Any,
    rescalers: Any,
    source: Any,
    mesh: Mesh,
    read_deviation: float,
) -> dict[str, Any]:
    """Rescalers that give read rows a small deviation, and predicted ones the model's own."""
    config = network.config
    rescalers = rescalers | {"rescale_source": _scale_to(source, 0.0, read_deviation)}
    ids, language = jnp.asarray(examples(config))[:, None], jnp.zeros((), jnp.int32)
    found = predict(network, params | rescalers, source, ids, language, mesh)
    wanted = {"rescale": source[:, : config.width], "rescale_output": source[:, config.width :]}
    for name, rows in zip(wanted, (found.input, found.output), strict=True):
        if name in rescalers:
            mean, deviation = wanted[name].mean(0), wanted[name].std(0)
            # With a residual the heads start at zero, and what they add is to be of rows' size.
            rescalers[name] = (
                {"factor": deviation[None], "shift": jnp.zeros_like(deviation)[None]}
                if config.residual
                else _scale_to(rows, mean, deviation)
            )
    return rescalers


def _scale_to(x: Any, mean: Any, deviation: Any) -> dict[str, Array]:
    """The factor and shift that give every coordinate this mean and standard deviation."""
    factor = deviation / (x.std(0) + 1e-8)
    return {"factor": factor[None], "shift": (mean - x.mean(0) * factor)[None]}
