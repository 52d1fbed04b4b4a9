"""Bits per byte of what follows a dynamically tokenized prefix, with different rows.

    python -m eval.continuation --model smollm2-135m-instruct --rows static,fvt,weighted,ridge \
      --reduction 50,100 --text en.txt de.txt --windows 300 --out out/continuation.json

Windows of consecutive base tokens are spread evenly over each file (its lines joined by line
breaks) and do not overlap. The first tokens of a window, the prefix, are merged by themselves, but
for the last word, as before generation, and read by the given rows; the others are read and scored
as base tokens. Before the prefix stands what the model's own tokenizer puts before a text. Bits per
byte are the bits of all scored tokens over their bytes; intervals are of a paired bootstrap over
windows. With --adapter the last rows are read once more by the model with it, which reads and
scores base tokens too; all else is the plain model's.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from dyntok_jax.command_line import is_terminal
from dyntok_jax.dynamic_model import DynamicModel, load
from dyntok_jax.merging.budget import Budget
from dyntok_jax.scoring import target_scores
from dyntok_jax.text.base_tokens import BaseTokenizer, Pieces
from dyntok_jax.text.boundaries import Boundary, unit_numbers
from dyntok_jax.text.layouts import BaseTokens, keep_last
from dyntok_jax.types import DyntokError, Token
from eval import reading, record
from eval.bootstrap import interval
from eval.evenly_spaced import evenly_spaced
from eval.record import STATIC

BATCH_SIZE = 8
LINES_TOGETHER = 2000
"""Lines that are tokenized at once; a text of many megabytes as a whole would fill the memory."""


def main() -> None:
    """Measures, writes the figures as JSON."""
    parser = record.Parser(
        "eval.continuation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", type=record.names, default="static,fvt", help="static, fvt, … (static,fvt)")
    add("--reduction", type=record.percents, default="100", metavar="PCT,PCT", help="(100)")
    add("--text", type=Path, nargs="+", required=True, metavar="FILE", help="one text a line")
    add("--lines", type=record.line_range, metavar="A-B", help="lines to read (all)")
    add("--windows", type=record.positive, default=300, metavar="N", help="of each file (300)")
    add("--prefix-tokens", type=record.positive, default=192, metavar="N", help="(192)")
    add("--continuation-tokens", type=record.positive, default=64, metavar="N", help="(64)")
    kept = "words of a prefix, its last ones, that stay in base tokens (1)"
    add("--kept-words", type=record.from_zero, default=1, metavar="N", help=kept)
    table = "of a hypernetwork's table, its name or row; for the rows that have one"
    add("--language", metavar="NAME|N", help=table)
    reading.add_adapter(parser)
    record.run(parser, measure)


@dataclass(frozen=True)
class Windows:
    """The windows of one file.

    Attributes:
        prefixes: base tokens of each window's prefix.
        targets: (W, C) int32 ids of what follows.
        bytes: bytes of all of that.
    """

    prefixes: list[BaseTokens]
    targets: Int[np.ndarray, "W C"]
    bytes: int


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every file, for all rows and reductions."""
    model = load(options.model, "fvt")
    if model.kind != "decoder":
        raise DyntokError(f"{model.name} is an encoder: continuations need a decoder")
    size = options.prefix_tokens + options.continuation_tokens
    if size + len(model.tokenizer.prompt_ids) > model.max_length:
        raise DyntokError(f"windows of {size} tokens: {model.name} reads {model.max_length}")
    rows = {name: record.language_row(name, options.language) for name in options.rows}
    if options.language is not None and not any(row is not None for row in rows.values()):
        raise DyntokError("--language: none of --rows has a table of languages")
    windows = {str(path): cut_windows(model.tokenizer, path, options) for path in options.text}
    models = {name: model.with_rows(name, row) for name, row in rows.items() if name != STATIC}
    models = reading.with_adapter(models, options.adapter)
    parts = len(windows) * (1 + len(models) * len(options.reduction))
    with tqdm(total=parts, disable=not is_terminal(), leave=False) as bar:
        files = {name: _file(models, model, part, options, bar) for name, part in windows.items()}
    return {
        "model": options.model,
        "windows": options.windows,
        "prefix_tokens": options.prefix_tokens,
        "continuation_tokens": options.continuation_tokens,
        "kept_words": options.kept_words,
        "files": files,
    } | reading.said_of_adapter(models)


def text_prefixes(
    tokenizer: BaseTokenizer, path: Path, count: int, tokens: int
) -> list[BaseTokens]:
    """So many stretches of a text's base tokens, as prompts, without what follows them.

    Raises:
        DyntokError: the file cannot be read or is too short.
    """
    pieces = _encode(tokenizer, record.read_lines(path, None))
    starts = _starts(path, pieces, count, tokens)
    return [_prefix(tokenizer, pieces, start, start + tokens) for start in starts]


def _starts(path: Path, pieces: Pieces, windows: int, size: int) -> Int[np.ndarray, " W"]:
    room = len(pieces.ids) // size
    if room < windows:
        raise DyntokError(
            f"{path}: {len(pieces.ids)} tokens hold {room} windows of {size}; "
            f"{windows} are asked for"
        )
    return np.array(evenly_spaced(len(pieces.ids), windows))


