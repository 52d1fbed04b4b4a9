"""The encoder's forward against torch, and encoding end to end, static against dynamic."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dyntok_jax.batching import by_length
from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.encoding import mean_pooled, pooled
from dyntok_jax.merging.batch import DynamicTokens
from dyntok_jax.merging.budget import Budget
from dyntok_jax.sharding import compiled_forward
from dyntok_jax.text.layouts import BaseTokens, text_layout
from dyntok_jax.types import Token
from eval.timing import medians

LANGUAGES = ("en", "de", "ru", "tr", "ar")
BATCH_SIZE = 32
FORWARD_SHAPE = (32, 64)


def bench_forward(model: DynamicModel, folder: Path) -> dict[str, Any]:
    """Mean-pooled forward of one batch, in float32; torch's beside it where torch is installed."""
    batch, length = FORWARD_SHAPE
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 200_000, (batch, length))
    tokens: list[list[Token]] = [[int(i) for i in row] for row in ids]
    prepared = model.batch(tokens)
    counts = prepared.mask.astype(np.float32)

    def run_jax():
        return jax.block_until_ready(model.forward(prepared, mean_pooled, counts))

    start = time.perf_counter()
    run_jax()
    result = {"shape": list(FORWARD_SHAPE), "first_call_s": time.perf_counter() - start}
    tasks = {"jax": run_jax}
    if importlib.util.find_spec("torch"):
        tasks["torch"] = _torch_forward(folder, ids, np.asarray(run_jax()))
    seconds = medians(tasks)
    result |= {f"{name}_s": value for name, value in seconds.items()}
    if "torch" in seconds:
        result["ratio"] = seconds["torch"] / seconds["jax"]
    return result


def _torch_forward(folder: Path, ids: np.ndarray, expected: np.ndarray):
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModel

    network = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    inputs = torch.from_numpy(ids)

    def run():
        with torch.inference_mode():
            return network(inputs).last_hidden_state.mean(1).numpy()

    np.testing.assert_allclose(run(), expected, rtol=1e-3, atol=1e-4)
    return run


def bench_end_to_end(model: DynamicModel, folder: Path) -> dict[str, Any]:
    """Merging, warm row cache, gather and forward over XNLI's dev premises.

    Args:
        model: an encoder with FVT rows.
        folder: holds dev-XX.tsv, the premise in the first column.
    """
    rows = []
    for language in LANGUAGES:
        lines = (folder / f"dev-{language}.tsv").read_text("utf-8").splitlines()
        premises = list(dict.fromkeys(line.split("\t")[0] for line in lines))
        sequences = text_layout(model.tokenizer, premises)
        rows.append({"language": language, "premises": len(premises)} | _compare(model, sequences))
    shapes = compiled_forward(model.module, model.mesh, mean_pooled)._cache_size()  # pyright: ignore
    return {"languages": rows, "compiled_shapes": shapes}


def _compare(model: DynamicModel, sequences: Sequence[BaseTokens]) -> dict[str, Any]:
    static, dynamic = _merge(model, sequences, 0), _merge(model, sequences)
    seconds = medians(
        {
            "static": lambda: pooled(model, static, "mean", BATCH_SIZE),
            "dynamic": lambda: pooled(model, _merge(model, sequences), "mean", BATCH_SIZE),
            "merging": lambda: _merge(model, sequences),
            "lookup": lambda: _look_up(model, dynamic),
        },
        repeats=3,
    )
    before, after = (sum(len(s.tokens) for s in merged) for merged in (static, dynamic))
    bound = seconds["static"] * after / before / 0.85
    return {
        "tokens_before": before,
        "tokens_after": after,
        **{f"{name}_s": value for name, value in seconds.items()},
        "bound_s": bound,
        "within_bound": seconds["dynamic"] <= bound,
        "merging_and_lookup": (seconds["merging"] + seconds["lookup"]) / seconds["dynamic"],
    }


def _merge(
    model: DynamicModel, sequences: Sequence[BaseTokens], reduction: float = 100
) -> list[DynamicTokens]:
    budget = Budget(reduction=reduction)
    merged = (
        model.merge(sequences[i : i + BATCH_SIZE], budget)
        for i in range(0, len(sequences), BATCH_SIZE)
    )
    return [sequence for batch in merged for sequence in batch.sequences]


def _look_up(model: DynamicModel, sequences: Sequence[DynamicTokens]) -> None:
    for place in by_length([len(s.tokens) for s in sequences], BATCH_SIZE):
        unique = dict.fromkeys(token for i in place for token in sequences[i].tokens)
        model.cache.lookup(list(unique))
