"""How many tokens languages need for the same sentences, before and after merging.

    python -m eval.report fairness --models multilingual-e5-small --text FOLDER --out FILE.json

FOLDER holds line-aligned files xx.txt, one text a line, and en.txt. Tokens are those of the text,
without special tokens, and are compared with English before and after merging. A plot stands
beside the JSON. ``--time N`` measures, for encoders with weights, what N lines of each language
take.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from dyntok_jax.command_line import is_terminal
from dyntok_jax.demo.drawing import label
from dyntok_jax.dynamic_model import load
from dyntok_jax.encoding import encode
from dyntok_jax.files import atomic_path
from dyntok_jax.merging.batch import merge
from dyntok_jax.merging.budget import Budget
from dyntok_jax.model_store import resolve
from dyntok_jax.models.decoder import DecoderConfig
from dyntok_jax.models.hf_config import read_architecture
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.layouts import prompt_layout
from dyntok_jax.types import DyntokError
from eval import record
from eval.outputs import check_companion
from eval.task_config import repeated
from eval.timing import medians

BATCH_SIZE = 32
"""Lines that are merged together."""

ENGLISH = "en"
UNSPACED = ("ja", "km", "lo", "my", "th", "zh")
"""Written without spaces between words, so that a merged token may be as long as a clause."""

REPEATS = 3
"""Timings of which the median counts."""


def main() -> None:
    """Measures, writes the figures as JSON, and a plot beside it."""
    parser = record.Parser(
        "eval.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("report", choices=["fairness"])
    add("--models", type=record.names, required=True, metavar="NAME,…", help="names or folders")
    add("--text", type=Path, required=True, metavar="FOLDER", help="aligned files xx.txt")
    add("--lines", type=record.line_range, metavar="A-B", help="lines to read (all)")
    add("--languages", nargs="+", metavar="XX", help="besides en (all)")
    add("--reduction", type=record.percent, default=100, metavar="PCT", help="of the saving (100)")
    add("--time", type=record.positive, metavar="N", help="time so many lines, too")
    record.run(parser, measure, names_model=False)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of all models; the plot is written on the way.

    Raises:
        DyntokError: files that are missing, without text or not aligned; a model that cannot be
            had, or not timed; a plot that cannot be written or would be the JSON itself.
    """
    drawn = options.out.with_suffix(".svg")
    if drawn == options.out:
        raise DyntokError(f"{drawn}: the plot has this name; valid is that of a .json beside it")
    check_companion(drawn)
    texts = _texts(options)
    if options.time:
        for name in options.models:
            _check_timed(name)
    models = []
    with atomic_path(drawn) as partial:
        for name in options.models:
            figures = compared(*_tokens(name, texts, options.reduction))
            if options.time:
                for language, seconds in _times(name, texts, options).items():
                    figures["languages"][language] |= seconds
            models.append({"model": name, **figures})
        run = {"fairness": models, "texts": len(texts[ENGLISH]), "reduction": options.reduction}
        plot(run).savefig(partial, format="svg", metadata={"Date": None})
    return run | {"plot": str(drawn)}


def _texts(options: argparse.Namespace) -> dict[str, list[str]]:
    languages = options.languages or [path.stem for path in sorted(options.text.glob("*.txt"))]
    if twice := repeated(languages):
        raise DyntokError(f"--languages: {twice} is there twice; valid are different ones")
    names = [ENGLISH, *(name for name in languages if name != ENGLISH)]
    if len(names) == 1:
        raise DyntokError(f"{options.text}: no xx.txt beside {ENGLISH}.txt")
    texts = {name: record.read_lines(options.text / f"{name}.txt", options.lines) for name in names}
    for name, lines in texts.items():
        if len(lines) != len(texts[ENGLISH]):
            raise DyntokError(
                f"{options.text}: {name}.txt and {ENGLISH}.txt differ in number of lines"
            )
    return texts


