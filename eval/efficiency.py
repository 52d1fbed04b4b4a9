"""What shorter prompts save: operations, time to the first token, memory of keys and values.

    MMLU=FOLDER M_MMLU=FOLDER TEXT=FOLDER python -m eval.efficiency \
      --config configs/eval/efficiency_smollm2.yaml --out out/efficiency.json

Prompts are MMLU's with five solved questions, each merged alone, without the answer. Operations are
counted by formula, held against the count of the program's own products at the mean lengths. The
hypernetwork's are told twice: predicting every prompt's tokens anew, and only those that the cache
does not hold, in the order of the questions and from an empty cache. A model's shape alone
(``decoder``) needs no weights. A plot stands beside the JSON.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dyntok_jax.batching import make_batch
from dyntok_jax.config import read_config
from dyntok_jax.dynamic_model import DynamicModel, load
from dyntok_jax.embed.cache import RowCache
from dyntok_jax.embed.hypernet import HypernetConfig
from dyntok_jax.embed.zett import load_hypernet
from dyntok_jax.files import atomic_path
from dyntok_jax.merging.batch import merge
from dyntok_jax.merging.budget import Budget
from dyntok_jax.merging.punctuation import PunctuationRule
from dyntok_jax.model_store import resolve
from dyntok_jax.models.decoder import DecoderConfig
from dyntok_jax.models.kv_cache import kv_bytes
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import whole_words
from dyntok_jax.types import DyntokError, Rows, Token
from eval import efficiency_figures, record
from eval.efficiency_config import EfficiencyRun
from eval.efficiency_flops import (
    decoder_flops,
    decoder_products,
    hypernet_flops,
    hypernet_products,
)
from eval.efficiency_latency import latencies, latency_prompts
from eval.mmlu_config import MmluData
from eval.mmlu_data import asked
from eval.outputs import check_companion

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
PROGRAM = "the count of the program's own products"
"""What the formulas are held against, in the words of a report."""

CHECKED_TOKENS = 256
"""Tokens by which the hypernetwork's formula is held against the program's products."""


def main() -> None:
    """Measures, writes the figures as JSON, and a plot beside it."""
    parser = record.Parser(
        "eval.efficiency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="YAML of efficiency_config")
    add("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="fields of the config")

    def measured(options: argparse.Namespace) -> dict[str, Any]:
        drawn = options.out.with_suffix(".svg")
        if drawn == options.out:
            raise DyntokError(f"{options.out}: a plot .svg stands beside it; give a .json")
        check_companion(drawn)
        found = measure(read_config(EfficiencyRun, options.config, options.overrides))
        with atomic_path(drawn) as partial:
            canvas = efficiency_figures.plot(found)
            canvas.savefig(partial, format="svg", metadata={"Date": None})
        return found | {"plot": str(drawn)}

    record.run(parser, measured, names_model=False)


def measure(run: EfficiencyRun) -> dict[str, Any]:
    """Figures of a run, as JSON values.

    Raises:
        DyntokError: a model, rows or questions that cannot be had.
    """
    base_rows = None if run.rows == "base" else run.base_rows
    model = None
    if not run.decoder:
        model = load(run.model, run.rows, run.compute, base_rows=base_rows)
    tokenizer = model.tokenizer if model else BaseTokenizer.from_folder(resolve(run.model))
    decoder, hypernet = _shapes(run, model)
    if run.latency and model:
        latency_prompts(model, run.latency)  # so that a bad text is found out before the counting
    count = Counting(run, tokenizer, decoder, hypernet)
    languages = {data.language: count.language(data) for data in run.data}
    found: dict[str, Any] = {
        "efficiency": languages,
        "model": run.model,
        "decoder": asdict(decoder),
        "hypernet": None if hypernet is None else asdict(hypernet),
        "base_rows": run.base_rows,
        "kv_dtype": run.kv_dtype,
        "cache_batch_size": run.cache.batch_size,
        "check": _check(decoder, hypernet, languages),
        "latency": {},
    }
    if run.latency and model:
        found["latency"] = latencies(model, run.latency, run.reductions, run.boundary)
        found["latency_prompts"] = run.latency.prompts
        found["latency_tokens"] = run.latency.tokens
    return found


def _shapes(
    run: EfficiencyRun, model: DynamicModel | None
) -> tuple[DecoderConfig, HypernetConfig | None]:
    config: Any = run.decoder
    hypernet = run.hypernet
    if model is not None:
        config = getattr(model.module, "config", None)
        if not isinstance(config, DecoderConfig):
            raise DyntokError(f"{run.model} is an encoder: prefilling needs a decoder")
        folder = Path(model.rows)
        hypernet = load_hypernet(folder)[0] if folder.is_dir() else None
    if hypernet and hypernet.model_layers:
        raise DyntokError(
            "operations of hypernetworks that read the model (model_layers) are not counted"
        )
    return config, hypernet


def _check(
    decoder: DecoderConfig, hypernet: HypernetConfig | None, languages: dict[str, Any]
) -> dict[str, Any]:
    """The formulas divided by the program's count, at the first and last mean lengths."""
    lengths = {
        round(point["tokens"])
        for language in languages.values()
        for point in (language["points"][0], language["points"][-1])
    }
    ratios = {
        tokens: decoder_flops(decoder, tokens) / decoder_products(decoder, tokens)
        for tokens in sorted(lengths)
    }
    found: dict[str, Any] = {"decoder": ratios, "against": PROGRAM}
    if hypernet:
        formula = hypernet_flops(hypernet, CHECKED_TOKENS)
        found["hypernet"] = formula / hypernet_products(hypernet, CHECKED_TOKENS)
    return found