def cut_windows(tokenizer: BaseTokenizer, path: Path, options: argparse.Namespace) -> Windows:
    """The windows of one file, by the options of the command.

    Raises:
        DyntokError: a file that cannot be read, or that holds too few windows.
    """
    pieces = _encode(tokenizer, record.read_lines(path, options.lines))
    size = options.prefix_tokens + options.continuation_tokens
    starts = _starts(path, pieces, options.windows, size)
    ends = starts + options.prefix_tokens
    following = [slice(end, end + options.continuation_tokens) for end in ends]
    return Windows(
        [_prefix(tokenizer, pieces, *place) for place in zip(starts, ends, strict=True)],
        np.array([pieces.ids[part] for part in following], np.int32),
        sum(len(token) for part in following for token in pieces.tokens[part]),
    )


def _encode(tokenizer: BaseTokenizer, lines: Sequence[str]) -> Pieces:
    """The base tokens of a text.

    At the seams of what is tokenized at once, tokens of several line breaks may be cut.
    """
    ids: list[int] = []
    tokens: list[str] = []
    for start in range(0, len(lines), LINES_TOGETHER):
        text = "\n".join(lines[start : start + LINES_TOGETHER])
        if start + LINES_TOGETHER < len(lines):
            text += "\n"
        encode = tokenizer.encode_continuations if start else tokenizer.encode
        (pieces,) = encode([text])
        ids += pieces.ids
        tokens += map(sys.intern, pieces.tokens)
    return Pieces(ids, tokens)


def _prefix(tokenizer: BaseTokenizer, pieces: Pieces, start: int, end: int) -> BaseTokens:
    before = tokenizer.prompt_ids
    texts = pieces.tokens[start:end]
    units = unit_numbers(texts, Boundary.PRETOKEN) + np.int32(len(before))
    return BaseTokens(
        np.array([*before, *pieces.ids[start:end]], np.int32),
        [*before, *texts],
        np.concatenate([np.arange(len(before), dtype=np.int32), units]),
    )


def _file(
    models: dict[str, DynamicModel],
    model: DynamicModel,
    windows: Windows,
    options: argparse.Namespace,
    bar: tqdm,
) -> dict[str, Any]:
    """Figures of one file."""
    # Ids keep the model's own rows with any provider.
    static = bits(model, [part.ids.tolist() for part in windows.prefixes], windows.targets)
    bar.update()
    before = sum(len(part.tokens) for part in windows.prefixes)
    by_reduction = []
    merging = [keep_last(part, options.kept_words) for part in windows.prefixes]
    for other in models.values():
        merging = other.readable(merging)
    for reduction in options.reduction:
        budget = Budget(reduction=reduction)
        merged = model.merge(merging, budget, per_sample=True).sequences
        prefixes = [part.tokens for part in merged]
        found: dict[str, np.ndarray] = {}
        for name, other in models.items():
            found[name] = bits(other, prefixes, windows.targets)
            bar.update()
        shorter = 100 * (before - sum(map(len, prefixes))) / before
        by_reduction.append(
            {
                "reduction": reduction,
                "prefix_shorter_percent": shorter,
                "rows": figures(static, found, windows.bytes),
            }
        )
    return {
        "bytes": windows.bytes,
        "static_bits_per_byte": float(static.sum() / windows.bytes),
        "reductions": by_reduction,
    }


def bits(
    model: DynamicModel, prefixes: Sequence[Sequence[Token]], targets: Int[np.ndarray, "W C"]
) -> Float[np.ndarray, " W"]:
    """(W,) bits of the base tokens that follow each prefix."""
    following: list[list[int]] = targets.tolist()
    sequences = [[*prefix, *ids] for prefix, ids in zip(prefixes, following, strict=True)]
    return -target_scores(model, sequences, following, BATCH_SIZE).log_probs / math.log(2)


def figures(
    static: Float[np.ndarray, " W"], found: dict[str, Float[np.ndarray, " W"]], size: int
) -> dict[str, dict[str, Any]]:
    """Figures of all rows at one reduction.

    Args:
        static: bits of each window after its prefix in base tokens.
        found: bits of each window, by rows.
        size: bytes of all windows.
    """

    def above(static, other):
        return 100 * (other / static - 1)

    def closed(static, fvt, other):
        return (fvt - other) / (fvt - static)

    table: dict[str, dict[str, Any]] = {}
    for name, other in found.items():
        table[name] = {
            "bits_per_byte": float(other.sum() / size),
            "above_static_percent": float(above(static.sum(), other.sum())),
            "above_static_interval": interval(above, static, other),
        }
        if "fvt" in found and name != "fvt":
            fvt = found["fvt"]
            sums = static.sum(), fvt.sum(), other.sum()
            table[name]["gap_closed"] = record.gap_closed(*map(float, sums))
            table[name]["gap_closed_interval"] = interval(closed, static, fvt, other)
    return table


if __name__ == "__main__":
    main()
