"""Likelihood while the cache is rewritten, against whole forwards over what stands there."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dyntok_jax.dynamic_model import DynamicModel, load
from dyntok_jax.scoring import target_scores
from dyntok_jax.text.layouts import prompt_layout
from dyntok_jax.types import Token
from eval import continuation, rewriting

TEXTS = ("Der Großvater erzählte den Kindern Geschichten", "The lighthouses are lit, my dog")


@pytest.fixture(scope="module")
def model(decoder) -> DynamicModel:
    return load(str(decoder), "fvt")


@pytest.fixture(scope="module")
def case(model) -> tuple[list[list[Token]], np.ndarray, list[list[str]]]:
    """Prefixes, the ids that follow, and the same spelled, a list a word."""
    bases = prompt_layout(model.tokenizer, TEXTS)
    size = min(len(base.ids) for base in bases) - 5
    prefixes: list[list[Token]] = [base.tokens[: 4 + i] for i, base in enumerate(bases)]
    rows = [base.ids[4 + i : 4 + i + size] for i, base in enumerate(bases)]
    words = []
    for i, base in enumerate(bases):
        part = slice(4 + i, 4 + i + size)
        units, tokens = base.units[part], np.array(base.tokens[part], object)
        words.append([tokens[units == unit].tolist() for unit in np.unique(units)])
    return prefixes, np.stack(rows), words


def test_never_rewriting_is_the_plain_forward(model, case):
    prefixes, targets, _ = case
    bits, tokens = rewriting.rewritten_bits(model, prefixes, targets, 1000)
    np.testing.assert_allclose(bits, continuation.bits(model, prefixes, targets), rtol=1e-4)
    assert tokens == targets.size


@pytest.mark.parametrize("together", [1, 2])
def test_each_word_follows_the_merged_ones_before_it(model, case, together):
    prefixes, targets, words = case
    bits, held = rewriting.rewritten_bits(model, prefixes, targets, together)
    expected, lengths = [], 0
    for prefix, ids, spelled in zip(prefixes, targets.tolist(), words, strict=True):
        sequences, wanted, start, merged = [], [], 0, []
        for first in range(0, len(spelled), together):
            group = spelled[first : first + together]
            count = sum(map(len, group))
            # The first token of the next group is scored before this one is rewritten.
            end = min(start + count + 1, len(ids))
            begin = start if first == 0 else start + 1
            sequences.append([*prefix, *merged, *ids[start:end]])
            wanted.append(ids[begin:end])
            over = len(group) == together and start + count < len(ids)
            merged += ["".join(word) for word in group] if over else ids[start:end]
            start += count
        scores = target_scores(model, sequences, wanted, 8).log_probs
        expected.append(-sum(scores) / math.log(2))
        lengths += len(merged)
    np.testing.assert_allclose(bits, expected, rtol=1e-4)
    assert held == lengths < targets.size


def test_the_command(command, decoder, tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "figures.json"
    text.write_text("\n".join(TEXTS * 6) + "\n", "utf-8")
    run = command(
        rewriting.main, *("--model", decoder, "--rows", "fvt", "--words", "1,2", "--windows", 3),
        *("--prefix-tokens", 12, "--continuation-tokens", 10, "--text", text, "--out", out),
    )  # fmt: skip
    assert run.code == 0, run.err
    (figures,) = json.loads(out.read_text("utf-8"))["files"].values()
    assert figures["words"]["1"]["cache_shorter_percent"] > 0
    for words, row in figures["words"].items():
        above = f"{row['above_percent']:+.1f} %"
        assert f" {words} {row['bits_per_byte']:.3f} {above}" in run.shown


def test_windows_that_the_model_cannot_read_are_refused(command, decoder, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 100) + "\n", "utf-8")
    run = command(
        rewriting.main, "--model", decoder, "--rows", "fvt", "--windows", 1,
        *("--prefix-tokens", 1000, "--text", tmp_path / "text.txt", "--out", tmp_path / "out.json"),
    )  # fmt: skip
    assert run.code == 2 and "windows of 1064 tokens" in run.err and run.err.count("\n") == 1
