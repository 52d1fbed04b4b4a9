"""Bits per byte of texts under a large vocabulary, by an exact softmax over all of its tokens.

    python -m eval.large_likelihood --model smollm2-135m-instruct \
      --vocabulary out/vocabulary_smollm2 --rows fvt,stored --text en.txt --windows 100 \
      --out out/large_likelihood.json

Windows are those of ``eval.continuation``. Their first base tokens, the prefix, are read as they
are; what follows is cut into longest prefixes, as prompts are, and each of these tokens is read and
scored by the given rows: ``stored``, those in the vocabulary's folder, or any that ``--rows`` of
other commands names, which are predicted for the whole vocabulary part by part. Against it stands
the same text in base tokens, under the model's own vocabulary. Both count the bits of one way to
cut the text. Bits per byte are all bits over all bytes; intervals are of a paired bootstrap over
windows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from dyntok_jax.batching import by_length
from dyntok_jax.command_line import is_terminal
from dyntok_jax.dynamic_model import DynamicModel, load
from dyntok_jax.embed.providers import row_provider
from dyntok_jax.embed.source import SourceEmbeddings
from dyntok_jax.generation.opening import check_width
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary
from dyntok_jax.models.heads import logits
from dyntok_jax.sharding import forward, gathered
from dyntok_jax.text.layouts import ids_layout
from dyntok_jax.types import DyntokError, Rows
from eval import record
from eval.continuation import Windows, bits, cut_windows, figures

STORED = "stored"
"""The name, among rows, of those in the vocabulary's folder."""

BATCH_SIZE = 8
BLOCK = 16_384
"""Rows of the vocabulary that are multiplied at once."""

TOGETHER = 1024
"""Hidden states that are multiplied at once: with a block's rows, 64 MB of scores."""

RowsOf = Callable[[Int[np.ndarray, " U"]], Rows]
"""Ids of the large vocabulary to their float32 rows."""


