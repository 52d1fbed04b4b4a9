"""How long a decoder takes to its first token, before and after merging a prompt."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dyntok_jax.batching import PROMPT_BUCKETS, padded_length
from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.generate import GenerationConfig, generate
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.types import DyntokError
from eval.continuation import text_prefixes
from eval.efficiency_config import LatencyRun


def latencies(
    model: DynamicModel, run: LatencyRun, reductions: Sequence[float], boundary: Boundary
) -> dict[str, list[dict[str, Any]]]:
    """Language -> milliseconds of a prompt by reduction.

    A prompt is read alone, padded to its bucket of lengths. Times are medians over repeats in which
    the reductions take turns, but for those with new rows, which are taken once, and means over
    prompts; compiling is in none of them.
    """
    found = {}
    for language, prompts in latency_prompts(model, run).items():
        by_prompt = [_prompt(model, prompt, reductions, boundary, run) for prompt in prompts]
        found[language] = [
            {"reduction": value, **_means([steps[i] for steps in by_prompt])}
            for i, value in enumerate(reductions)
        ]
    return found


def latency_prompts(model: DynamicModel, run: LatencyRun) -> dict[str, list[BaseTokens]]:
    """Language -> the prompts that are timed.

    Raises:
        DyntokError: a length that the model does not read; see ``text_prefixes``.
    """
    before, most = len(model.tokenizer.prompt_ids), model.max_length - 1
    if not before < run.tokens <= most:
        raise DyntokError(f"latency: tokens {run.tokens}; valid is {before + 1} to {most}")
    return {
        language: text_prefixes(model.tokenizer, Path(path), run.prompts, run.tokens - before)
        for language, path in run.texts.items()
    }


def _means(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}


def _prompt(
    model: DynamicModel,
    prompt: BaseTokens,
    reductions: Sequence[float],
    boundary: Boundary,
    run: LatencyRun,
) -> list[dict[str, float]]:
    """Tokens and milliseconds of one prompt at every reduction."""
    for value in reductions:
        _first_token(model, prompt, value, boundary)  # compiles, and fills the cache
    new = []
    for value in reductions:
        empty = replace(model, cache=model.cache.emptied())
        new.append(_first_token(empty, prompt, value, boundary)["first_token_ms"])
    turns = [
        [_first_token(model, prompt, value, boundary) for value in reductions]
        for _ in range(run.repeats)
    ]
    medians = [
        {name: statistics.median(turn[i][name] for turn in turns) for name in turns[0][i]}
        for i in range(len(reductions))
    ]
    return [
        {**step, "first_token_new_rows_ms": cold} for step, cold in zip(medians, new, strict=True)
    ]


def _first_token(
    model: DynamicModel, prompt: BaseTokens, reduction: float, boundary: Boundary
) -> dict[str, float]:
    """One run from the prompt's base tokens to its first new token."""
    # All of the prompt merges: what is timed is the reduction.
    how = GenerationConfig(max_new_tokens=1, reduction=reduction, boundary=boundary, kept_words=0)
    start = time.perf_counter()
    (found,) = generate(model, [prompt], how)
    seconds = time.perf_counter() - start
    tokens = found.tokens["prompt_dynamic"]
    return {
        "tokens": float(tokens),
        "padded": float(padded_length(tokens, model.max_length, PROMPT_BUCKETS)),
        "prefill_ms": 1000 * found.seconds["prefill"],
        "first_token_ms": 1000 * seconds,
    }
