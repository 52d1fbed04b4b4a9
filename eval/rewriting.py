"""Bits per byte while the words that were generated are merged in the cache, against leaving them.

    python -m eval.rewriting --model smollm2-135m-instruct --words 1,4 --windows 32 \
      --text out/text/wiki_qa/de.txt --out out/rewriting.json

Windows are those of ``eval.continuation``. Their prefixes are merged, the last word too; what
follows is read as it would be generated, in base tokens, and each time so many words are finished,
the cache goes back to before them and reads them merged. A word's first token is scored before
that, as it is chosen. ``generate`` looks for finished words every ``steps_together`` tokens only;
figures here are those of 1, as ``dyntok generate --stream`` has it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dyntok_jax.batching import TOKEN_BUCKETS, bucket, make_batch
from dyntok_jax.dynamic_model import DynamicModel, load
from dyntok_jax.generation import programs
from dyntok_jax.generation.answers import Names
from dyntok_jax.generation.rewriting import TOGETHER, reread, word_lengths
from dyntok_jax.merging.budget import Budget
from dyntok_jax.models.decoder_step import UnrolledDecoder
from dyntok_jax.models.heads import logits
from dyntok_jax.sharding import batch_sharding
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.types import DyntokError, Token
from eval import continuation, record
from eval.bootstrap import interval


def main() -> None:
    """Measures, writes the figures as JSON."""
    parser = record.Parser(
        "eval.rewriting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", default="default", help="of merged tokens (default)")
    add("--reduction", type=record.percent, default=100, metavar="PCT", help="of prefixes (100)")
    add("--words", type=record.numbers, default=[1], metavar="N,N", help="rewritten together (1)")
    add("--text", type=Path, nargs="+", required=True, metavar="FILE", help="one text a line")
    add("--lines", type=record.line_range, metavar="A-B", help="lines to read (all)")
    add("--windows", type=record.positive, default=64, metavar="N", help="of each file (64)")
    add("--prefix-tokens", type=record.positive, default=128, metavar="N", help="(128)")
    add("--continuation-tokens", type=record.positive, default=64, metavar="N", help="(64)")
    record.run(parser, measure)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every file, for all numbers of words."""
    model = load(options.model, options.rows)
    if model.kind != "decoder":
        raise DyntokError(f"{model.name} is an encoder: continuations need a decoder")
    size = options.prefix_tokens + options.continuation_tokens
    if size + len(model.tokenizer.prompt_ids) > model.max_length:
        raise DyntokError(f"windows of {size} tokens: {model.name} reads {model.max_length}")
    files = {str(path): _file(model, path, options) for path in options.text}
    kept = ("model", "windows", "prefix_tokens", "continuation_tokens", "reduction")
    chosen = {name: getattr(options, name) for name in kept}
    return {"task": "rewriting", **chosen, "files": files}


