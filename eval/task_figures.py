"""Figures of settings: values by language, differences to the first setting, and intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Num

from eval.bootstrap import ends, resampled_sums
from eval.mmlu_config import MmluSetting
from eval.task_config import Setting

Figure = Callable[[np.ndarray], np.ndarray]
"""Summed counts (..., K) -> the metric (...)."""

AnySetting: TypeAlias = Setting | MmluSetting
"""A line of a table: a dataclass with a name and a reduction."""


class Outcome(NamedTuple):
    """What a setting did with one adapter in one language.

    Attributes:
        counts: (N, K) what the metric sums, of every example.
        tokens_static, tokens_dynamic: before and after merging, special tokens counted.
        seconds: merging, row prediction and forward, without compiling.
        notes: what could not be read, counted by name.
    """

    counts: Num[np.ndarray, "N K"]
    tokens_static: int
    tokens_dynamic: int
    seconds: float
    notes: dict[str, int]


Outcomes = Mapping[str, Sequence[Mapping[str, Outcome]]]
"""Setting -> seed -> language."""


def figures(
    outcomes: Outcomes, figure: Figure, average: Sequence[str], settings: Sequence[AnySetting]
) -> list[dict[str, Any]]:
    """Figures of every setting, as JSON values.

    Values are means over seeds. Intervals are of examples drawn again, the same ones for all
    settings and seeds; the spread over seeds is the standard deviation of their values.

    Args:
        outcomes: of all settings; differences are to the first one.
        figure: the metric.
        average: languages of the average.
        settings: in the order of the outcomes.
    """
    drawn = _resampled(outcomes, figure)
    base = settings[0].name
    rows = []
    for setting in settings:
        seeds = outcomes[setting.name]
        languages = {
            language: _language([seed[language] for seed in seeds], figure)
            | _intervals(drawn[setting.name][language], drawn[base][language])
            for language in seeds[0]
        }
        row = _average([languages[name] for name in average]) | _intervals(
            np.mean([drawn[setting.name][name] for name in average], axis=0),
            np.mean([drawn[base][name] for name in average], axis=0),
        )
        rows.append({**asdict(setting), "languages": languages, "average": row})
    for row in rows:
        for part, first in [
            (row["average"], rows[0]["average"]),
            *((row["languages"][name], rows[0]["languages"][name]) for name in row["languages"]),
        ]:
            part["delta"] = part["value"] - first["value"]
    return rows


def value(outcomes: Sequence[Outcome], figure: Figure) -> float:
    """The metric, mean over seeds."""
    return float(np.mean([figure(outcome.counts.sum(axis=0)) for outcome in outcomes]))


def shorter(outcome: Outcome) -> float:
    """Percent of the tokens that merging saves."""
    return 100 * (1 - outcome.tokens_dynamic / outcome.tokens_static)


def _language(seeds: Sequence[Outcome], figure: Figure) -> dict[str, Any]:
    first = seeds[0]
    return {
        "value": value(seeds, figure),
        "by_seed": [float(figure(seed.counts.sum(axis=0))) for seed in seeds],
        "tokens_static": first.tokens_static,
        "tokens_dynamic": first.tokens_dynamic,
        "shorter_percent": shorter(first),
        "seconds": float(np.mean([seed.seconds for seed in seeds])),
        **first.notes,
    }


def _average(languages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    by_seed = np.mean([row["by_seed"] for row in languages], axis=0)
    return {
        "value": float(by_seed.mean()),
        "by_seed": by_seed.tolist(),
        "spread": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None,
        "shorter_percent": float(np.mean([row["shorter_percent"] for row in languages])),
        "seconds": sum(row["seconds"] for row in languages),
    }


def _intervals(drawn: Float[np.ndarray, " R"], base: Float[np.ndarray, " R"]) -> dict[str, Any]:
    return {"interval": ends(drawn), "delta_interval": ends(drawn - base)}


def _resampled(outcomes: Outcomes, figure: Figure) -> dict[str, dict[str, Float[np.ndarray, " R"]]]:
    """Setting -> language -> the metric of resampled examples, mean over seeds."""
    names = [
        (setting, seed, language)
        for setting, seeds in outcomes.items()
        for seed, languages in enumerate(seeds)
        for language in languages
    ]
    counts = {name: outcomes[name[0]][name[1]][name[2]].counts for name in names}
    values: dict[tuple[str, int, str], np.ndarray] = {}
    # Languages with as many examples are drawn together: parallel ones stay parallel.
    for size in sorted({len(part) for part in counts.values()}):
        group = [name for name in names if len(counts[name]) == size]
        sums = resampled_sums(np.concatenate([counts[name] for name in group], axis=1))
        for name, part in zip(group, np.split(sums, len(group), axis=1), strict=True):
            values[name] = figure(part)
    return {
        setting: {
            language: np.mean([values[setting, k, language] for k in range(len(seeds))], axis=0)
            for language in seeds[0]
        }
        for setting, seeds in outcomes.items()
    }
