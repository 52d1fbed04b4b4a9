"""Merging: the naive rescan, the host's heap and the device's loop on the same sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dyntok_jax.merging.batch import Mergeable
from dyntok_jax.merging.budget import Budget
from dyntok_jax.merging.device import merge_device
from dyntok_jax.merging.device_tokens import device_tokens, read_merges
from dyntok_jax.merging.host import merge_host
from dyntok_jax.merging.naive import merge_naive
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.layouts import text_layout
from eval.timing import medians

LANGUAGES = ("de", "zh", "th")
SENTENCES = 32


def bench_merging(tokenizer: BaseTokenizer, folder: Path) -> list[dict[str, Any]]:
    """One row for each language and budget.

    Args:
        tokenizer: of the base tokens.
        folder: holds XX.txt, a sentence a line.
    """
    rows = []
    for language in LANGUAGES:
        lines = (folder / f"{language}.txt").read_text("utf-8").splitlines()[:SENTENCES]
        for reduction in (100, 50):
            budget = Budget() if reduction == 100 else Budget(reduction=reduction)
            row = _compare(tokenizer, lines, budget)
            rows.append({"language": language, "reduction": reduction, **row})
    return rows


def _compare(tokenizer: BaseTokenizer, lines: Sequence[str], budget: Budget) -> dict[str, Any]:
    sequences = text_layout(tokenizer, lines)
    # The naive rescan gets every unit, as in the original; the other two find those that matter.
    units = [
        [sequence.tokens[i] for i in positions]
        for sequence in sequences
        for _, positions in groupby(range(len(sequence.units)), key=sequence.units.__getitem__)
    ]
    units = [[str(token) for token in unit] for unit in units]
    most = sum(map(len, units)) - len(units)
    limits = budget.limits(most)

    def naive():
        return merge_naive(units, *limits)[1]

    def host():
        part = Mergeable.of(sequences)
        return merge_host(part.tokens, part.units, *limits)[1]

    def device():
        part = Mergeable.of(sequences)
        rows = device_tokens([(part.tokens, part.units)])
        bounds = (np.full(1, limit, np.int32) for limit in limits)
        return read_merges(jax.device_get(merge_device(rows, *bounds)), 0, part.tokens)

    if not naive() == host() == device():
        raise AssertionError("the mergers do not agree")
    seconds = medians({"naive": naive, "host": host, "device": device})
    return {
        "tokens": sum(map(len, units)),
        "merges": len(host()),
        **{f"{name}_ms": 1e3 * value for name, value in seconds.items()},
        "host_ratio": seconds["naive"] / seconds["host"],
        "device_ratio": seconds["naive"] / seconds["device"],
    }
