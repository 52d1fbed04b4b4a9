"""Batches of base tokens to batches of dynamic tokens, and when merging stops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dyntok_jax.merging.batch import DynamicBatch, merge
from dyntok_jax.merging.budget import Budget, sample_budget
from dyntok_jax.merging.punctuation import PunctuationRule
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens, pair_layout, text_layout, words_layout
from dyntok_jax.types import DyntokError, Merge, Token

OPENING, CLOSING = 0, 2
BACKENDS = ("host", "device")


def sequence(*units: str, word_ids: list[int] | None = None) -> BaseTokens:
    """``<s>``, the units with their tokens divided by spaces, ``</s>``."""
    parts: list[list[Token]] = [[OPENING], *([*unit.split()] for unit in units), [CLOSING]]
    tokens = [token for part in parts for token in part]
    numbers = np.repeat(np.arange(len(parts)), [len(part) for part in parts]).astype(np.int32)
    words = None if word_ids is None else np.array(word_ids, np.int32)
    return BaseTokens(np.zeros(len(tokens), np.int32), tokens, numbers, words)


def tokens(batch: DynamicBatch) -> list[list[Token]]:
    return [sequence.tokens for sequence in batch.sequences]


# Budgets


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merges": -1}, "merges -1: valid is a number from 0, or 'all'"),
        ({"reduction": -0.5}, "reduction -0.5: valid is a percentage from 0 to 100"),
        ({"reduction": 100.5}, "reduction 100.5: valid is a percentage from 0 to 100"),
        ({"reduction": math.nan}, "reduction nan: valid is a percentage from 0 to 100"),
        ({"merges": 1, "reduction": 50}, "give a number of merges or a reduction, not both"),
    ],
)
def test_a_budget_that_makes_no_sense_is_an_error(options: dict, message: str):
    with pytest.raises(DyntokError) as error:
        Budget(**options)
    assert str(error.value) == message


def test_limits():
    unlimited = 2**31 - 1
    assert Budget().limits(7) == (unlimited, unlimited)
    assert Budget(merges=0).limits(7) == (0, unlimited)
    assert Budget(merges=2**40).limits(7) == (unlimited, unlimited)
    # The first whole token at which the percentage is reached, whatever the rounding of floats.
    for percent, target in [(0, 0), (1, 1), (50, 5), (51, 6), (70, 7), (99.9, 10), (100, 10)]:
        assert Budget(reduction=percent).limits(10) == (unlimited, target)
    assert Budget(reduction=100 / 3).limits(3)[1] == 1
    assert Budget(reduction=64.4).limits(1000)[1] == 644  # by floats 644.0000000000001
    assert Budget(reduction=100).limits(0) == (unlimited, 0)


def test_which_budgets_exhaust():
    assert Budget().exhausts and Budget(reduction=100).exhausts and Budget(reduction=100.0).exhausts
    assert not any(
        budget.exhausts for budget in (Budget(merges=9), Budget(reduction=99), Budget(reduction=0))
    )


def test_sampled_budgets():
    def draw(seed: int) -> list[int | None]:
        rng = np.random.default_rng(seed)
        return [sample_budget(rng, 4).merges for _ in range(2000)]

    sampled = draw(0)
    assert sampled == draw(0) != draw(1)
    counts = np.bincount(np.array(sampled, int), minlength=5)
    assert len(counts) == 5  # from 0 to m_max, both included
    assert (abs(counts - 400) < 100).all()  # five standard deviations and more
    assert sample_budget(np.random.default_rng(0), 0).merges == 0
    assert all(type(m) is int for m in sampled)


# Merging


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("budget", "number"),
    [
        (Budget(), 5),
        (Budget(merges=0), 0),
        (Budget(merges=1), 1),
        (Budget(merges=3), 3),
        (Budget(merges=99), 5),
        (Budget(reduction=0), 0),
        (Budget(reduction=1), 1),
        # Of 8 tokens at most, the first merge saves 3, the second 2, the others 1 each.
        (Budget(reduction=37.5), 1),
        (Budget(reduction=38), 2),
        (Budget(reduction=62.5), 2),
        (Budget(reduction=63), 3),
        (Budget(reduction=100), 5),
    ],
)
def test_when_merging_stops(budget: Budget, number: int, backend):
    batch = [sequence("a b c", "a b c"), sequence("x a b", "d e f")]
    merges = [("a", "b", 3), ("ab", "c", 2), ("x", "ab", 1), ("d", "e", 1), ("de", "f", 1)]
    states = [
        [[0, *"abc", *"abc", 2], [0, *"xab", *"def", 2]],
        [[0, "ab", "c", "ab", "c", 2], [0, "x", "ab", *"def", 2]],
        [[0, "abc", "abc", 2], [0, "x", "ab", *"def", 2]],
        [[0, "abc", "abc", 2], [0, "xab", *"def", 2]],
        [[0, "abc", "abc", 2], [0, "xab", "de", "f", 2]],
        [[0, "abc", "abc", 2], [0, "xab", "def", 2]],
    ]
    merged = merge(batch, budget, backend=backend, trace=True)
    assert merged.merges == [merges[:number]]
    assert tokens(merged) == states[number]
    assert tokens(merge(batch, budget, backend=backend)) == states[number]


@pytest.mark.parametrize("backend", BACKENDS)
def test_per_sample(backend):
    """Each sequence has its own merges and its own maximum."""
    batch = [sequence("a b a b"), sequence("b c"), sequence(), sequence("c d e")]
    merged = merge(batch, Budget(reduction=50), per_sample=True, trace=True, backend=backend)
    assert merged.merges == [[("a", "b", 2)], [("b", "c", 1)], [], [("c", "d", 1)]]
    assert tokens(merged) == [[0, "ab", "ab", 2], [0, "bc", 2], [0, 2], [0, "cd", "e", 2]]
    together = merge(batch, Budget(reduction=50), trace=True, backend=backend)
    assert together.merges == [[("a", "b", 2), ("ab", "ab", 1)]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_budget_for_each_group(backend):
    batch = [sequence("a b a b"), sequence("b c"), sequence("c d e")]
    budgets = [Budget(merges=1), Budget(merges=0), Budget()]
    merged = merge(batch, budgets, per_sample=True, trace=True, backend=backend)
    assert tokens(merged) == [[0, "ab", "ab", 2], [0, "b", "c", 2], [0, "cde", 2]]
    assert list(map(len, merged.merges)) == [1, 0, 2]
    (together,) = merge(batch, [Budget(merges=1)], trace=True, backend=backend).merges
    assert together == [("a", "b", 2)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_traces_are_of_groups(backend):
    batch = [sequence("a b"), sequence("a b")]
    together = merge(batch, Budget(), trace=True, backend=backend)
    assert together.merges == [[Merge("a", "b", 2)]]
    apart = merge(batch, Budget(), trace=True, backend=backend, per_sample=True)
    assert apart.merges == [[Merge("a", "b", 1)]] * 2
    assert merge(batch, Budget(merges=3), backend=backend).merges == []


def test_the_order_of_the_batch_decides_ties():
    one, other = sequence("a b"), sequence("c d")
    assert merge([one, other], Budget(merges=1), trace=True).merges == [[("a", "b", 1)]]
    assert merge([other, one], Budget(merges=1), trace=True).merges == [[("c", "d", 1)]]


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("budget", [Budget(), Budget(merges=5), Budget(reduction=50)])
def test_nothing_to_merge(budget: Budget, backend):
    for batch in ([], [sequence()], [sequence("a", "b")], [BaseTokens(*empty())]):
        for per_sample in (False, True):
            merged = merge(batch, budget, backend=backend, trace=True, per_sample=per_sample)
            assert tokens(merged) == [part.tokens for part in batch]
            assert not any(merged.merges)


def empty() -> tuple:
    return np.zeros(0, np.int32), [], np.zeros(0, np.int32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_and_words_of_the_result(backend):
    words = sequence("a b c", "a b", "c", word_ids=[-1, 0, 0, 0, 1, 1, 1, -1])
    given = list(words.tokens)
    (merged,) = merge([words], Budget(merges=1), backend=backend).sequences
    assert merged.tokens == [0, "ab", "c", "ab", "c", 2]
    assert merged.starts.dtype == np.int32
    assert merged.starts.tolist() == [0, 1, 3, 4, 6, 7]
    assert merged.counts.dtype == np.int32
    assert merged.counts.tolist() == [1, 2, 1, 2, 1, 1]
    assert merged.word_ids is not None and merged.word_ids.dtype == np.int32
    assert merged.word_ids.tolist() == [-1, 0, 0, 1, 1, -1]
    assert words.tokens == given
    (plain,) = merge([sequence("a b")], Budget(), backend=backend).sequences
    assert plain.word_ids is None


def test_an_unknown_backend_is_an_error():
    with pytest.raises(DyntokError) as error:
        merge([sequence("a b")], Budget(), backend="gpu")  # pyright: ignore[reportArgumentType]
    assert str(error.value) == "unknown backend 'gpu'; valid: auto, host, device"


# The rule for punctuation


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reduction_is_of_what_the_rule_leaves(backend):
    """4 of 6 pairs may merge: half of it is 2 tokens, not 3."""
    rule = PunctuationRule([".", ",", "-"])
    batch = [sequence("a b .", "c - d ,"), sequence("e f")]
    exhausted = merge(batch, Budget(), rule=rule, backend=backend, trace=True)
    merges = [("a", "b", 1), ("c", "-", 1), ("c-", "d", 1), ("e", "f", 1)]
    assert exhausted.merges == [merges]
    assert tokens(exhausted) == [[0, "ab", ".", "c-d", ",", 2], [0, "ef", 2]]
    for percent, number in [(0, 0), (25, 1), (50, 2), (51, 3), (100, 4)]:
        merged = merge(batch, Budget(reduction=percent), rule=rule, backend=backend, trace=True)
        assert merged.merges == [merges[:number]]
    per_sample = merge(
        batch, Budget(reduction=50), rule=rule, backend=backend, trace=True, per_sample=True
    )
    assert per_sample.merges == [merges[:2], merges[3:]]


def test_what_counts_as_punctuation():
    rule = PunctuationRule(["a", ".", "Ġ(", "1.", "³.", "-", "--", "a-b", "Ġ", "''"])
    assert rule.tokens == {".", "Ġ(", "-", "--", "a-b", "''"}
    assert rule.longest == 3
    assert [rule.mark(token) for token in ("a", ".", "-", "--", "1.", "b-a")] == [0, 1, 2, 1, 0, 0]
    assert rule.allows(".", "a") and rule.allows(".", "--") and rule.allows("a", "-")
    assert not rule.allows("a", ".") and not rule.allows("a", "--")
    assert PunctuationRule([]).longest == 1 and PunctuationRule([]).allows("a", ".")


# With a tokenizer


def test_boundaries_through_a_layout(tiny_tokenizers):
    tokenizer = BaseTokenizer(*tiny_tokenizers["byte_bpe"])
    rule = PunctuationRule(tokenizer.vocabulary())
    expected = {
        Boundary.PRETOKEN: ["well", "-", "known", "Ġfoxes", ",", "Ġ24", "!!"],
        Boundary.WORD: ["well-known", "Ġfoxes,", "Ġ24!!"],
        # "!!" is no token of the vocabulary, and so no punctuation token: it joins to the number.
        Boundary.WORD_HYPHEN: ["well-known", "Ġfoxes", ",", "Ġ24!!"],
        Boundary.SENTENCE: ["well-knownĠfoxes,Ġ24!!"],
    }
    for boundary, merged in expected.items():
        batch = text_layout(tokenizer, ["well-known foxes, 24!!"], boundary)
        used = rule if boundary is Boundary.WORD_HYPHEN else None
        for backend in BACKENDS:
            found = merge(batch, Budget(), rule=used, backend=backend)
            assert tokens(found) == [[1, *merged, 2]]


def test_special_tokens_never_merge(tiny_tokenizers):
    tokenizer = BaseTokenizer(*tiny_tokenizers["byte_bpe"])
    batch = pair_layout(tokenizer, ["the<|im_end|>"], ["<|im_start|>dog"], Boundary.SENTENCE)
    (found,) = merge(batch, Budget()).sequences
    assert found.tokens == [1, "the<|im_end|>", 2, 2, "<|im_start|>dog", 2]
    words = words_layout(tokenizer, [["the", "dog"]] * 2, Boundary.SENTENCE)
    merged = merge(words, Budget(), trace=True)
    assert tokens(merged) == [[1, "thedog", 2]] * 2
    assert [np.asarray(part.word_ids).tolist() for part in merged.sequences] == [[-1, 0, -1]] * 2


def test_a_long_unit_takes_linear_memory_on_the_host():
    """Spelling every prefix of one unit would take the square of its length: 45 GB here."""
    tokens: list[Token] = [f"{number:x}" for number in range(0x10000, 0x10000 + 60_000)]
    (sequence,) = [BaseTokens(np.arange(60_000), tokens, np.zeros(60_000, np.int32))]
    merged = merge([sequence], Budget(reduction=50), backend="host")
    assert len(merged.sequences[0].tokens) == 30_000
    assert merged.merges == []
