"""Cells and plots of a measurement of efficiency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dyntok_jax.demo.drawing import label


def hit_shares(curve: Mapping[str, Sequence[int]]) -> list[float]:
    """Percent of the tokens looked up so far that were in the cache, batch by batch."""
    hits, misses = np.cumsum(curve["hits"]), np.cumsum(curve["misses"])
    return (100 * hits / (hits + misses)).tolist()


def operation_cells(point: Mapping[str, Any]) -> list[str]:
    """What a table says of one reduction, from the reduction itself to the cache's size."""
    return [
        f"{point['reduction']:g} %",
        f"{point['tokens']:.0f}",
        f"{point['tokens_saved_percent']:.1f} %",
        operations(point["model_flops"]),
        operations(point["hypernet_flops"]),
        f"{point['hypernet_percent']:.1f} %",
        operations(point["hypernet_flops_uncached"]),
        operations(point["total_flops"]),
        f"{point['total_flops_saved_percent']:.1f} %",
        f"{point['kv_bytes'] / 2**20:.1f} MiB",
    ]


def operations(count: float) -> str:
    """A number of operations in T or G."""
    return f"{count / 1e12:.2f}T" if count >= 1e12 else f"{count / 1e9:.1f}G"


def plot(run: Mapping[str, Any]) -> Any:
    """A matplotlib figure: operations and latency against reduction, and the cache's hits."""
    from matplotlib.figure import Figure

    panels = [_plot_operations, _plot_cache] + [_plot_latency] * bool(run["latency"])
    canvas = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    for axes, draw in zip(np.atleast_1d(canvas.subplots(1, len(panels))), panels, strict=True):
        draw(axes, run)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    canvas.suptitle(label(Path(run["model"]).name), fontsize="medium")
    return canvas


def _plot_operations(axes: Any, run: Mapping[str, Any]) -> None:
    for language, part in run["efficiency"].items():
        x = [point["reduction"] for point in part["points"]]
        y = [point["total_flops"] / 1e12 for point in part["points"]]
        axes.plot(x, y, marker="o", label=label(language))
    axes.set_xlabel("reduction, % of the largest possible saving")
    axes.set_ylabel("10¹² operations a prompt, hypernetwork cached")


def _plot_cache(axes: Any, run: Mapping[str, Any]) -> None:
    for language, part in run["efficiency"].items():
        curve = part["cache"][-1]
        name = label(f"{language}, {curve['grown_to']} rows")
        axes.plot(np.arange(1, len(curve["hits"]) + 1), hit_shares(curve), label=name)
    axes.set_xlabel(f"batches of {run['cache_batch_size']} prompts")
    axes.set_ylabel("hits so far, % of the unique tokens of batches")


def _plot_latency(axes: Any, run: Mapping[str, Any]) -> None:
    for language, steps in run["latency"].items():
        x, y = zip(*((step["reduction"], step["prefill_ms"]) for step in steps), strict=True)
        axes.plot(x, y, marker="o", label=label(language))
    axes.set_xlabel("reduction, % of the largest possible saving")
    axes.set_ylabel("prefill, milliseconds")
    axes.set_ylim(bottom=0)
