"""The README's tables of benchmarks, from run files of ``eval.bench`` and ``bench_distill``."""

from __future__ import annotations

from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """The table, and what was run where."""
    rows = [*_merging(report["merging"]), *_forward(report["forward"])]
    rows += [*_end_to_end(report["end_to_end"]), *_memory(report["peak_memory_gb"])]
    lines = ["| what | measured | bound |", "|---|---|---|"]
    lines += [f"| {what} | {measured} | {bound} |" for what, measured, bound in rows]
    head = f"`make bench` at commit {report['commit']}, {report['machine']}:"
    return "\n".join([head, "", *lines])


def distill(run: dict[str, Any]) -> str:
    """The table of a run of ``eval.bench_distill``."""
    shape, turn = "×".join(map(str, run["shape"])), f"{run['repeats']} × {run['batches']} steps"
    measured = f"{run['jax_steps_per_s']:.3f}"
    if "ratio" in run:
        version = run["versions"]["torch"]
        measured += f", torch {version} {run['torch_steps_per_s']:.3f}: {run['ratio']:.2f}×"
    else:
        measured += f" ({run['torch_skipped']})"
    what = f"steps/s of `distill` on {run['model']}, batches {shape}, against plain torch ({turn})"
    idle = f"share of {run['loop_steps']} steps of the loop in which devices wait for a batch"
    rows = [(what, measured, "≥ 1.3×"), (idle, f"{100 * run['idle_share']:.1f} %", "≤ 10 %")]
    lines = ["| what | measured | bound |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    head = f"`{run['command']}` at commit {run['commit']}, {run['machine']}:"
    return "\n".join([head, "", *lines])


def _merging(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    bounds = {("host", 100): 25, ("device", 100): 6, ("host", 50): 10, ("device", 50): 3}
    table = []
    for (backend, reduction), bound in bounds.items():
        part = [row for row in rows if row["reduction"] == reduction]
        ratios = ", ".join(f"{row['language']} {row[f'{backend}_ratio']:.0f}×" for row in part)
        what = f"{backend} merger against the naive rescan, {reduction} % reduction, 32 sentences"
        table.append((what, ratios, f"≥ {bound}×"))
    return table


def _forward(row: dict[str, Any]) -> list[tuple[str, str, str]]:
    shape = "×".join(map(str, row["shape"]))
    what = f"e5-small forward, {shape} float32, against torch in the same run"
    measured = f"{row['jax_s']:.2f} s"
    if "ratio" in row:
        measured += f", torch {row['torch_s']:.2f} s: {row['ratio']:.2f}×"
    return [
        (what, measured, "≥ 1.5×"),
        ("its first call, with compilation", f"{row['first_call_s']:.1f} s", "≤ 15 s"),
    ]


def _end_to_end(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = report["languages"]
    times = ", ".join(
        f"{row['language']} {row['dynamic_s'] / row['static_s']:.2f}"
        f" (≤ {row['bound_s'] / row['static_s']:.2f})"
        for row in rows
    )
    shares = ", ".join(f"{row['language']} {100 * row['merging_and_lookup']:.1f} %" for row in rows)
    premises = rows[0]["premises"]
    return [
        (f"time at 100 % ÷ static time, {premises} XNLI premises a language", times, "in brackets"),
        ("merging and row lookup, of that time", shares, "≤ 5 %"),
        ("compiled shapes of the forward in that run", str(report["compiled_shapes"]), "≤ 8"),
    ]


def _memory(row: dict[str, float]) -> list[tuple[str, str, str]]:
    return [
        ("peak memory, `dyntok encode`, e5-small", f"{row['encode']:.2f} GB", "≤ 1.5 GB"),
        ("peak memory, `dyntok score`, SmolLM2", f"{row['score']:.2f} GB", "≤ 2.5 GB"),
    ]
