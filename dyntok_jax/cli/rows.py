"""``dyntok rows``: embedding rows of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dyntok_jax.cli import jsonl, options
from dyntok_jax.files import refuse_input
from dyntok_jax.types import Token


@click.command()
@click.argument("input", metavar="INPUT")
@click.option(
    "--hypernet", required=True, metavar="DIR|fvt", help="A hypernetwork's folder, or fvt."
)
@click.option("--out", required=True, metavar="FILE", help="Safetensors file to write.")
@options.model
@click.option(
    "--source",
    metavar="FILE",
    help="Safetensors file whose tensor 'source' (V×D, or V×2D: input and output rows side by "
    "side) is read instead of the model's rows.",
)
@click.option(
    "--tokenizer",
    metavar="DIR",
    help="A folder with a tokenizer.json; by default the hypernetwork's own, else the model's.",
)
@options.language
@options.base_rows
def command(
    input: str,
    hypernet: str,
    out: str,
    model: str | None,
    source: str | None,
    tokenizer: str | None,
    language: str | None,
    base_rows: Any,
) -> None:
    """Rows of the tokens in INPUT, {"token": ...} a line, spelled in byte characters.

    Writes the tensors input, and output and bias where there are any, in the order of the lines.
    Special tokens keep the model's own rows.

    \b
    Example:
      echo '{"token": "ĠDonaudampfschiff"}' |
        dyntok rows --model multilingual-e5-small --hypernet fvt --out rows.safetensors -
    """
    from dyntok_jax.embed.providers import concatenated_source, row_provider
    from dyntok_jax.embed.shipped import language_row
    from dyntok_jax.embed.source import SourceEmbeddings, predict_rows
    from dyntok_jax.model_store import resolve
    from dyntok_jax.models.weights import load_source
    from dyntok_jax.text.base_tokens import BaseTokenizer

    refuse_input(out, input, source)
    records = jsonl.read_records(input, {"token": jsonl.is_string})
    options.check_rows(hypernet, base_rows)
    if model is None and source is None:
        raise click.UsageError("give --model NAME, or --source FILE with the rows to read")
    folder = resolve(model) if model else None
    tokenizer_folder = Path(tokenizer) if tokenizer else folder
    base = BaseTokenizer.from_folder(tokenizer_folder) if tokenizer_folder else None
    if base is None and hypernet == "fvt":
        raise click.UsageError("fvt rows need a tokenizer: --tokenizer DIR or --model NAME")
    own = base or BaseTokenizer.from_folder(Path(hypernet))

    def table(separate: bool) -> SourceEmbeddings:
        if source:
            return concatenated_source(Path(source))(separate)
        assert folder is not None  # without either the command ended above
        return SourceEmbeddings(*load_source(folder), folder=folder)

    provider = row_provider(hypernet, table, base, language_row(hypernet, language), base_rows)
    names = [record.fields["token"] for record in records]
    tokens: list[Token] = [*names]
    for place, name in enumerate(names):
        if name in own.special_ids:
            tokens[place] = own.special_ids[name]
    predict_rows(tokens, provider, Path(out))
