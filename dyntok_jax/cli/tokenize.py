"""``dyntok tokenize``: text to dynamic tokens."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click

from dyntok_jax.cli import jsonl, options
from dyntok_jax.cli.summary import summarize
from dyntok_jax.files import atomic_path, refuse_input
from dyntok_jax.merging.batch import DynamicBatch, merge
from dyntok_jax.merging.budget import Budget
from dyntok_jax.merging.punctuation import PunctuationRule
from dyntok_jax.text import layouts
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.types import DyntokError, Merge, Token

_FIELDS: dict[str, dict[str, Callable[[Any], str | None]]] = {
    "text": {"text": jsonl.is_string},
    "pair": {"premise": jsonl.is_string, "hypothesis": jsonl.is_string},
    "words": {"words": jsonl.is_strings},
    "prompt": {"prompt": jsonl.is_string},
    "messages": {"messages": jsonl.is_messages},
}


@click.command()
@click.argument("input", metavar="INPUT")
@click.option("--tokenizer", metavar="DIR", help="A folder with a tokenizer.json.")
@options.model
@click.option(
    "--layout",
    type=options.Names(*_FIELDS),
    default="text",
    show_default=True,
    help="Fields of a line: text; premise, hypothesis; words; prompt; messages.",
)
@click.option("--merges", type=options.MergeCount(), help="So many merges a batch, or all.")
@options.reduction
@options.boundary
@click.option("--per-sample", is_flag=True, help="Merge every line by itself.")
@options.batch_size
@options.max_length
@click.option(
    "--backend",
    type=options.Names("auto", "host", "device"),
    default="auto",
    show_default=True,
    help="Where merges are found; all give the same.",
)
@click.option("--trace", metavar="FILE", help="Write the ordered merges as JSON lines.")
@click.option(
    "--format",
    "form",
    type=options.Names("json", "pretty"),
    default="json",
    show_default=True,
    help="JSON lines, or boundaries before and after in colour.",
)
def command(
    input: str,
    tokenizer: str | None,
    model: str | None,
    layout: str,
    merges: Budget | None,
    reduction: float | None,
    boundary: str,
    per_sample: bool,
    batch_size: int,
    max_length: int | None,
    backend: Any,
    trace: str | None,
    form: str,
) -> None:
    """Text to dynamic tokens, a JSON line for each line of INPUT (a file, or - for stdin).

    Without --merges and --reduction, merges until no pair is left.

    \b
    Example:
      echo '{"text": "Donaudampfschifffahrt und Dampfschiff"}' |
        dyntok tokenize --model multilingual-e5-small --reduction 50 -
    """
    refuse_input(trace, input)
    base = _tokenizer(tokenizer, model)
    budget = _budget(merges, reduction)
    records = jsonl.read_records(input, _FIELDS[layout])
    where = Boundary(boundary)
    rule = PunctuationRule(base.vocabulary()) if where is Boundary.WORD_HYPHEN else None
    write = _pretty_writer(base) if form == "pretty" else _json_writer(base)
    traced: list[list[Merge]] = []
    start = time.perf_counter()
    before = after = truncated = 0
    # All lines are laid out before the first is written: what is wrong with one is said first.
    laid_out = _lay_out(base, layout, records, where, max_length)
    with atomic_path(trace) if trace else nullcontext() as trace_file:
        for number in range(0, len(records), batch_size):
            sequences = laid_out[number : number + batch_size]
            dynamic = merge(
                sequences,
                budget,
                rule=rule,
                backend=backend,
                per_sample=per_sample,
                trace=trace is not None,
            )
            write(sequences, dynamic)
            traced += dynamic.merges
            before += sum(len(sequence.tokens) for sequence in sequences)
            after += sum(len(sequence.tokens) for sequence in dynamic.sequences)
            truncated += sum(sequence.truncated for sequence in sequences)
        if trace_file:
            jsonl.write_lines(trace_file, _trace_records(traced))
    summarize(before, after, len(records), truncated, time.perf_counter() - start)


def _lay_out(
    tokenizer: BaseTokenizer,
    layout: str,
    records: Sequence[jsonl.Record],
    boundary: Boundary,
    max_length: int | None,
) -> list[BaseTokens]:
    function = partial(
        getattr(layouts, f"{layout}_layout"), tokenizer, boundary=boundary, max_length=max_length
    )
    if layout != "messages":
        return function(*([r.fields[name] for r in records] for name in _FIELDS[layout]))
    sequences = []
    for record in records:
        try:
            sequences += function([record.fields["messages"]])
        except DyntokError as error:
            raise DyntokError(f"line {record.line}: {error}") from error
    return sequences


def _tokenizer(folder: str | None, model: str | None) -> BaseTokenizer:
    if (folder is None) == (model is None):
        raise click.UsageError("give either --tokenizer DIR or --model NAME")
    if folder is not None:
        return BaseTokenizer.from_folder(Path(folder))
    from dyntok_jax.model_store import resolve

    return BaseTokenizer.from_folder(resolve(str(model)))


def _budget(merges: Budget | None, reduction: float | None) -> Budget:
    if merges is not None and reduction is not None:
        raise click.UsageError("give either --merges or --reduction, not both")
    return merges or Budget(reduction=reduction)


def _names(tokenizer: BaseTokenizer) -> Callable[[Token], str]:
    by_id = {index: name for name, index in tokenizer.special_ids.items()}
    return lambda token: by_id[token] if isinstance(token, int) else token


def _json_writer(tokenizer: BaseTokenizer):
    name = _names(tokenizer)

    def write(sequences: Sequence[BaseTokens], dynamic: DynamicBatch) -> None:
        for base, merged in zip(sequences, dynamic.sequences, strict=True):
            record: dict[str, Any] = {"tokens": [name(token) for token in merged.tokens]}
            if merged.word_ids is not None:
                record["word_ids"] = [i if i >= 0 else None for i in merged.word_ids.tolist()]
            jsonl.write_line(record | {"truncated": base.truncated})

    return write


def _pretty_writer(tokenizer: BaseTokenizer):
    from rich.console import Console

    from dyntok_jax.colour import boundaries

    console, name = Console(file=sys.stdout, highlight=False, soft_wrap=True), _names(tokenizer)

    def write(sequences: Sequence[BaseTokens], dynamic: DynamicBatch) -> None:
        for base, merged in zip(sequences, dynamic.sequences, strict=True):
            for label, tokens in (("before", base.tokens), ("after", merged.tokens)):
                console.print(f"{label:>6} {len(tokens):4d}  ", boundaries(tokens, name), sep="")

    return write


def _trace_records(groups: list[list[Merge]]) -> Iterator[dict[str, Any]]:
    """One record a merge; a batch is what was merged together, with --per-sample a line."""
    for number, merges in enumerate(groups):
        for left, right, count in merges:
            yield {"batch": number, "pair": [left, right], "count": count}