def _file(model: DynamicModel, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    windows = continuation.cut_windows(model.tokenizer, path, options)
    budget = Budget(reduction=options.reduction)
    merged = model.merge(windows.prefixes, budget, per_sample=True).sequences
    prefixes = [part.tokens for part in merged]
    left = continuation.bits(model, prefixes, windows.targets)
    found = {}
    for words in options.words:
        bits, tokens = rewritten_bits(model, prefixes, windows.targets, words)
        found[words] = {
            "bits_per_byte": float(bits.sum() / windows.bytes),
            "above_percent": float(_above(left.sum(), bits.sum())),
            "above_interval": interval(_above, left, bits),
            "cache_shorter_percent": 100 * (1 - tokens / windows.targets.size),
        }
    return {"bytes": windows.bytes, "bits_per_byte": float(left.sum() / windows.bytes)} | {
        "words": found
    }


def _above(left: Any, other: Any) -> Any:
    return 100 * (other / left - 1)


def rewritten_bits(
    model: DynamicModel,
    prefixes: Sequence[Sequence[Token]],
    targets: Int[np.ndarray, "W C"],
    words: int,
) -> tuple[Float[np.ndarray, " W"], int]:
    """Bits of what follows each prefix, and how many tokens of it all caches hold at the end.

    Args:
        model: a decoder.
        prefixes: tokens as they are read.
        targets: ids of the base tokens that follow.
        words: rewritten together, as soon as so many are finished.
    """
    bits, tokens = np.zeros(len(targets)), 0
    for start in range(0, len(targets), continuation.BATCH_SIZE):
        part = slice(start, start + continuation.BATCH_SIZE)
        found, held = _batch_bits(model, prefixes[part], targets[part].tolist(), words)
        bits[part] = found
        tokens += held
    return bits, tokens


def _batch_bits(
    model: DynamicModel, prefixes: Sequence[Sequence[Token]], targets: list[list[int]], words: int
) -> tuple[np.ndarray, int]:
    batch = make_batch(prefixes, "right", model.batch_rows(len(prefixes)), model.max_length)
    split, module = batch_sharding(model.mesh), model.module
    room = bucket(int(batch.mask.sum(1).max()) + len(targets[0]) + TOGETHER, TOKEN_BUCKETS)
    ids, mask = jax.device_put((batch.ids, batch.mask), split)
    last, cache = programs.prefill(
        model.params, model.table(batch), ids, mask, module=module, mesh=model.mesh, room=room
    )
    step = {"module": model.step_module, "mesh": model.mesh}
    length = batch.mask.sum(1, dtype=np.int32)
    first = int(length.sum())
    names = Names(model, None)
    groups = [_groups(names, row, words) for row in targets] + [[]] * (len(length) - len(targets))
    total = np.zeros(len(length))
    for turn in range(max(map(len, groups))):
        now = [of_row[turn] if turn < len(of_row) else ([], []) for of_row in groups]
        back, waiting = length.copy(), [base for base, _ in now]
        while any(waiting):
            part, waiting = [w[:TOGETHER] for w in waiting], [w[TOGETHER:] for w in waiting]
            fed, count = _right_padded(part)
            inputs = jax.device_put((fed, count, length.copy()), split)
            scores, last, cache = _scored(
                model.step_params, model.input_rows, model.output_rows, *inputs, cache, last, **step
            )
            total += np.asarray(scores)
            length += count
        cache = reread(model, [merged for _, merged in now], cache, back, step)
        length = back
    return -total[: len(targets)] / math.log(2), int(length.sum()) - first


def _groups(names: Names, ids: list[int], words: int) -> list[tuple[list[int], list[Token]]]:
    """What is read before the cache is rewritten, and what then stands there instead.

    The last words are not followed by another, and stay.
    """
    tokens = [names[i] for i in ids]
    ends = np.cumsum(word_lengths(tokens, Boundary.PRETOKEN)).tolist()
    starts = [0, *ends[:-1]]
    groups = []
    for begin in range(0, len(ends), words):
        spans = [*zip(starts[begin : begin + words], ends[begin : begin + words], strict=True)]
        base = ids[spans[0][0] : spans[-1][1]]
        merged: list[Token] = [
            "".join(map(str, tokens[a:b])) if b > a + 1 else ids[a] for a, b in spans
        ]
        over = len(spans) == words and spans[-1][1] < len(ids)
        groups.append((base, merged if over else [*base]))
    return groups


def _right_padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    count = np.array([len(row) for row in rows], np.int32)
    width = bucket(int(count.max()), (8, TOGETHER))
    return np.array([row + [0] * (width - len(row)) for row in rows], np.int32), count


@partial(jax.jit, static_argnames=("module", "mesh"), donate_argnames=("cache",))
def _scored(
    params: Any,
    input_rows: Any,
    output_rows: Any,
    ids: Any,
    count: Any,
    length: Any,
    cache: Any,
    last: Any,
    *,
    module: UnrolledDecoder,
    mesh: Any,
) -> Any:
    """Log-probabilities of the tokens that are read, the last hidden state of each, the cache."""
    hidden, cache = programs.read(params, input_rows[ids], cache, length, module, mesh)
    before = jnp.concatenate([last[:, None], hidden[:, :-1]], axis=1)
    scores = jax.nn.log_softmax(logits(before, output_rows), axis=-1)
    chosen = jnp.take_along_axis(scores, ids[..., None], axis=-1)[..., 0]
    real = jnp.arange(ids.shape[1]) < count[:, None]
    end = jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    last = jnp.where(count[:, None] > 0, end, last)
    return jnp.where(real, chosen, 0).sum(axis=1), last, cache


if __name__ == "__main__":
    main()
