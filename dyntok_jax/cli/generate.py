"""``dyntok generate``: text after prompts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dyntok_jax.cli import jsonl, options
from dyntok_jax.cli.summary import summarize
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens, messages_layout, prompt_layout
from dyntok_jax.types import DyntokError

if TYPE_CHECKING:
    from dyntok_jax.dynamic_model import DynamicModel
    from dyntok_jax.generate import GenerationConfig, OnText


def _number(name: str, kind: type, default: Any, help: str) -> Callable[[Any], Any]:
    return click.option(name, type=kind, default=default, show_default=True, help=help)


@click.command()
@click.argument("input", metavar="INPUT")
@options.required_model
@options.rows
@options.language
@options.base_rows
@options.adapter
@click.option(
    "--reduction",
    type=options.Percent(),
    metavar="PCT",
    help="Percent of the largest possible saving of the prompts' tokens.  [default: 100; with "
    "--vocabulary prompts are tokenized by longest prefix under it]",
)
@options.boundary
@options.kept_words
@click.option("--merge-together", is_flag=True, help="Merge the prompts of a batch together.")
@click.option(
    "--vocabulary",
    metavar="DIR",
    help="Generate in a large vocabulary (train.vocabulary); without --reduction prompts are cut "
    "and read by it too, and take no --rows.",
)
@click.option(
    "--index",
    metavar="DIR|exact|exact-cosine",
    default="exact",
    show_default=True,
    help="How its tokens are searched: by a ScaNN index, or all of them. Where the index ranks by "
    "cosine, the best token, if no other is asked for (see --candidates), is the best by cosine.",
)
@_number("--max-new-tokens", int, 128, "Tokens at most.")
@_number("--temperature", float, 0.0, "Divides the logits; 0 takes the best token.")
@_number(
    "--top-k",
    int,
    0,
    "Draw from so many of the best tokens; 0: from all, with --vocabulary from its --candidates.",
)
@_number("--top-p", float, 1.0, "Draw from the most likely ones, up to this probability.")
@_number("--min-p", float, 0.0, "Draw from those at least this share as likely as the best.")
@_number(
    "--repetition-penalty",
    float,
    1.0,
    "Above 1, tokens seen before become less likely; of a large vocabulary's, its candidates only.",
)
@_number(
    "--eos-bias",
    float,
    0.0,
    "Added to the logits of tokens that end a text; of a large vocabulary's, its candidates only.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="Ends a text; may be given again.")
@_number("--seed", int, 0, "Of the draws.")
@_number(
    "--candidates",
    int,
    64,
    "Tokens of a large vocabulary, --top-k at least, that are drawn from or weighed by "
    "--repetition-penalty and --eos-bias.",
)
@_number("--codebook", int, 0, "Merged tokens of the prompt that can be generated too.")
@_number(
    "--rewrite-words",
    int,
    0,
    "Merge the cache after so many finished words, looked for every 16 tokens (with --stream as "
    "often as texts are shown); 0: never.",
)
@_number(
    "--lookup-tokens",
    int,
    0,
    "Draft so many tokens from what was said before and read them in one step: the same text but "
    "for rounding, sooner where it repeats; best with --batch-size 1. Not with --vocabulary, "
    "--codebook, --rewrite-words and --repetition-penalty.",
)
@click.option(
    "--truncate", type=options.Names("left"), help="Cut the beginnings of prompts too long."
)
@_number("--batch-size", int, 8, "Prompts in a batch.")
@click.option(
    "--stream", is_flag=True, help="Show texts on standard error as they come, one by one."
)
@click.option(
    "--stream-every",
    type=click.IntRange(1),
    metavar="N",
    help="Show them every N tokens, which is faster.  [default: 1]",
)
@options.config
def command(
    input: str,
    model: str,
    rows: str,
    language: str | None,
    base_rows: Any,
    adapter: str | None,
    vocabulary: str | None,
    index: str,
    stream: bool,
    stream_every: int | None,
    config: str | None,
    **settings: Any,
) -> None:
    """Texts that follow the prompts in INPUT, by a decoder.

    A line is {"prompt": ...} or {"messages": [{"role": ..., "content": ...}, ...]}. Writes {"text",
    "ids", "finish", "tokens": {"prompt_static", "prompt_dynamic", "new"}, "seconds": {"prefill",
    "decode"}, "kv_cache": {"static", "dynamic"} bytes, "truncated"} for each, and "codebook" where
    there is one: merged tokens, whose ids follow the vocabulary's. Seconds are of the batch, with
    compiling, without merging the prompts; finish is end, stop or length. Prompts are merged, each
    alone unless told otherwise.

    \b
    Example:
      echo '{"messages": [{"role": "user", "content": "Name three rivers."}]}' |
        dyntok generate --model smollm2-135m-instruct --max-new-tokens 40 --stream -
    """
    records = jsonl.read_records(input, {})
    for record in records:
        _check(record, input)
    _check_index(vocabulary, index)
    _check_stream(stream, stream_every, index, settings)
    if settings["reduction"] is None and vocabulary is None:
        settings["reduction"] = 100.0
    options.check_rows(rows, base_rows, settings["reduction"] or 0)

    from dyntok_jax.config import load_config
    from dyntok_jax.dynamic_model import load
    from dyntok_jax.embed.shipped import language_row
    from dyntok_jax.generate import GenerationConfig, generate
    from dyntok_jax.generation.opening import open_vocabulary

    settings["boundary"] = Boundary(settings["boundary"])
    settings["truncate"] = settings["truncate"] is not None
    how = GenerationConfig(**settings)
    _check_idle(how, vocabulary)
    if how.reduction is None:
        rows = "base"  # nothing is merged, so that no hypernetwork need be loaded
    if stream:
        how = dataclasses.replace(how, batch_size=1, steps_together=stream_every or 1)
    compute = load_config(Path(config) if config else None)
    loaded = load(model, rows, compute, language_row(rows, language), base_rows, adapter=adapter)
    output = open_vocabulary(vocabulary, loaded, index) if vocabulary is not None else None
    prompts = [_layout(loaded, record, how.boundary, input) for record in records]
    start = time.perf_counter()
    with jsonl.naming_lines(input, records):
        found = generate(loaded, prompts, how, output, _shown() if stream else None)
    if stream:
        click.echo(err=True)
    for text in found:
        fields = dataclasses.asdict(text)
        jsonl.write_line({k: v for k, v in fields.items() if k != "codebook" or v})
    summarize(
        sum(text.tokens["prompt_static"] for text in found),
        sum(text.tokens["prompt_dynamic"] for text in found),
        len(found),
        sum(text.truncated for text in found),
        time.perf_counter() - start,
        loaded.cache,
    )


def _check(record: jsonl.Record, path: str) -> None:
    """Refuses a line with neither a prompt nor messages, with both, or with one of another type."""
    where = jsonl.line_name(path, record.line)
    if ("prompt" in record.fields) == ("messages" in record.fields):
        raise DyntokError(f"{where}: needed is one of the fields 'prompt' and 'messages'")
    name = "prompt" if "prompt" in record.fields else "messages"
    check = jsonl.is_string if name == "prompt" else jsonl.is_messages
    problem = check(record.fields[name])
    if problem:
        raise DyntokError(f"{where}: field {name!r} {problem}")


def _check_idle(how: GenerationConfig, vocabulary: str | None) -> None:
    """Refuses what was given and would change nothing."""
    idle: dict[str, str] = {}
    if how.temperature == 0:
        why = "it goes with a --temperature above 0; at 0 the best token is taken"
        idle |= dict.fromkeys(("top_k", "top_p", "min_p", "seed"), why)
    if vocabulary is None:
        idle["candidates"] = "without --vocabulary all tokens are drawn from"
    elif how.best_only:
        idle["candidates"] = (
            "it goes with --temperature, --repetition-penalty or --eos-bias; without them the "
            "index is asked for one token"
        )
    if how.reduction is None:
        why = "with --vocabulary it goes with --reduction only"
        names = ("rows", "language", "base_rows", "adapter", "kept_words", "merge_together")
        idle |= dict.fromkeys(names, why)
    if how.reduction == 0:
        why = "nothing is merged at --reduction 0"
        idle |= dict.fromkeys(("kept_words", "merge_together", "codebook"), why)
        if not how.rewrite_words:
            idle["adapter"] = options.UNMERGED
    options.refuse_idle(idle)


def _check_index(vocabulary: str | None, index: str) -> None:
    if index != "exact" and vocabulary is None:
        raise click.UsageError(
            f"--index {index}: it searches a large vocabulary; give --vocabulary"
        )


def _check_stream(
    stream: bool, stream_every: int | None, index: str, settings: dict[str, Any]
) -> None:
    """Texts are shown one after another, so that there are no batches."""
    if stream_every is not None and not stream:
        raise click.UsageError(f"--stream-every {stream_every}: it goes with --stream")
    if stream_every is not None and not index.startswith("exact"):
        raise click.UsageError("--stream-every: with a ScaNN index every token is shown")
    if not stream:
        return
    if settings["merge_together"]:
        raise click.UsageError("--merge-together with --stream: it takes prompts one by one")
    size = settings["batch_size"]
    if options.is_given("batch_size") and size != 1:
        raise click.UsageError(f"--batch-size {size} with --stream: it takes prompts one by one")


def _layout(model: DynamicModel, record: jsonl.Record, boundary: Boundary, path: str) -> BaseTokens:
    fields = record.fields
    if "prompt" in fields:
        return prompt_layout(model.tokenizer, [fields["prompt"]], boundary)[0]
    try:
        return messages_layout(model.tokenizer, [fields["messages"]], boundary)[0]
    except DyntokError as error:
        raise DyntokError(f"{jsonl.line_name(path, record.line)}: {error}") from error


def _shown() -> OnText:
    """Shows texts on standard error, an empty line between two prompts'."""
    last = 0

    def show(place: int, text: str) -> None:
        nonlocal last
        click.echo("\n\n" * (place - last) + text, nl=False, err=True)
        last = place

    return show
