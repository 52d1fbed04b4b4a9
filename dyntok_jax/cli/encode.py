"""``dyntok encode``: text to vectors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from dyntok_jax.cli import jsonl, options
from dyntok_jax.cli.summary import summarize
from dyntok_jax.files import atomic_path, refuse_input
from dyntok_jax.text.boundaries import Boundary


@click.command()
@click.argument("input", metavar="INPUT")
@click.option("--out", required=True, metavar="FILE", help="Safetensors file to write.")
@options.required_model
@options.rows
@options.language
@options.base_rows
@options.adapter
@options.reduction_or_all
@options.boundary
@click.option(
    "--pool",
    type=options.Names("mean", "first"),
    default="mean",
    show_default=True,
    help="Mean of the hidden states, each as often as the base tokens it stands for; or the first.",
)
@options.batch_size
@options.max_length
@options.config
def command(
    input: str,
    out: str,
    model: str,
    rows: str,
    language: str | None,
    base_rows: Any,
    adapter: str | None,
    reduction: float,
    boundary: str,
    pool: Any,
    batch_size: int,
    max_length: int | None,
    config: str | None,
) -> None:
    """Vectors of the texts in INPUT, {"text": ...} a line, by an encoder.

    Writes one tensor, vectors (N, D), in the order of the lines. No prefix is added, and vectors
    are not normalized.

    \b
    Example:
      echo '{"text": "query: Donaudampfschifffahrt"}' |
        dyntok encode --model multilingual-e5-small --out vectors.safetensors -
    """
    refuse_input(out, input)
    records = jsonl.read_records(input, {"text": jsonl.is_string})
    options.check_rows(rows, base_rows, reduction)
    if reduction == 0:
        options.refuse_idle({"adapter": options.UNMERGED})

    from safetensors.numpy import save_file

    from dyntok_jax.config import load_config
    from dyntok_jax.dynamic_model import load
    from dyntok_jax.embed.shipped import language_row
    from dyntok_jax.encoding import encode

    compute = load_config(Path(config) if config else None)
    with atomic_path(out) as partial:
        loaded = load(
            model, rows, compute, language_row(rows, language), base_rows, adapter=adapter
        )
        start = time.perf_counter()
        encoded = encode(
            loaded,
            [record.fields["text"] for record in records],
            reduction,
            pool=pool,
            boundary=Boundary(boundary),
            batch_size=batch_size,
            max_length=max_length,
        )
        save_file({"vectors": encoded.vectors}, partial)
    summarize(
        encoded.tokens_before,
        encoded.tokens_after,
        len(records),
        encoded.truncated,
        time.perf_counter() - start,
        loaded.cache,
    )
