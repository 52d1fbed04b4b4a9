"""``dyntok score``: log-probabilities of choices after a prompt."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from dyntok_jax.cli import jsonl, options
from dyntok_jax.cli.summary import summarize
from dyntok_jax.text.boundaries import Boundary


@click.command()
@click.argument("input", metavar="INPUT")
@options.required_model
@options.rows
@options.language
@options.base_rows
@options.adapter
@options.reduction_or_all
@options.boundary
@options.kept_words
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Sequences in a batch of the network.",
)
@options.max_length
@options.config
def command(
    input: str,
    model: str,
    rows: str,
    language: str | None,
    base_rows: Any,
    adapter: str | None,
    reduction: float,
    boundary: str,
    kept_words: int,
    batch_size: int,
    max_length: int | None,
    config: str | None,
) -> None:
    """Scores of the choices in INPUT, {"prompt": ..., "choices": [...]} a line, by a decoder.

    Writes {"scores": [...], "tokens": {"static": n, "dynamic": n}, "truncated": n} for each line:
    a score is the sum of the log-probabilities of the choice's base tokens; tokens are the
    prompt's, which is merged alone. Special tokens are those the model's own tokenizer adds; no
    space is put between prompt and choice.

    \b
    Example:
      echo '{"prompt": "The capital of France is", "choices": [" Paris.", " Rome."]}' |
        dyntok score --model smollm2-135m-instruct -
    """
    fields = {"prompt": jsonl.is_string, "choices": jsonl.is_choices}
    records = jsonl.read_records(input, fields)
    options.check_rows(rows, base_rows, reduction)
    if reduction == 0:
        why = "nothing is merged at --reduction 0"
        options.refuse_idle({"kept_words": why, "adapter": options.UNMERGED})

    from dyntok_jax.config import load_config
    from dyntok_jax.dynamic_model import load
    from dyntok_jax.embed.shipped import language_row
    from dyntok_jax.scoring import score

    compute = load_config(Path(config) if config else None)
    loaded = load(model, rows, compute, language_row(rows, language), base_rows, adapter=adapter)
    start = time.perf_counter()
    with jsonl.naming_lines(input, records):
        scored = score(
            loaded,
            [(r.fields["prompt"], r.fields["choices"]) for r in records],
            reduction,
            boundary=Boundary(boundary),
            kept_words=kept_words,
            batch_size=batch_size,
            max_length=max_length,
        )
    for item in scored:
        tokens = {"static": item.tokens_static, "dynamic": item.tokens_dynamic}
        jsonl.write_line({"scores": item.scores, "tokens": tokens, "truncated": item.truncated})
    summarize(
        sum(item.tokens_static for item in scored),
        sum(item.tokens_dynamic for item in scored),
        len(scored),
        sum(item.truncated for item in scored),
        time.perf_counter() - start,
        loaded.cache,
    )
