"""Pooled vectors of merged texts."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_folders import encoder, folders, of_languages

from dyntok_jax.config import ComputeConfig, MeshConfig
from dyntok_jax.dynamic_model import load
from dyntok_jax.encoding import encode
from dyntok_jax.merging.budget import Budget
from dyntok_jax.sharding import gathered
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import text_layout

__all__ = ["encoder", "folders"]

TEXTS = ["The lighthouses on this coast", "a dog", "old bridges, every morning children"]


@pytest.mark.parametrize("data", [1, 2])
def test_the_mean_counts_base_tokens(encoder, data):
    model = load(str(encoder), "fvt", ComputeConfig(mesh=MeshConfig(data=data)))
    base = text_layout(model.tokenizer, TEXTS)
    merged = model.merge(base, Budget(reduction=100)).sequences
    outputs = model.outputs([part.tokens for part in merged], gathered, 2)
    states = {row: part[i] for place, part in outputs for i, row in enumerate(place)}
    found = encode(model, TEXTS, 100, batch_size=len(TEXTS)).vectors
    first = encode(model, TEXTS, 100, batch_size=len(TEXTS), pool="first").vectors
    assert [len(b.tokens) > len(m.tokens) for b, m in zip(base, merged, strict=True)] == [1, 0, 1]
    for row, part in enumerate(merged):
        ends = [*part.starts[1:].tolist(), len(base[row].tokens)]
        repeats = np.subtract(ends, part.starts)
        wanted = np.repeat(states[row][: len(repeats)], repeats, axis=0).mean(0)
        np.testing.assert_allclose(found[row], wanted, atol=1e-5)
        np.testing.assert_allclose(first[row], states[row][0], atol=1e-5)
    static = encode(model, TEXTS, 0).vectors
    ones = [part.tokens for part in model.merge(base, Budget(reduction=0)).sequences]
    for place, part in model.outputs(ones, gathered, 2):
        for i, row in enumerate(place):
            np.testing.assert_allclose(static[row], part[i, : len(ones[row])].mean(0), atol=1e-5)


def test_words_of_more_pieces_than_rows_are_made_of_stay_in_base_tokens(encoder, tmp_path):
    rows = of_languages(tmp_path / "rows", encoder, ["xx"])  # of at most 4 pieces
    model, of_all = load(str(encoder), str(rows), language=0), load(str(encoder), "fvt")
    texts = ["a dog and lighthousekeepers", "children"]
    base, whole = text_layout(model.tokenizer, texts), Budget(reduction=100)
    merged = model.merge(base, whole).sequences
    seen = set()
    for before, after in zip(base, merged, strict=True):
        sizes = np.bincount(before.units)
        expected = [n for size in sizes for n in ([size] if size <= 4 else [1] * size)]
        assert after.counts.tolist() == expected
        seen |= {*sizes.tolist()}
    assert max(seen) > 4 and seen & {2, 3, 4}
    assert [m.tokens for m in of_all.merge(base, whole).sequences] != [m.tokens for m in merged]
    one = text_layout(model.tokenizer, texts, Boundary.SENTENCE)
    assert max(model.merge(one, whole, Boundary.SENTENCE).sequences[0].counts) > 4
