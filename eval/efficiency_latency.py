"""How long a decoder takes to its first token, before and after merging a prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.merging.budget import Budget
from dyntok_jax.models.heads import logits
from dyntok_jax.sharding import gathered
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens
from eval.continuation import text_prefixes
from eval.efficiency_config import LatencyRun
from eval.timing import medians


def latencies(
    model: DynamicModel, run: LatencyRun, reductions: Sequence[float], boundary: Boundary
) -> dict[str, list[dict[str, Any]]]:
    """Language -> milliseconds of a prompt by reduction.

    A prompt is read alone, padded to its bucket of lengths. Times are medians over repeats in which
    the reductions take turns, and means over prompts; compiling is in none of them.
    """
    before = len(model.tokenizer.prompt_ids)
    found = {}
    for language, path in run.texts.items():
        prompts = text_prefixes(model.tokenizer, Path(path), run.prompts, run.tokens - before)
        by_prompt = [
            _prompt(model, prompt, reductions, boundary, run.repeats) for prompt in prompts
        ]
        found[language] = [
            {"reduction": value, **_means([steps[i] for steps in by_prompt])}
            for i, value in enumerate(reductions)
        ]
    return found


def _means(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}


def _prompt(
    model: DynamicModel,
    prompt: BaseTokens,
    reductions: Sequence[float],
    boundary: Boundary,
    repeats: int,
) -> list[dict[str, float]]:
    """Tokens and milliseconds of one prompt at every reduction."""

    def merged(reduction: float):
        return model.merge([prompt], Budget(reduction=reduction), boundary).sequences[0].tokens

    tokens = {str(value): merged(value) for value in reductions}
    batches = {name: model.batch([part]) for name, part in tokens.items()}
    output = model.output_rows

    def prefill(name: str) -> None:
        model.forward(batches[name], first_token, output).block_until_ready()

    def whole(reduction: float) -> None:
        batch = model.batch([merged(reduction)])
        model.forward(batch, first_token, output).block_until_ready()

    # The rows are in the cache then; reading them is timed with the network.
    prefills = medians({name: partial(prefill, name) for name in tokens}, repeats)
    firsts = medians({str(value): partial(whole, value) for value in reductions}, repeats)
    predictions = {name: _prediction(model, batch.tokens) for name, batch in batches.items()}
    return [
        {
            "tokens": float(len(tokens[name])),
            "padded": float(batches[name].ids.shape[1]),
            "prefill_ms": 1000 * prefills[name],
            "first_token_ms": 1000 * firsts[name],
            "first_token_new_rows_ms": 1000 * (firsts[name] + predictions[name]),
        }
        for name in tokens
    ]


def _prediction(model: DynamicModel, tokens: Sequence[Any]) -> float:
    """Seconds of a lookup in an empty cache, once it has run before."""
    seconds = 0.0
    for _ in range(2):
        fresh = model.with_rows(model.rows)
        start = time.perf_counter()
        fresh.cache.lookup(tokens)
        jax.block_until_ready(fresh.cache.tables.input)
        seconds = time.perf_counter() - start
    return seconds


def first_token(
    module: nn.Module,
    rows: Float[Array, "U D"],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    output_rows: Float[Array, "V D"],
) -> Int[Array, " B"]:
    """The most probable token after each sequence."""
    hidden = gathered(module, rows, ids, mask)[:, -1]
    return jnp.argmax(logits(hidden, output_rows), axis=-1)
