"""Generation: against transformers, static prompts, the original's scheme and the own vocabulary.

    python -m eval.bench_generation --model smollm2-135m-instruct \
        --texts out/text/wiki_qa/de.txt,out/text/ntrex/ru.txt,out/text/ntrex/tr.txt \
        --vocabulary DIR --index DIR --out out/bench_generation.json

``decode``: tokens a second against transformers, in the same dtype, greedy, from prompts of 64
base tokens. ``prefill``: time to the first token of merged prompts beside static ones.
``recompute``: against the original's scheme, which reads the whole prefix for every token, also
with drafts. ``lookup``: drafts beside plain decoding, of best texts and of drawn ones.
``index``: a decode step in a large vocabulary beside one in the model's own. The sides of a part
run in one process and, but for ``recompute``, turn and turn about; compiling and first calls are
not timed. No text ends before its length. eval/results/generation_*.json are runs of single parts.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dyntok_jax.config import ComputeConfig
from dyntok_jax.dynamic_model import DynamicModel, load
from dyntok_jax.generate import GenerationConfig, OutputVocabulary, generate
from dyntok_jax.generation.opening import open_vocabulary, output_vocabulary
from dyntok_jax.large_vocabulary.opening import EXACT
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary
from dyntok_jax.model_store import resolve
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.types import DyntokError
from eval.continuation import text_prefixes
from eval.efficiency_config import LatencyRun
from eval.efficiency_latency import latencies
from eval.record import Parser, names, positive, run
from eval.timing import medians

PROMPT = 64
"""Base tokens of a prompt from which tokens are generated."""

PREFILL = 512
"""Base tokens of a prompt whose reading is timed."""

BATCHES = (1, 8)
PARTS = ("decode", "prefill", "recompute", "lookup", "index")


def main() -> None:
    """The command."""
    parser = Parser(
        prog="eval.bench_generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", type=names, default=list(PARTS), metavar="NAME,…", help=", ".join(PARTS))
    add("--texts", type=names, required=True, metavar="FILE,…", help="prompts are cut from these")
    add("--rows", default="default", help="rows of merged tokens (default)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of both sides")
    add(
        "--new-tokens",
        type=positive,
        default=128,
        metavar="N",
        help="of each text, for decode, lookup and index (128)",
    )
    add(
        "--recompute-tokens",
        type=positive,
        default=512,
        metavar="N",
        help="of the text, for recompute (512)",
    )
    add("--lookup-tokens", type=positive, default=7, metavar="N", help="drafted in a step (7)")
    add(
        "--repeats",
        type=positive,
        default=5,
        metavar="N",
        help="of each timing but recompute's (5)",
    )
    add("--vocabulary", metavar="DIR", help="a large one, for recompute and index")
    add("--index", metavar="DIR", help="of the large vocabulary, for index")
    run(parser, _measure)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        raise DyntokError(f"parts {', '.join(unknown)}: valid are {', '.join(PARTS)}")
    if "index" in options.parts and not (options.vocabulary and options.index):
        raise DyntokError("part index: it needs --vocabulary and --index")
    model = load(options.model, options.rows, ComputeConfig(dtype=options.dtype))
    model = replace(model, end_ids=())
    texts = [Path(path) for path in options.texts]
    prompts = text_prefixes(model.tokenizer, texts[0], max(BATCHES), PROMPT)
    found: dict[str, Any] = {"generation": list(options.parts), "model": options.model}
    found |= {"dtype": options.dtype, "versions": {"jax": jax.__version__}}
    other = None
    if importlib.util.find_spec("torch"):
        from eval.torch_generation import TorchGeneration, torch

        other = TorchGeneration(resolve(options.model), options.dtype)
        found["versions"]["torch"] = torch.__version__
    for part in options.parts:
        if part == "prefill":
            found[part] = against_static(model, texts, options.repeats)
        elif part == "lookup":
            how = options.new_tokens, options.lookup_tokens, options.repeats
            found[part] = [
                with_drafts(model, prompts, temperature, *how) for temperature in (0.0, 1.0)
            ]
        elif part == "index":
            large = open_vocabulary(options.vocabulary, model, options.index)
            found[part] = against_own(
                model, prompts[0], large, options.new_tokens, options.repeats
            ) | {"vocabulary": options.vocabulary, "index": options.index}
        elif other is None:
            found[part] = "torch is not installed"
        elif part == "decode":
            found[part] = [
                against_transformers(
                    model, other, prompts[:size], options.new_tokens, options.repeats
                )
                for size in BATCHES
            ]
        else:
            found[part] = against_recomputing(
                model,
                other,
                prompts[0],
                options.recompute_tokens,
                options.lookup_tokens,
                options.vocabulary,
            )
    return found


def against_transformers(
    model: DynamicModel, other: Any, prompts: Sequence[BaseTokens], new: int, repeats: int
) -> dict[str, Any]:
    """Tokens a second behind the first one, of both sides.

    Args:
        model: whose texts do not end.
        other: a ``TorchGeneration``.
        prompts: a batch, of one length.
        new: tokens of each text.
        repeats: of the timing.
    """
    ids = np.stack([prompt.ids for prompt in prompts])
    texts = {"jax": [[0]], "torch": np.zeros((1, 1))}

    def ours() -> None:
        texts["jax"] = _generate(model, prompts, new)

    def theirs() -> None:
        texts["torch"] = other.generate(ids, new)

    seconds = medians(
        {
            "jax": ours,
            "torch": theirs,
            "jax_first": lambda: _generate(model, prompts, 1),
            "torch_first": lambda: other.generate(ids, 1),
        },
        repeats,
    )
    speed = {
        f"{side}_tokens_per_s": len(prompts)
        * (new - 1)
        / (seconds[side] - seconds[f"{side}_first"])
        for side in ("jax", "torch")
    }
    return {
        "batch": len(prompts),
        "prompt": ids.shape[1],
        "new": new,
        **speed,
        "ratio": speed["jax_tokens_per_s"] / speed["torch_tokens_per_s"],
        "same_tokens": float(np.mean(np.array(texts["jax"]) == texts["torch"])),
    }


def against_static(
    model: DynamicModel, texts: Sequence[Path], repeats: int
) -> list[dict[str, Any]]:
    """Time to the first token of prompts merged to 100 %, each alone, rows being in the cache."""
    timed = LatencyRun(
        {f"{path.parent.name}/{path.name}": str(path) for path in texts},
        tokens=PREFILL,
        repeats=repeats,
    )
    found = latencies(model, timed, (0.0, 100.0), Boundary.PRETOKEN)
    rows = []
    for language, (static, dynamic) in found.items():
        left = dynamic["tokens"] / static["tokens"]
        bound = static["first_token_ms"] * left / 0.85
        rows.append(
            {
                "text": language,
                "tokens_before": static["tokens"],
                "tokens_after": dynamic["tokens"],
                "static_s": static["first_token_ms"] / 1000,
                "dynamic_s": dynamic["first_token_ms"] / 1000,
                "dynamic_new_rows_s": dynamic["first_token_new_rows_ms"] / 1000,
                "bound_s": bound / 1000,
                "within_bound": dynamic["first_token_ms"] <= bound,
            }
        )
    return rows


def against_recomputing(
    model: DynamicModel, other: Any, prompt: BaseTokens, new: int, draft: int, folder: str | None
) -> dict[str, Any]:
    """Seconds of one whole text, by the original's scheme and here, both searching exactly.

    With a large vocabulary, both read the prompt by its longest prefixes and its rows, and there
    are no drafts.

    Args:
        model: whose texts do not end.
        other: a ``TorchGeneration``.
        prompt: the only one.
        new: tokens.
        draft: tokens drafted in a step of another run.
        folder: of a large vocabulary; without one, the model's own.
    """
    vocabulary, rows, ids, reduction = None, model.source, prompt.ids, 0.0
    if folder is not None:
        large = LargeVocabulary.load(folder, model.tokenizer)
        vocabulary = output_vocabulary(large, model, EXACT)
        rows, ids, reduction = large.rows(), np.array(large.tokenize(prompt)), None
    output = rows.input if rows.output is None else rows.output
    output = np.require(output, np.float32, "W")  # torch warns of memory it must not write
    other.recompute(ids, 2, rows.input, output)
    start = time.perf_counter()
    theirs = other.recompute(ids, new, rows.input, output)
    middle = time.perf_counter()
    found: dict[str, Any] = {"vocabulary": len(rows.input), "prompt": len(ids), "new": new}
    found["torch_s"] = middle - start
    runs = {"": 0}
    if vocabulary is None:
        runs["lookup_"] = found["draft"] = draft
    for name, lookup in runs.items():
        _generate(model, [prompt], new, vocabulary, reduction, lookup_tokens=lookup)
        begin = time.perf_counter()
        (ours,) = _generate(model, [prompt], new, vocabulary, reduction, lookup_tokens=lookup)
        found[f"{name}jax_s"] = time.perf_counter() - begin
        found[f"{name}ratio"] = found["torch_s"] / found[f"{name}jax_s"]
        found[f"{name}same_tokens"] = float(np.mean(np.array(ours) == theirs))
    return found


def with_drafts(
    model: DynamicModel,
    prompts: Sequence[BaseTokens],
    temperature: float,
    new: int,
    draft: int,
    repeats: int,
) -> dict[str, Any]:
    """Seconds of the texts after some prompts, one by one, with drafts and without.

    Args:
        model: whose texts do not end.
        prompts: of the texts.
        temperature: of the draws; 0 takes the best tokens.
        new: tokens of each text.
        draft: tokens drafted in a step.
        repeats: of the timing.
    """
    texts: dict[str, list[list[int]]] = {}

    def task(name: str, lookup: int) -> Callable[[], None]:
        how = {"temperature": temperature, "lookup_tokens": lookup}

        def run() -> None:
            texts[name] = [
                _generate(model, [prompt], new, seed=seed, **how)[0]
                for seed, prompt in enumerate(prompts)
            ]

        return run

    seconds = medians({"plain": task("plain", 0), "lookup": task("lookup", draft)}, repeats)
    same = np.array(texts["plain"]) == np.array(texts["lookup"])
    return {
        "temperature": temperature,
        "texts": len(prompts),
        "new": new,
        "draft": draft,
        **{f"{name}_s": value for name, value in seconds.items()},
        "ratio": seconds["plain"] / seconds["lookup"],
        "same_tokens": float(same.mean()),
    }


def against_own(
    model: DynamicModel, prompt: BaseTokens, large: OutputVocabulary, new: int, repeats: int
) -> dict[str, Any]:
    """Seconds of a decode step in a large vocabulary and in the model's own, at batch 1."""

    def task(vocabulary: OutputVocabulary | None, count: int) -> Callable[[], object]:
        return lambda: _generate(model, [prompt], count, vocabulary)

    seconds = medians(
        {
            "large": task(large, new),
            "own": task(None, new),
            "large_first": task(large, 1),
            "own_first": task(None, 1),
        },
        repeats,
    )
    step = {
        f"{name}_step_s": (seconds[name] - seconds[f"{name}_first"]) / (new - 1)
        for name in ("own", "large")
    }
    ratio = step["large_step_s"] / step["own_step_s"]
    return {"size": len(large.tokens), "new": new, **step, "ratio": ratio}


def _generate(
    model: DynamicModel,
    prompts: Sequence[BaseTokens],
    new: int,
    vocabulary: OutputVocabulary | None = None,
    reduction: float | None = 0.0,
    **settings: Any,
) -> list[list[int]]:
    """Ids of the texts, by default the best, behind base tokens or ones of the vocabulary."""
    how = GenerationConfig(
        max_new_tokens=new, reduction=reduction, batch_size=len(prompts), **settings
    )
    return [text.ids for text in generate(model, prompts, how, vocabulary)]


if __name__ == "__main__":
    main()
