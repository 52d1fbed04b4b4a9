"""The README's tables of decoders: MMLU, MT-Bench and efficiency, from their run files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dyntok_jax.tasks.mmlu import SHOTS
from eval import report_tasks
from eval.efficiency_figures import hit_shares, operation_cells
from eval.report_rows import ends, table


def mmlu(run: dict[str, Any]) -> str:
    """Accuracies, then bits per byte of the right answers' texts."""
    names = list(run["likelihood"][0]["languages"])
    lines = []
    for row in run["likelihood"]:
        average = row["average"]
        cells = [f"{row['languages'][name]['value']:.3f}" for name in names]
        delta = f"{average['delta']:+.3f}{ends(average['delta_interval'], '+.3f')}"
        first = row is run["likelihood"][0]
        mean = f"{average['value']:.3f}{ends(average['interval'], '.3f')}"
        lines.append([row["name"], *cells, mean, "" if first else delta])
    parts = [
        report_tasks.settings(run),
        "Bits per byte of the right answer's text behind the same prompts:",
        table(["", *names, "mean", "Δ"], lines),
    ]
    if run["likelihood_sweep"]:
        parts.append(f"![bits per byte by reduction]({run['likelihood_plot']})")
    return "\n\n".join(parts)


def mt_bench(run: dict[str, Any]) -> str:
    """A line a setting, and the points of the sweeps."""
    head = (
        f"{run['model']}, {run['questions']} questions of MT-Bench, up to {run['max_new_tokens']} "
        f"new tokens a turn; without a judge's scores (commit {run['commit']}, {run['machine']}, "
        f"{run['seconds'] / 60:.0f} min):\n\n`{run['command']}`"
    )
    columns = ["", "prompt tokens", "saved", "new tokens", "characters", "ended", "distinct-4"]
    columns += ["prefill, s", "decode, s"]
    lines = [
        [
            row["name"],
            str(row["tokens_dynamic"]),
            f"{row['shorter_percent']:.1f} %",
            str(row["new_tokens"]),
            str(row["characters"]),
            f"{row['ended']} of {row['answers']}",
            "" if row["distinct_4"] is None else f"{row['distinct_4']:.3f}",
            f"{row['prefill_seconds']:.1f}",
            f"{row['decode_seconds']:.1f}",
        ]
        for row in [*run["mt_bench"], *run["sweep"]]
    ]
    return f"{head}\n\n{table(columns, lines)}"


def efficiency(run: dict[str, Any]) -> str:
    """Operations by language and reduction, the cache's hits, and times to the first token."""
    ratios, checked = [*run["check"]["decoder"].values()], [*map(int, run["check"]["decoder"])]
    against = run["check"].get("against", "XLA's count")  # older runs do not say
    ratios += [run["check"]["hypernet"]] if "hypernet" in run["check"] else []
    head = (
        f"{Path(run['model']).name}, MMLU prompts with five solved questions{_missing(run)}; "
        f"operations of a prompt by formula, which is {min(ratios):.3f} to {max(ratios):.3f} times "
        f"{against} at up to {max(checked)} tokens; keys and values in {run['kv_dtype']} (commit "
        f"{run['commit']}, {run['machine']}):\n\n`{run['command']}`"
    )
    parts = [head, _operations(run), _caches(run)]
    if run["latency"]:
        parts.append(_latencies(run))
    parts.append(f"![efficiency]({run['plot']})")
    return "\n\n".join(parts)


def _missing(run: dict[str, Any]) -> str:
    """Solved questions that prompts lack, where a subject has fewer than five."""
    lacking = [
        f"{part['missing_shots']} of {part['prompts'] * SHOTS} in {language}"
        for language, part in run["efficiency"].items()
        if part["missing_shots"]
    ]
    return f" (where a subject has them: {', '.join(lacking)} are missing)" if lacking else ""


def _operations(run: dict[str, Any]) -> str:
    """Of the hypernetwork those of rows that the largest cache of a run does not hold yet."""
    columns = ["", "reduction", "tokens", "saved", "model", "hypernetwork", "of all", "uncached"]
    lines = [
        [language, *operation_cells(point)]
        for language, part in run["efficiency"].items()
        for point in part["points"]
    ]
    operations = table([*columns, "in all", "saved", "KV cache"], lines)
    if "hypernet" not in run["check"]:
        return operations
    curves = [curve for part in run["efficiency"].values() for curve in part["cache"]]
    capacity = max(curve["capacity"] for curve in curves)
    return (
        f"{operations}\n\nThe hypernetwork's operations are those behind a cache of {capacity} "
        "rows, that the prompts fill one batch after another; uncached is without one."
    )


def _caches(run: dict[str, Any]) -> str:
    said = [
        f"{language} {_capacity(curve)} rows {hit_shares(curve)[-1]:.0f} %"
        for language, part in run["efficiency"].items()
        for curve in part["cache"]
    ]
    size = run["cache_batch_size"]
    return (
        f"Unique tokens of batches of {size} prompts that were in the cache of rows, from an empty "
        f"one: {', '.join(said)}."
    )


def _capacity(curve: dict[str, Any]) -> str:
    """Rows of a cache, and how many it had to grow to for a batch."""
    asked, grown = curve["capacity"], curve["grown_to"]
    return str(asked) if asked == grown else f"{asked} (grown to {grown})"


def _latencies(run: dict[str, Any]) -> str:
    head = (
        f"Milliseconds to the first token, {run['latency_prompts']} prompts of "
        f"{run['latency_tokens']} base tokens a language, one at a time:"
    )
    columns = ["", "reduction", "tokens", "padded", "prefill", "÷ static", "tokens ÷ static"]
    lines = [
        [
            language,
            f"{step['reduction']:g} %",
            f"{step['tokens']:.0f}",
            f"{step['padded']:.0f}",
            f"{step['prefill_ms']:.0f}",
            f"{step['prefill_ms'] / steps[0]['prefill_ms']:.2f}",
            f"{step['tokens'] / steps[0]['tokens']:.2f}",
            f"{step['first_token_ms']:.0f}",
            f"{step['first_token_new_rows_ms']:.0f}",
        ]
        for language, steps in run["latency"].items()
        for step in steps
    ]
    return f"{head}\n\n{table([*columns, 'with merging', 'and new rows'], lines)}"
