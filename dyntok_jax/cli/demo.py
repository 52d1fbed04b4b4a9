"""``dyntok demo``: two real models on 14 languages."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dyntok_jax.files import atomic_path
from dyntok_jax.types import DyntokError, Token

ENCODER, DECODER = "multilingual-e5-small", "smollm2-135m-instruct"


@click.command()
@click.option(
    "--out", metavar="DIR", default="out/demo", show_default=True, help="Folder to write."
)
def command(out: str) -> None:
    """Merge 14 languages for a real encoder and a real decoder, and show what it does.

    Prints boundaries before and after and a table; writes demo.html, one page with the same and
    plots, and demo.json. Rows of merged tokens are predicted by the
    hypernetworks that ship with the package.

    \b
    Example:
      dyntok demo --out out/demo
    """
    from rich.console import Console
    from tqdm import tqdm

    from dyntok_jax.demo.measure import measure_decoder, measure_encoder, sentences
    from dyntok_jax.demo.report import as_json, page, print_report
    from dyntok_jax.dynamic_model import load

    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DyntokError(f"{out}: cannot be made a folder ({error.strerror})") from error
    texts, bar = sentences(), {"unit": "language", "disable": None, "leave": False}
    encoder = load(ENCODER, "default")
    first = measure_encoder(encoder, texts, lambda keys: tqdm(keys, ENCODER, **bar))
    special = {index: name for name, index in encoder.tokenizer.special_ids.items()}

    def name(token: Token) -> str:
        return special[token] if isinstance(token, int) else token

    decoder = load(DECODER, "default")
    second = measure_decoder(decoder, texts, lambda keys: tqdm(keys, DECODER, **bar))

    results, names = (first, second), (_named(ENCODER, encoder.rows), _named(DECODER, decoder.rows))
    print_report(Console(), results, names, name)
    figures = as_json(results, names, name)
    with atomic_path(folder / "demo.json") as partial:
        partial.write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n", "utf-8")
    with atomic_path(folder / "demo.html") as partial:
        partial.write_text(page(results, names, name), "utf-8")
    click.echo(f"{folder / 'demo.html'} and {folder / 'demo.json'} written", err=True)


def _named(model: str, rows: str) -> str:
    """A model's name with what its merged tokens' rows are."""
    return f"{model} with {'FVT' if rows == 'fvt' else 'predicted'} rows"