def main() -> None:
    """Measures, writes the figures as JSON."""
    parser = record.Parser(
        "eval.large_likelihood",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--vocabulary", type=Path, required=True, metavar="DIR", help="a large one")
    add("--rows", type=record.names, default=f"fvt,{STORED}", help=f"(fvt,{STORED})")
    add("--text", type=Path, nargs="+", required=True, metavar="FILE", help="one text a line")
    add("--lines", type=record.line_range, metavar="A-B", help="lines to read (all)")
    add("--windows", type=record.positive, default=100, metavar="N", help="of each file (100)")
    add("--prefix-tokens", type=record.positive, default=192, metavar="N", help="(192)")
    add("--continuation-tokens", type=record.positive, default=64, metavar="N", help="(64)")
    record.run(parser, measure)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every file, for all rows."""
    model = load(options.model, "fvt")
    if model.kind != "decoder":
        raise DyntokError(f"{model.name} is an encoder: it has no logits")
    vocabulary = LargeVocabulary.load(options.vocabulary, model.tokenizer)
    rows = {name: rows_of(name, vocabulary, model) for name in options.rows}
    windows = {str(path): cut_windows(model.tokenizer, path, options) for path in options.text}
    files = {
        name: _file(model, vocabulary, part, rows, Path(name)) for name, part in windows.items()
    }
    return {
        "task": "likelihood",
        "model": options.model,
        "size": len(vocabulary.tokens),
        "windows": options.windows,
        "prefix_tokens": options.prefix_tokens,
        "continuation_tokens": options.continuation_tokens,
        "files": files,
    }


def rows_of(name: str, vocabulary: LargeVocabulary, model: DynamicModel) -> RowsOf:
    """Where the rows of a large vocabulary come from.

    Args:
        name: ``stored``, or as in ``embed.providers.row_provider``.
        vocabulary: whose rows they are.
        model: that it was built for.

    Raises:
        DyntokError: no such rows; rows of another model; no output rows where the model has them
            apart from its input rows.
    """
    if name == STORED:
        check_width(vocabulary, model)
        return SourceEmbeddings(*vocabulary.rows()).take
    source, tokens = model.source, vocabulary.row_tokens
    provider = row_provider(name, lambda _: source, model.tokenizer, None, None, model.mesh)
    if source.output is not None and provider.rows([]).output is None:
        raise DyntokError(f"rows {name}: they have no output rows, which {model.name} needs")
    return lambda ids: provider.rows([tokens[i] for i in ids])


def _file(
    model: DynamicModel,
    vocabulary: LargeVocabulary,
    windows: Windows,
    rows: dict[str, RowsOf],
    path: Path,
) -> dict[str, Any]:
    """Figures of one file."""
    prefixes = [part.ids.tolist() for part in windows.prefixes]
    static = bits(model, prefixes, windows.targets)
    targets = [ids.tolist() for ids in windows.targets]
    following = [vocabulary.tokenize(base) for base in ids_layout(model.tokenizer, targets)]
    longest = max(map(len, prefixes)) + max(map(len, following))
    if longest > model.max_length:
        raise DyntokError(f"{path}: windows of {longest} tokens; valid are {model.max_length}")
    found = {
        name: large_bits(model, of, prefixes, following, len(vocabulary.tokens))
        for name, of in rows.items()
    }
    return {
        "bytes": windows.bytes,
        "tokens_static": windows.targets.size,
        "tokens_large": sum(map(len, following)),
        "static_bits_per_byte": float(static.sum() / windows.bytes),
        "rows": figures(static, found, windows.bytes),
    }


def large_bits(
    model: DynamicModel,
    rows: RowsOf,
    prefixes: Sequence[Sequence[int]],
    following: Sequence[Sequence[int]],
    size: int,
) -> Float[np.ndarray, " W"]:
    """(W,) bits of the tokens that follow each prefix.

    Args:
        model: a decoder.
        rows: of the large vocabulary.
        prefixes: ids, which are the model's own in both vocabularies.
        following: ids of the large vocabulary.
        size: V, its tokens.
    """
    hidden = _states(model, rows, prefixes, following)
    targets = np.concatenate([np.asarray(ids, np.int32) for ids in following])
    nats = _log_sums(hidden, rows, size) - _chosen(hidden, rows, targets)
    ends = np.cumsum([len(ids) for ids in following])[:-1]
    return np.array([part.sum() for part in np.split(nats, ends)]) / math.log(2)


def _states(
    model: DynamicModel,
    rows: RowsOf,
    prefixes: Sequence[Sequence[int]],
    following: Sequence[Sequence[int]],
) -> Float[np.ndarray, "N D"]:
    """Hidden states by which the tokens that follow are scored, in their order."""
    sequences = [[*prefix, *ids] for prefix, ids in zip(prefixes, following, strict=True)]
    found: dict[int, np.ndarray] = {}
    for place in by_length([len(ids) for ids in sequences], BATCH_SIZE):
        batch = model.batch([sequences[i] for i in place])
        table = rows(batch.table_ids(np.array(batch.tokens, np.int32))).input
        hidden = forward(
            model.module, model.params, table, batch.ids, batch.mask,
            mesh=model.mesh, method=gathered,
        )  # fmt: skip
        for i, states in zip(place, np.asarray(hidden, np.float32), strict=False):
            # Padding is on the left.
            found[i] = states[-len(following[i]) - 1 : -1]
    return np.concatenate([found[i] for i in range(len(sequences))])


def _log_sums(
    hidden: Float[np.ndarray, "N D"], rows: RowsOf, size: int, block: int = BLOCK
) -> Float[np.ndarray, " N"]:
    """Logarithms of the sums over all tokens of the exponentials of their logits."""
    starts = range(0, len(hidden), TOGETHER)
    sums = [jnp.full(len(hidden[i : i + TOGETHER]), -jnp.inf) for i in starts]
    begins = range(0, size, block)
    for begin in tqdm(begins, disable=not is_terminal(), leave=False, unit="block"):
        ids = np.arange(begin, min(begin + block, size))
        output, bias = _output(rows(ids))
        missing = block - len(ids) if size > block else 0
        output = jnp.asarray(np.pad(output, ((0, missing), (0, 0))))
        bias = jnp.asarray(np.pad(bias, (0, missing), constant_values=-np.inf))
        sums = [
            _added(total, hidden[i : i + TOGETHER], output, bias)
            for total, i in zip(sums, starts, strict=True)
        ]
    return np.concatenate([np.asarray(part) for part in sums])


@partial(jax.jit, donate_argnums=0)
def _added(
    sums: Float[Array, " N"],
    hidden: Float[Array, "N D"],
    output: Float[Array, "U D"],
    bias: Float[Array, " U"],
) -> Float[Array, " N"]:
    scores = logits(hidden, output, bias)
    return jnp.logaddexp(sums, jax.nn.logsumexp(scores, axis=-1))


def _chosen(
    hidden: Float[np.ndarray, "N D"], rows: RowsOf, targets: Int[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """Logits of the tokens that follow."""
    different, place = np.unique(targets, return_inverse=True)
    output, bias = _output(rows(different))
    return np.einsum("nd,nd->n", hidden, output[place]) + bias[place]


def _output(rows: Rows) -> tuple[Float[np.ndarray, "U D"], Float[np.ndarray, " U"]]:
    output = rows.input if rows.output is None else rows.output
    bias = np.zeros(len(output), np.float32) if rows.bias is None else rows.bias
    return output, bias


if __name__ == "__main__":
    main()
