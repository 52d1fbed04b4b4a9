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
        seconds: (2,) as ``timing.clocks`` counts: merging, row prediction and forward, without
            compiling.
        notes: what could not be read, or in part only, counted by name.
    """

    counts: Num[np.ndarray, "N K"]
    tokens_static: int
    tokens_dynamic: int
    seconds: Float[np.ndarray, " 2"]
    notes: dict[str, int]


Seeds: TypeAlias = Sequence[int | None]
"""Of a setting's adapters, in their order; None where one is not known."""

Outcomes = Mapping[str, Sequence[Mapping[str, Outcome]]]
"""Setting -> seed -> language."""


def figures(
    outcomes: Outcomes,
    figure: Figure,
    average: Sequence[str],
    settings: Sequence[AnySetting],
    seeds: Mapping[str, Seeds] | None = None,
    controls: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Figures of every setting, as JSON values.

    Values are means over seeds. Intervals are of examples drawn again, the same ones for all
    settings and seeds; the spread over seeds is the standard deviation of their values.
    Differences are to the first setting, between means over the seeds that both have, which are
    the row's ``delta_seeds``; between means over all where a seed is not known or none is shared.
    ``control_delta`` of a setting's average is the same to the setting's control, over
    ``control_seeds``.

    Args:
        outcomes: of all settings.
        figure: the metric.
        average: languages of the average.
        settings: in the order of the outcomes.
        seeds: what each setting's adapters were trained with; not known by default.
        controls: setting -> its control, where it has one.
    """
    drawn = {
        name: {**part, None: np.mean([part[language] for language in average], axis=0)}
        for name, part in _resampled(outcomes, figure).items()
    }
    seeds = seeds or {name: [None] * len(found) for name, found in outcomes.items()}
    base, rows = settings[0].name, {}
    for setting in settings:
        found = outcomes[setting.name]
        languages = {name: _language([seed[name] for seed in found], figure) for name in found[0]}
        row = _average([languages[name] for name in average])
        rows[setting.name] = {**asdict(setting), "languages": languages, "average": row}

    def parts(name: str, language: str | None) -> _Part:
        row = rows[name]["average"] if language is None else rows[name]["languages"][language]
        return row, drawn[name][language], seeds[name]

    for name, row in rows.items():
        for language in (*row["languages"], None):
            part, own, _ = mine = parts(name, language)
            part["interval"] = ends(own.mean(axis=0))
            shared, *difference = _difference(mine, parts(base, language))
            part["delta"], part["delta_interval"] = difference
            if language is None:
                part["delta_seeds"] = shared
        if control := (controls or {}).get(name):
            names = "control_seeds", "control_delta", "control_interval"
            found = _difference(parts(name, None), parts(control, None))
            row["average"] |= dict(zip(names, found, strict=True))
    return [*rows.values()]


_Part: TypeAlias = tuple[dict[str, Any], Float[np.ndarray, "K R"], Seeds]
"""Figures of a setting, the metric of resampled examples for each of its K seeds, and these."""


def _difference(one: _Part, other: _Part) -> tuple[list[int] | None, float, Any]:
    """The seeds that both have, the difference over them, as ``figures`` says, its interval."""
    shared, mine, others = _paired(one[2], other[2])
    delta = _mean(one[0]["by_seed"], mine) - _mean(other[0]["by_seed"], others)
    return shared, delta, ends(one[1][mine].mean(axis=0) - other[1][others].mean(axis=0))


def _paired(seeds: Seeds, first: Seeds) -> tuple[list[int] | None, list[int], list[int]]:
    """The seeds in both, and their places in each; None and all places as ``figures`` says."""
    shared = [seed for seed in seeds if seed is not None and seed in first]
    if not shared or None in (*seeds, *first):
        return None, [*range(len(seeds))], [*range(len(first))]
    return shared, [seeds.index(seed) for seed in shared], [first.index(seed) for seed in shared]


def _mean(values: Sequence[float], places: Sequence[int]) -> float:
    return float(np.mean([values[place] for place in places]))


def value(outcomes: Sequence[Outcome], figure: Figure) -> float:
    """The metric, mean over seeds."""
    return float(np.mean(by_seed(outcomes, figure)))


def by_seed(outcomes: Sequence[Outcome], figure: Figure) -> list[float]:
    """The metric of every seed."""
    return [float(figure(outcome.counts.sum(axis=0))) for outcome in outcomes]


def std(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds, None of a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def shorter(outcome: Outcome) -> float:
    """Percent of the tokens that merging saves."""
    return 100 * (1 - outcome.tokens_dynamic / outcome.tokens_static)


def seconds(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Wall and processor time, mean over seeds."""
    wall, processor = np.mean([outcome.seconds for outcome in outcomes], axis=0).tolist()
    return {"seconds": wall, "processor_seconds": processor}


def _language(seeds: Sequence[Outcome], figure: Figure) -> dict[str, Any]:
    first = seeds[0]
    return {
        "value": value(seeds, figure),
        "by_seed": by_seed(seeds, figure),
        "tokens_static": first.tokens_static,
        "tokens_dynamic": first.tokens_dynamic,
        "shorter_percent": shorter(first),
        **seconds(seeds),
        **first.notes,
    }


def _average(languages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = np.mean([row["by_seed"] for row in languages], axis=0)
    return {
        "value": float(values.mean()),
        "by_seed": values.tolist(),
        "spread": std(values.tolist()),
        "shorter_percent": float(np.mean([row["shorter_percent"] for row in languages])),
        **{key: sum(row[key] for row in languages) for key in ("seconds", "processor_seconds")},
    }


def _resampled(
    outcomes: Outcomes, figure: Figure
) -> dict[str, dict[str, Float[np.ndarray, "K R"]]]:
    """Setting -> language -> the metric of resampled examples, for each of K seeds."""
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
            language: np.stack([values[setting, k, language] for k in range(len(seeds))])
            for language in seeds[0]
        }
        for setting, seeds in outcomes.items()
    }