class Counting:
    """Counts tokens, operations and bytes of prompts.

    Attributes:
        run: what is counted.
    """

    def __init__(
        self,
        run: EfficiencyRun,
        tokenizer: BaseTokenizer,
        decoder: DecoderConfig,
        hypernet: HypernetConfig | None,
    ):
        self.run = run
        self._tokenizer = tokenizer
        self._decoder = decoder
        self._hypernet = hypernet
        hyphen = run.boundary is Boundary.WORD_HYPHEN
        self._rule = PunctuationRule(tokenizer.vocabulary()) if hyphen else None
        self._own: dict[Token, bool] = {}

    def language(self, data: MmluData) -> dict[str, Any]:
        """Figures of a language by reduction, and how its cache fills."""
        found = asked(self._tokenizer, data, self.run.boundary, self.run.max_length)
        points, sequences = [], []
        # As ``DynamicModel.merge``; a shape alone has no model.
        longest = self._hypernet and self._hypernet.surface_length
        prompts = whole_words(found.prompts, longest, self.run.boundary)
        for reduction in self.run.reductions:
            budget = Budget(reduction=reduction)
            merged = merge(prompts, budget, rule=self._rule, per_sample=True)
            sequences = [part.tokens for part in merged.sequences]
            points.append({"reduction": reduction, **self._point(sequences)})
        static = points[0]
        for point in points:
            for name in ("tokens", "model_flops", "total_flops"):
                point[f"{name}_saved_percent"] = 100 * (1 - point[name] / static[name])
        curves = [self._cache(sequences, size) for size in sorted(self.run.cache.capacities)]
        return {"prompts": len(found.prompts), **found.notes, "points": points, "cache": curves}

    def _point(self, sequences: Sequence[Sequence[Token]]) -> dict[str, float]:
        """Means over the prompts at one reduction."""
        lengths = np.array([len(tokens) for tokens in sequences], np.float64)
        model = float(decoder_flops(self._decoder, lengths).mean())
        anew = float(np.mean([sum(map(self._predicted, set(part))) for part in sequences]))
        curve = self._cache(sequences, max(self.run.cache.capacities))
        missed = sum(curve["predicted"]) / len(sequences)
        each = hypernet_flops(self._hypernet, 1.0) if self._hypernet else 0.0
        itemsize = ITEM_BYTES[self.run.kv_dtype]
        return {
            "tokens": float(lengths.mean()),
            "model_flops": model,
            "predicted_tokens": anew,
            "predicted_tokens_cached": missed,
            "hypernet_flops": each * missed,
            "hypernet_flops_uncached": each * anew,
            "total_flops": model + each * missed,
            "hypernet_percent": 100 * each * missed / (model + each * missed),
            "kv_bytes": float(kv_bytes(self._decoder, lengths, itemsize).mean()),
        }

    def _predicted(self, token: Token) -> bool:
        """Whether a hypernetwork predicts the token's row; others are the model's own."""
        if isinstance(token, int):
            return False
        if self.run.base_rows == "predicted":
            return True
        if token not in self._own:
            self._own[token] = self._tokenizer.id_of(token) is not None
        return not self._own[token]

    def _cache(self, sequences: Sequence[Sequence[Token]], capacity: int) -> dict[str, Any]:
        """Hits and misses batch by batch, and how many of the misses are predicted."""
        size = self.run.cache.batch_size
        asked_for = _Noted(self._predicted)
        # A batch with more tokens than rows makes the cache grow, which is told below.
        with _quiet("dyntok_jax.embed.cache"):
            cache = RowCache(asked_for, capacity)
            curve: dict[str, Any] = {"hits": [], "misses": [], "predicted": []}
            for start in range(0, len(sequences), size):
                before = cache.hits, cache.misses, asked_for.predicted
                part = sequences[start : start + size]
                cache.lookup(make_batch(part, "left", len(part), max(map(len, part))).tokens)
                after = cache.hits, cache.misses, asked_for.predicted
                for name, first, last in zip(curve, before, after, strict=True):
                    curve[name].append(last - first)
        return {"capacity": capacity, "grown_to": cache.capacity, **curve}


class _Noted:
    """A row provider that costs nothing and counts what a hypernetwork would predict."""

    def __init__(self, predicts: Callable[[Token], bool]):
        self.predicted = 0
        self._predicts = predicts

    def rows(self, tokens: Sequence[Token]) -> Rows:
        self.predicted += sum(map(self._predicts, tokens))
        return Rows(np.zeros((len(tokens), 1), np.float32))


class _quiet:
    """Keeps a logger's warnings back for a while."""

    def __init__(self, name: str):
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        self._logger.setLevel(self._level)


if __name__ == "__main__":
    main()
