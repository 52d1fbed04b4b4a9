"""The file of a measurement of efficiency, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

from dyntok_jax.config import ComputeConfig
from dyntok_jax.embed.hypernet import HypernetConfig
from dyntok_jax.embed.providers import check_base_rows
from dyntok_jax.models.decoder import DecoderConfig
from dyntok_jax.models.layers import ACTIVATIONS
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.types import DyntokError
from eval.mmlu_config import MmluData, check_languages


@dataclass(frozen=True)
class CacheRun:
    """How the cache of rows is filled.

    Attributes:
        capacities: rows of caches to compare; of the largest the hypernetwork's share is told.
        batch_size: prompts looked up together.
    """

    capacities: list[int] = field(default_factory=lambda: [1024, 4096, 16384])
    batch_size: int = 8

    def __post_init__(self) -> None:
        if not self.capacities or min(*self.capacities, self.batch_size) < 1:
            raise DyntokError("cache: capacities and batch_size are numbers from 1")


@dataclass(frozen=True)
class LatencyRun:
    """What is timed: prompts cut from texts, one at a time.

    Attributes:
        texts: language -> a file, one text a line.
        prompts: of each text, spread evenly over it.
        tokens: base tokens of a prompt.
        repeats: timings of which the median counts.
    """

    texts: dict[str, str]
    prompts: int = 4
    tokens: int = 512
    repeats: int = 5

    def __post_init__(self) -> None:
        if not self.texts or min(self.prompts, self.tokens, self.repeats) < 1:
            raise DyntokError(
                "latency: a text at least; prompts, tokens and repeats are numbers from 1"
            )


@dataclass(frozen=True)
class EfficiencyRun:
    """A measurement.

    Attributes:
        model: name or folder of a decoder; of its tokenizer, where ``decoder`` is given.
        data: questions of MMLU, whose prompts are counted.
        decoder: shape of a model whose weights are not needed.
        hypernet: shape of its hypernetwork; without ``decoder`` that of ``rows``.
        rows: see ``embed.providers.row_provider``; not read with ``decoder``.
        base_rows: whether vocabulary tokens keep their own rows, or are predicted too; base rows
            predict none.
        reductions: in percent of the largest possible saving; the first is 0.
        boundary: what merges do not cross.
        max_length: of a prompt in base tokens; longer ones are cut at their beginning, and counted.
        kv_dtype: of keys and values.
        cache: how the cache of rows is filled.
        latency: what is timed; nothing without it.
        compute: dtype and mesh of what is timed.
    """

    model: str
    data: list[MmluData]
    decoder: DecoderConfig | None = None
    hypernet: HypernetConfig | None = None
    rows: str = "default"
    base_rows: Literal["own", "predicted"] = "own"
    reductions: list[float] = field(default_factory=lambda: [0.0, 25.0, 50.0, 75.0, 100.0])
    boundary: Boundary = Boundary.PRETOKEN
    max_length: int = 8192
    kv_dtype: Literal["float32", "bfloat16"] = "float32"
    cache: CacheRun = field(default_factory=CacheRun)
    latency: LatencyRun | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        check_languages(self.data)
        if self.hypernet and not self.decoder:
            raise DyntokError("hypernet: a shape is read together with decoder only; give rows")
        if self.latency and self.decoder:
            raise DyntokError("latency: a decoder that is a shape only cannot be timed")
        if self.base_rows == "predicted" and not self.decoder:
            check_base_rows(self.rows, self.base_rows)
        for name, shape in (("decoder", self.decoder), ("hypernet", self.hypernet)):
            _check_sizes(name, shape)
        bad = [value for value in self.reductions if not 0 <= value <= 100]
        if bad or self.reductions[:1] != [0] or self.max_length < 1:
            raise DyntokError(
                "reductions are percentages of which the first is 0; max_length is a number from 1"
            )


def _check_sizes(name: str, shape: DecoderConfig | HypernetConfig | None) -> None:
    """Whether there can be a network of this shape."""
    for key, value in ({} if shape is None else asdict(shape)).items():
        least = 0 if key in ("pad_id", "extra_tokens", "languages", "model_layers") else 1
        if type(value) is int and value < least:
            raise DyntokError(f"{name}: {key} is {value}; valid is a number from {least}")
    if isinstance(shape, DecoderConfig):
        whole, part = ("heads", shape.heads), ("kv_heads", shape.kv_heads)
        if shape.activation not in ACTIVATIONS:
            names = ", ".join(ACTIVATIONS)
            raise DyntokError(f"{name}: activation is {shape.activation!r}; valid are {names}")
    elif shape is not None:
        whole, part = ("hidden", shape.hidden), ("heads", shape.heads)
    else:
        return
    if whole[1] % part[1]:
        raise DyntokError(f"{name}: {whole[0]} is {whole[1]}; valid are multiples of {part[0]}")