def _tokens(
    name: str, texts: Mapping[str, Sequence[str]], reduction: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Tokens of a text, on average, by language: before and after merging."""
    tokenizer = BaseTokenizer.from_folder(resolve(name))
    before, after = {}, {}
    for language, lines in texts.items():
        base = prompt_layout(tokenizer, lines)
        specials = len(tokenizer.prompt_ids) * len(lines)
        static = sum(len(part.tokens) for part in base) - specials
        if not static:
            raise DyntokError(f"{language}.txt: no token in its lines; valid are lines of text")
        merged = 0
        for start in range(0, len(base), BATCH_SIZE):
            together = merge(base[start : start + BATCH_SIZE], Budget(reduction=reduction))
            merged += sum(len(sequence.tokens) for sequence in together.sequences)
        before[language] = static / len(lines)
        after[language] = (merged - specials) / len(lines)
    return before, after


def compared(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """Lengths relative to English, and their spread over all and over spaced languages.

    Args:
        before, after: tokens of a text by language, English among them.
    """
    languages = {
        name: {
            "static": before[name],
            "dynamic": after[name],
            "static_to_english": before[name] / before[ENGLISH],
            "dynamic_to_english": after[name] / after[ENGLISH],
            "shorter_percent": 100 * (1 - after[name] / before[name]),
        }
        for name in before
    }
    spaced = [name for name in before if name not in UNSPACED]
    return {
        "languages": languages,
        "spread": {"static": _spread(before, before), "dynamic": _spread(after, after)},
        "spread_spaced": {"static": _spread(before, spaced), "dynamic": _spread(after, spaced)},
    }


def _spread(lengths: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    values = np.array([lengths[name] for name in names])
    return {"max_over_min": float(values.max() / values.min()), "gini": gini(values)}


def gini(values: Float[np.ndarray, " N"]) -> float:
    """Gini coefficient: 0 where all are equal, towards 1 where one has everything."""
    differences = np.abs(values[:, None] - values[None]).mean()
    return float(differences / (2 * values.mean()))


def _has_weights(name: str) -> bool:
    return any(resolve(name).glob("model.safetensors*"))


def _check_timed(name: str) -> None:
    if not _has_weights(name):
        return
    if isinstance(read_architecture(resolve(name)).config, DecoderConfig):
        raise DyntokError(f"--time: {name} is a decoder; valid are encoders")


def _times(
    name: str, texts: Mapping[str, Sequence[str]], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Seconds of a text before and after merging, by language; nothing without weights.

    Merging and the prediction of rows, which start from an empty cache, are in them.
    """
    if not _has_weights(name):
        return {}
    model, found = load(name), {}

    def run(lines: Sequence[str], reduction: float) -> None:
        fresh = replace(model, cache=model.cache.emptied())
        encode(fresh, lines, reduction, batch_size=BATCH_SIZE)

    for language in tqdm(texts, "timing", disable=not is_terminal(), leave=False):
        lines = texts[language][: options.time]
        tasks = {
            "seconds_static": lambda lines=lines: run(lines, 0),
            "seconds_dynamic": lambda lines=lines: run(lines, options.reduction),
        }
        taken = {key: value / len(lines) for key, value in medians(tasks, REPEATS).items()}
        gain = 100 * (1 - taken["seconds_dynamic"] / taken["seconds_static"])
        found[language] = taken | {"time_saved_percent": gain, "timed_texts": len(lines)}
    return found


def plot(run: Mapping[str, Any]) -> Any:
    """A matplotlib figure: each language's length relative to English, before and after."""
    from matplotlib.figure import Figure

    models = run["fairness"]
    languages = sorted(
        models[0]["languages"],
        key=lambda name: models[0]["languages"][name]["static_to_english"],
    )
    canvas = Figure(figsize=(4.6 * len(models), 0.8 + 0.27 * len(languages)), layout="constrained")
    for axes, model in zip(np.atleast_1d(canvas.subplots(1, len(models))), models, strict=True):
        places = np.arange(len(languages))
        static, dynamic = (
            [model["languages"][name][f"{kind}_to_english"] for name in languages]
            for kind in ("static", "dynamic")
        )
        axes.hlines(places, static, dynamic, color="0.7", zorder=1)
        axes.scatter(static, places, label="static", color="tab:gray", zorder=2)
        axes.scatter(dynamic, places, label="dynamic", color="tab:blue", zorder=3)
        axes.axvline(1, color="0.5", linewidth=0.8, linestyle=":")
        axes.set_yticks(places, [*map(label, languages)])
        axes.set_xlabel("tokens of the same sentences, English = 1")
        axes.set_title(label(Path(model["model"]).name), fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize="small", loc="lower right")
    return canvas
