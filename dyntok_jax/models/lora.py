"""Low-rank additions to linear maps (LoRA, https://arxiv.org/abs/2106.09685).

They are a tree like the model's parameters, with A (in, R) and B (R, out) in the place of a kernel
(in, out), stacked over layers as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PRNGKeyArray

from dyntok_jax.models.hf_config import Architecture
from dyntok_jax.models.hf_names import name_table
from dyntok_jax.types import DyntokError


@dataclass(frozen=True)
class LoraConfig:
    """Shape of an adapter.

    Attributes:
        rank: R.
        alpha: the product is scaled by alpha / R.
        dropout: share of the inputs of A that are dropped in training.
        targets: patterns of the adapted modules, such as ``query`` or ``attention.output.dense``:
            regular expressions for the end of a module's Hugging Face name, from a dot on. Each
            reaches all layers.
    """

    rank: int = 64
    alpha: float = 128.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        if not (self.rank >= 1 and self.rank % 1 == 0):  # neither NaN nor infinity is
            raise DyntokError(f"lora.rank: {self.rank}; valid is a whole number from 1")
        if not math.isfinite(self.alpha):
            raise DyntokError(f"lora.alpha: {self.alpha} is no finite number")
        if not 0 <= self.dropout < 1:
            raise DyntokError(f"lora.dropout: {self.dropout:g} is not within 0 and 1")
        if not self.targets:
            raise DyntokError("lora.targets is empty; valid are names such as query, value")


def targeted(architecture: Architecture, targets: Sequence[str]) -> dict[str, str]:
    """The modules that patterns reach: Hugging Face name, ``{}`` for the layer -> path.

    Raises:
        DyntokError: a pattern that is none, or that reaches nothing, or only some of the layers.
    """
    table, layers = name_table(architecture), architecture.config.layers
    headed = architecture.head is not None
    linear = {
        table.full(name.removesuffix(".weight"), headed): path.removesuffix("/kernel")
        for name, path in table.model.items()
        if path.endswith("/kernel")
    }
    found: dict[str, str] = {}
    for target in targets:
        try:
            pattern = re.compile(rf"(?:.*\.)?(?:{target})")
        except re.error as error:
            raise DyntokError(f"lora.targets: {target!r} is not a pattern ({error})") from error
        reached = {
            name: sum(pattern.fullmatch(name.format(i)) is not None for i in range(layers))
            for name in linear
        }
        if not any(reached.values()):
            names = ", ".join(name.rpartition("{}.")[2] for name in linear)
            raise DyntokError(f"lora.targets: {target!r} reaches nothing; there are {names}")
        for name, count in reached.items():
            if 0 < count < layers:
                raise DyntokError(
                    f"lora.targets: {target!r} reaches {name} in {count} of {layers} layers; valid "
                    "are patterns that reach all of them"
                )
            if count:
                found[name] = linear[name]
    return found


def abstract_lora(abstract: Any, paths: Sequence[str], rank: int) -> dict[str, Any]:
    """Shapes and logical axes of an adapter, for ``sharding.param_shardings``.

    Args:
        abstract: those of the model, from ``models.layers.abstract_params``.
        paths: of the adapted modules, as :func:`targeted` gives them.
        rank: R.
    """
    kernels: Any = flatten_dict(abstract, sep="/")
    flat: dict[str, Any] = {}
    for path in paths:
        box = kernels[f"{path}/kernel"]
        *stack, inputs, outputs = box.value.shape
        *axes, first, last = box.names
        pair = ("A", (inputs, rank), (first, "R")), ("B", (rank, outputs), ("R", last))
        for name, shape, names in pair:
            value = jax.ShapeDtypeStruct((*stack, *shape), jnp.float32)
            flat[f"{path}/{name}"] = nn.LogicallyPartitioned(value, (*axes, *names))
    return unflatten_dict(flat, sep="/")


def init_lora(abstract: Any, key: PRNGKeyArray) -> dict[str, Any]:
    """First values as peft's: A uniform within ±1/√in (Kaiming's with a = √5), B zero."""
    flat: Any = flatten_dict(nn.unbox(abstract), sep="/")
    keys = jax.random.split(key, len(flat))
    for (path, leaf), part in zip(sorted(flat.items()), keys, strict=True):
        if path.endswith("/A"):
            bound = 1 / math.sqrt(leaf.shape[-2])
            flat[path] = jax.random.uniform(part, leaf.shape, jnp.float32, -bound, bound)
        else:
            flat[path] = jnp.zeros(leaf.shape, jnp.float32)
    return unflatten_dict(flat, sep="/")


def additions(lora: Any, config: LoraConfig) -> dict[str, Any]:
    """The collection ``lora`` as ``models.layers.Dense`` reads it: B scaled, the dropout's rate.

    It goes beside the parameters of the model, or below ``model`` beside those of a ``Classifier``.
    """
    arrays: Any = flatten_dict(lora, sep="/")
    flat: dict[str, Any] = {}
    for path, leaf in arrays.items():
        flat[path] = leaf * (config.alpha / config.rank) if path.endswith("/B") else leaf
        if path.endswith("/A") and config.dropout:
            flat[path[:-1] + "rate"] = jnp.full(leaf.shape[:-2], config.dropout, jnp.float32)
    return unflatten_dict(flat, sep="/")


def merged(params: Any, lora: Any, config: LoraConfig) -> dict[str, Any]:
    """Parameters of a model in which each kernel W is ``W + alpha / R * A @ B``.

    Args:
        params: of the model, on the host or on devices.
        lora: of it; likewise.
        config: shape of the additions.
    """
    flat: Any = dict(flatten_dict(params, sep="/"))
    arrays: Any = flatten_dict(lora, sep="/")
    for path, first in arrays.items():
        if path.endswith("/A"):
            path = path.removesuffix("/A")
            product = first @ arrays[f"{path}/B"]
            flat[f"{path}/kernel"] = flat[f"{path}/kernel"] + product * (config.alpha / config.rank)
    return unflatten_dict(flat, sep="/")
