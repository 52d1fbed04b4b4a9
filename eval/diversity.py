"""How much sampled continuations repeat themselves, in a large vocabulary and in the model's own.

    python -m eval.diversity --model smollm2-135m-instruct --vocabulary out/vocabulary_smollm2 \
      --text en.txt --prompts 50 --temperature 1 --out out/diversity.json

Prompts are stretches of base tokens, spread evenly over each file; under the large vocabulary they
are read by longest prefixes. Both draw from the same number of best tokens. Distinct-4 is the share
of a continuation's stretches of four words that are different; since it falls with length, and
tokens of a large vocabulary are longer, both continuations of a prompt are cut to the words of the
shorter. Prompts where one has fewer than four words are left out, and counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dyntok_jax.dynamic_model import load
from dyntok_jax.generate import GenerationConfig, generate
from dyntok_jax.generation.opening import open_vocabulary
from dyntok_jax.large_vocabulary.opening import EXACT
from dyntok_jax.types import DyntokError
from eval import record
from eval.bootstrap import interval
from eval.continuation import text_prefixes
from eval.mt_bench_answers import GRAM, distinct_share


def main() -> None:
    """Measures, writes the figures as JSON."""
    parser = record.Parser(
        "eval.diversity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    number: dict[str, Any] = {"type": record.positive, "metavar": "N"}
    add("--vocabulary", type=Path, required=True, metavar="DIR", help="a large one, with rows")
    add("--index", default=EXACT, help="exact, exact-cosine or the folder of a ScaNN index (exact)")
    add("--text", type=Path, nargs="+", required=True, metavar="FILE", help="one text a line")
    add("--prompts", **number, default=50, help="of each file (50)")
    add("--prompt-tokens", **number, default=64, help="(64)")
    add("--max-new-tokens", **number, default=128, help="(128)")
    add("--temperature", type=float, default=1.0, metavar="T", help="(1)")
    add("--top-k", **number, default=64, help="best tokens to draw from (64)")
    add("--seed", type=int, default=0, metavar="N", help="of the draws (0)")
    record.run(parser, measure)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every file."""
    model = load(options.model, "fvt")
    if model.kind != "decoder":
        raise DyntokError(f"{model.name} is an encoder: it generates no text")
    settings = {
        name: GenerationConfig(
            max_new_tokens=options.max_new_tokens,
            reduction=reduction,
            temperature=options.temperature,
            top_k=options.top_k,
            candidates=options.top_k,
            seed=options.seed,
        )
        for name, reduction in (("static", 0.0), ("large", None))
    }
    vocabularies = {
        "static": None,
        "large": open_vocabulary(options.vocabulary, model, options.index),
    }
    files = {}
    for path in options.text:
        prompts = text_prefixes(model.tokenizer, path, options.prompts, options.prompt_tokens)
        texts = {
            name: [text.text for text in generate(model, prompts, how, vocabularies[name])]
            for name, how in settings.items()
        }
        files[str(path)] = compared(texts["static"], texts["large"])
    names = ("model", "prompts", "prompt_tokens", "max_new_tokens", "temperature", "top_k", "seed")
    chosen = {name: getattr(options, name) for name in names}
    return {"task": "diversity", **chosen, "files": files}


def compared(static: Sequence[str], large: Sequence[str]) -> dict[str, Any]:
    """Distinct-4 of continuations of the same prompts.

    Raises:
        DyntokError: no pair of four words each.
    """
    pairs = [(a.split(), b.split()) for a, b in zip(static, large, strict=True)]
    sizes = [min(map(len, pair)) for pair in pairs]
    cut = [
        [distinct_share(" ".join(words[:size])) for words in pair]
        for pair, size in zip(pairs, sizes, strict=True)
        if size >= GRAM
    ]
    if not cut:
        raise DyntokError("no prompt has two continuations of four words; give more new tokens")
    shares = np.array(cut, np.float64)

    def difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        return (after - before) / len(shares)

    means = shares.mean(axis=0).tolist()
    return {
        "static_distinct_4": means[0],
        "large_distinct_4": means[1],
        "difference": means[1] - means[0],
        "difference_interval": interval(difference, *shares.T),
        "words": sum(size for size in sizes if size >= GRAM),
        "left_out": len(pairs) - len(shares),
    }


if __name__ == "__main__":
    main()
