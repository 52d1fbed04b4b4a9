"""The README's tables of benchmarks, from run files of ``eval.bench`` and ``eval.bench_…``."""

from __future__ import annotations

from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """The table, and what was run where."""
    rows = [*_merging(report["merging"]), *_forward(report["forward"])]
    rows += [*_end_to_end(report["end_to_end"]), *_memory(report["peak_memory_gb"])]
    lines = ["| what | measured | bound |", "|---|---|---|"]
    lines += [f"| {what} | {measured} | {bound} |" for what, measured, bound in rows]
    head = f"`{report['command']}` at commit {report['commit']}, {report['machine']}:"
    return "\n".join([head, "", *lines])


def distill(run: dict[str, Any]) -> str:
    """The table of a run of ``eval.bench_distill``."""
    shape, turn = "×".join(map(str, run["shape"])), f"{run['repeats']} × {run['batches']} steps"
    rows = []
    for products, speed in run["jax"].items():
        what = f"steps/s of `distill`, products in {products}"
        if not run["torch"]:
            rows.append((what, f"{speed:.3f} ({run['torch_skipped']})", "≥ 1.3×"))
            continue
        slow, plain = run["torch"][products], run["torch"]["float32"]
        measured = f"{speed:.3f}, torch {slow:.3f}: {speed / slow:.2f}×"
        if products != "float32":
            measured += f" ({speed / plain:.2f}× plain torch in float32)"
        rows.append((what, measured, "≥ 1.3×"))
    idle = f"share of {run['loop_steps']} steps of the loop in which devices wait for a batch"
    rows.append((idle, f"{100 * run['idle_share']:.1f} %", "≤ 10 %"))
    lines = ["| what | measured | bound |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    torch = f", torch {run['versions']['torch']}" if run["torch"] else ""
    head = f"`{run['command']}` at commit {run['commit']}, {run['machine']}{torch}"
    head += f", {run['model']}, batches {shape}, {turn}:"
    return "\n".join([head, "", *lines])


def lora(run: dict[str, Any]) -> str:
    """The table of a run of ``eval.bench_lora``."""
    what = f"a step of an adapter for {run['adapter']}, rank {run['rank']}, "
    what += f"{run['sequences']} sequences"
    rows = []
    if "torch_skipped" in run:
        rows.append((what, run["torch_skipped"], "≥ 1.2×"))
    elif "jax_s" in run:
        how = f"products in {run['products']}"
        for name, computed in (("jax", "all in float32"), ("configured", how)):
            measured = f"{run[f'{name}_s']:.2f} s, transformers and peft {run['torch_s']:.2f} s: "
            measured += f"{run[f'{name}_ratio']:.2f}×"
            rows.append((f"{what}, {computed}", measured, "≥ 1.2×"))
    if "apart" in run:
        losses = f"{run['apart_50']:.1e} in 50 steps, {run['apart']:.1e} in {run['steps']}"
        computed = f"all in {run.get('dtype', 'float32')}"
        rows.append((f"losses apart from theirs, {computed}", losses, "≤ 1e-3, 1e-2"))
        # None without held-out examples.
        for name in [key.removesuffix("_torch") for key in run if key.endswith("_torch")]:
            both = f"{run[f'{name}_jax']:.1f}, theirs {run[f'{name}_torch']:.1f}"
            rows.append((f"{name.upper()} after them", both, "within 0.5"))
    if merged := run.get("merged"):
        what = f"steps at {merged['reduction']:g} % reduction, {merged['rows']} rows, ÷ static"
        known = merged.get("share_of_time_known_rows")
        measured = f"{merged['share_of_time']:.2f}"
        measured += "" if known is None else f", {known:.2f} once the rows are known"
        measured += f" ({merged['share_of_tokens']:.2f} of the tokens)"
        rows.append((what, measured, "≤ 0.85"))
    lines = ["| what | measured | bound |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    head = f"`{run['command']}` at commit {run['commit']}, {run['machine']}, {run['model']}"
    head += " (medians of a step; × of all steps together):" * ("jax_s" in run) or ":"
    return "\n".join([head, "", *lines])


def generation(run: dict[str, Any]) -> str:
    """The table of a run of ``eval.bench_generation``."""
    lines = ["| what | measured | bound |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in generation_rows(run)]
    head = f"`{run['command']}` at commit {run['commit']}, {run['machine']}:"
    return "\n".join([head, "", *lines])


def generation_rows(run: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured of generation, the figure, and what it should be."""
    rows = []
    made = {"decode": _decode, "prefill": _prefill, "recompute": _recompute}
    made |= {"lookup": _lookup, "index": _index}
    for part in run["generation"]:
        if isinstance(run[part], str):
            rows.append((part, run[part], ""))
        else:
            rows += made[part](run)
    return rows


def _decode(run: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (
            f"tokens/s of decoding, batch {row['batch']}, {row['new']} tokens, {run['dtype']}",
            f"{row['jax_tokens_per_s']:.1f}, transformers {row['torch_tokens_per_s']:.1f}: "
            f"{row['ratio']:.2f}× {_same(row['same_tokens'])}",
            "≥ 1.5×",
        )
        for row in run["decode"]
    ]


def _prefill(run: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (
            f"time to the first token at 100 % ÷ static, {row['text']}, "
            f"{row['tokens_before']:.0f} tokens become {row['tokens_after']:.0f}",
            f"{row['dynamic_s'] / row['static_s']:.2f} "
            f"({row['dynamic_new_rows_s'] / row['static_s']:.2f} with all rows new)",
            f"≤ {row['bound_s'] / row['static_s']:.2f}",
        )
        for row in run["prefill"]
    ]


def _recompute(run: dict[str, Any]) -> list[tuple[str, str, str]]:
    row = run["recompute"]
    what = f"{row['new']} tokens of {row['vocabulary']}, against reading the whole prefix for each"
    rows = [(what, _whole_text(row, ""), "≥ 20×")]
    if "lookup_jax_s" in row:
        drafted = f"the same, drafts of {row['draft']} tokens"
        rows.append((drafted, _whole_text(row, "lookup_"), "≥ 20×"))
    return rows


def _whole_text(row: dict[str, Any], side: str) -> str:
    ours, ratio, same = (row[f"{side}{name}"] for name in ("jax_s", "ratio", "same_tokens"))
    return f"{ours:.1f} s, {row['torch_s']:.1f} s: {ratio:.1f}× {_same(same)}"


def _same(share: float) -> str:
    return f"({100 * share:.1f} % same tokens)"


def _lookup(run: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (
            f"{row['texts']} texts of {row['new']} tokens, one by one, temperature "
            f"{row['temperature']:g}, drafts of {row['draft']} tokens",
            f"{row['lookup_s']:.1f} s, without {row['plain_s']:.1f} s: {row['ratio']:.2f}× "
            f"{_same(row['same_tokens'])}",
            "",
        )
        for row in run["lookup"]
    ]


def _index(run: dict[str, Any]) -> list[tuple[str, str, str]]:
    row = run["index"]
    what = f"a decode step among {row['size']} tokens ÷ one among the model's own"
    steps = f"{1000 * row['large_step_s']:.1f} ms, {1000 * row['own_step_s']:.1f} ms"
    return [(what, f"{steps}: {row['ratio']:.2f}×", "≤ 1.3×")]


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
