"""What dynamic tokenization does to the demo's sentences, measured."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.encoding import pooled
from dyntok_jax.merging.budget import Budget
from dyntok_jax.scoring import score
from dyntok_jax.text.layouts import text_layout
from dyntok_jax.types import Token

# Languages that put no space between sentences.
_UNSPACED = {"zh", "th"}
_STATIC, _DYNAMIC = Budget(reduction=0), Budget(reduction=100)


@dataclass(frozen=True)
class EncoderResult:
    """An encoder on one language's sentences.

    Attributes:
        static, dynamic: tokens of the first sentence before and after merging.
        tokens_static, tokens_dynamic: tokens of all sentences.
        similarity: mean cosine of each sentence's dynamic vector to its static one.
        seconds_static, seconds_dynamic: merging and forward, the best of five.
    """

    static: list[Token]
    dynamic: list[Token]
    tokens_static: int
    tokens_dynamic: int
    similarity: float
    seconds_static: float
    seconds_dynamic: float


@dataclass(frozen=True)
class DecoderResult:
    """A decoder that reads three sentences and is asked for the fourth.

    Attributes:
        tokens_static, tokens_dynamic: tokens of the prompt.
        bits_static, bits_dynamic: bits per byte of the continuation.
        seconds_static, seconds_dynamic: merging and forward, the best of five.
    """

    tokens_static: int
    tokens_dynamic: int
    bits_static: float
    bits_dynamic: float
    seconds_static: float
    seconds_dynamic: float


def sentences() -> dict[str, list[str]]:
    """Four aligned sentences in each language."""
    return json.loads(files("dyntok_jax.demo").joinpath("sentences.json").read_text("utf-8"))


def measure_encoder(
    model: DynamicModel, texts: dict[str, list[str]], track: Callable[[Iterable], Iterable]
) -> dict[str, EncoderResult]:
    """One result a language; ``track`` wraps the loop (a progress bar)."""
    return {language: _encoder_result(model, texts[language]) for language in track(texts)}


def measure_decoder(
    model: DynamicModel, texts: dict[str, list[str]], track: Callable[[Iterable], Iterable]
) -> dict[str, DecoderResult]:
    """One result a language; ``track`` wraps the loop (a progress bar)."""
    return {
        language: _decoder_result(model, texts[language], "" if language in _UNSPACED else " ")
        for language in track(texts)
    }


def _encoder_result(model: DynamicModel, texts: list[str]) -> EncoderResult:
    base = text_layout(model.tokenizer, texts, max_length=model.max_length)
    tokens = {
        budget: [sequence.tokens for sequence in model.merge(base, budget).sequences]
        for budget in (_STATIC, _DYNAMIC)
    }

    def vectors(budget: Budget) -> np.ndarray:
        found = pooled(model, model.merge(base, budget).sequences, "mean", len(texts))
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return EncoderResult(
        tokens[_STATIC][0],
        tokens[_DYNAMIC][0],
        sum(map(len, tokens[_STATIC])),
        sum(map(len, tokens[_DYNAMIC])),
        float((vectors(_STATIC) * vectors(_DYNAMIC)).sum(axis=1).mean()),
        _best(lambda: vectors(_STATIC)),
        _best(lambda: vectors(_DYNAMIC)),
    )


def _decoder_result(model: DynamicModel, texts: list[str], space: str) -> DecoderResult:
    item = (space.join(texts[:-1]), [space + texts[-1]])
    (static,), (dynamic,) = score(model, [item], 0), score(model, [item], 100)
    size = len(item[1][0].encode("utf-8"))
    return DecoderResult(
        static.tokens_static,
        dynamic.tokens_dynamic,
        -static.scores[0] / math.log(2) / size,
        -dynamic.scores[0] / math.log(2) / size,
        _best(lambda: score(model, [item], 0)),
        _best(lambda: score(model, [item], 100)),
    )


def _best(task: Callable[[], object], repeats: int = 5) -> float:
    """The shortest of a few runs, in seconds; what is compiled was compiled before."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
