"""What holds for every batch: random Unicode through real tokenizers, and few letters that make
merged tokens equal to others."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_text import model_text
from three_mergers import UNLIMITED, Units, cut, flat, merge_three_ways
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Split

from dyntok_jax.merging.batch import DynamicBatch, merge
from dyntok_jax.merging.budget import Budget
from dyntok_jax.merging.naive import merge_naive
from dyntok_jax.merging.punctuation import PunctuationRule
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.byte_level import SPLIT_PATTERN, to_bytes
from dyntok_jax.text.layouts import BaseTokens, text_layout, words_layout

UNICODE_BATCHES = 1000
LETTER_BATCHES = 2000
# At most 3 sequences of 20 tokens and their ends: all batches share one padded length.
SEQUENCES, MAX_LENGTH = 3, 22

WORDS = [
    *("the", "quick", "dog", "don't", "1999", "24,", "hm!", "a-b", "(a,b):", "--", "...", "''"),
    *(
        "Großvater",
        "über",
        "孩子们",
        "学校。",
        "каждый",
        "день",
        "كان",
        "เด็ก",
        "ต",
        "e\u0301",
        "x²",
    ),
    *("ﬁ", "㍿", "☃☃", "👩\u200d👩\u200d👧", "▁", "Ġ", "##", "@@@@", "<0x0A>", "\ud800"),
    *("<s>", "</s>", "[CLS]", "<|im_end|>"),
]
SPACES = [" ", "  ", "\n", "\t", "\r\n", "\u3000", "\xa0", "\u2029", "\x85", "\x00", "\x1c", ""]
SPLIT = Split(Regex(SPLIT_PATTERN), behavior="removed", invert=True)

common = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
pieces = st.one_of(
    st.sampled_from(WORDS), st.sampled_from(SPACES), st.characters(), st.sampled_from("ab1.' ")
)
texts = st.lists(pieces, max_size=8).map("".join)


class Family(NamedTuple):
    """One tokenizer: ours, and the library's from the same content."""

    content: dict
    library: Tokenizer
    ours: BaseTokenizer

    def text(self, text: str) -> str:
        text = re.sub("[\ud800-\udfff]", "\ufffd", text)
        return model_text(self.content, self.library, text)


@pytest.fixture(scope="module")
def families(tiny_tokenizers) -> dict[str, Family]:
    return {
        name: Family(
            content | {"added_tokens": []},
            Tokenizer.from_str(json.dumps(content)),
            BaseTokenizer(content, config),
        )
        for name, (content, config) in tiny_tokenizers.items()
    }


def test_unicode_batches(families: dict[str, Family]):
    vocabulary = [token for family in families.values() for token in family.ours.vocabulary()]
    rule = PunctuationRule(vocabulary)  # one for all, so that it is compiled once

    @settings(common, max_examples=UNICODE_BATCHES)
    @given(
        st.sampled_from(list(families)),
        st.sampled_from(list(Boundary)),
        st.booleans(),
        st.lists(texts, min_size=SEQUENCES, max_size=SEQUENCES),
        st.integers(0, 40),
        st.floats(0, 100),
    )
    def check(name, boundary, in_words, batch, m, percent):
        family = families[name]
        given_words = [text.split(" ") if in_words else [text] for text in batch]
        whole, sequences = (
            words_layout(family.ours, given_words, boundary, length)
            if in_words
            else text_layout(family.ours, batch, boundary, length)
            for length in (None, MAX_LENGTH)
        )
        for sequence, words in zip(whole, given_words, strict=True):
            check_base_tokens(sequence, [family.text(word) for word in words], boundary)
        used = rule if boundary is Boundary.WORD_HYPHEN else None
        exhausted = check_merges(sequences, used)
        check_budgets(sequences, used, exhausted, m, percent)
        check_samples(sequences, used)

    check()


def check_base_tokens(sequence: BaseTokens, words: list[str], boundary: Boundary) -> None:
    """The bytes of the text are there, and units begin where they must."""
    spelled, units = sequence.tokens[1:-1], sequence.units[1:-1]
    lengths = [len(to_bytes(str(token))) for token in spelled]
    raw = b"".join(to_bytes(str(token)) for token in spelled)
    assert raw == "".join(words).encode("utf-8")
    ends = np.cumsum([len(word.encode("utf-8")) for word in words])
    if sequence.word_ids is not None:
        starts = np.cumsum([0, *lengths])[:-1]
        np.testing.assert_array_equal(
            sequence.word_ids[1:-1], np.searchsorted(ends, starts, side="right")
        )
    cuts: set[int] = set()
    for word, end in zip(words, ends.tolist(), strict=True):
        start = end - len(word.encode("utf-8"))
        cuts |= {start + offset for offset in unit_starts(word, boundary)}
        if boundary is not Boundary.SENTENCE:
            cuts.add(start)
    begins, after_straddler, offset = [], True, 0
    for length in lengths:
        straddles = any(c in cuts for c in range(offset + 1, offset + length))
        begins.append(offset in cuts or straddles or after_straddler)
        after_straddler, offset = straddles, offset + length
    assert (np.diff(units) != 0).tolist() == begins[1:]


def unit_starts(text: str, boundary: Boundary) -> set[int]:
    """Offsets in bytes at which a pre-token or a word begins."""
    if boundary is Boundary.SENTENCE:
        return set()
    if boundary is Boundary.PRETOKEN:
        starts = [start for _, (start, _) in SPLIT.pre_tokenize_str(text)]
    else:
        # str.isspace, but for four separators of records that are not white space in Unicode.
        starts = [i for i, c in enumerate(text) if c.isspace() and c not in "\x1c\x1d\x1e\x1f"]
    return {len(text[:start].encode("utf-8")) for start in starts}


def check_merges(sequences: list[BaseTokens], rule: PunctuationRule | None) -> DynamicBatch:
    """All mergers agree, nothing is lost and no unit is left or entered; to exhaustion."""
    host = merge(sequences, Budget(), rule=rule, backend="host", trace=True)
    device = merge(sequences, Budget(), rule=rule, backend="device", trace=True)
    assert_same(host, device)
    allowed = rule.allows if rule else None
    naive, merges = merge_naive(unit_lists(sequences), UNLIMITED, UNLIMITED, allowed)
    assert host.merges == [merges]
    merged = [token for s in host.sequences for token in s.tokens if isinstance(token, str)]
    assert merged == [token for unit in naive for token in unit]
    if rule is None:
        assert_same(host, merge(sequences, Budget()), merges=False)
        assert all(len(unit) == 1 for unit in naive)
    else:
        assert all(rule.allows(left, right) for left, right, _ in merges)
    assert_spans(sequences, host)
    return host


def check_budgets(
    sequences: list[BaseTokens],
    rule: PunctuationRule | None,
    exhausted: DynamicBatch,
    m: int,
    percent: float,
) -> None:
    (merges,) = exhausted.merges
    part = merge(sequences, Budget(merges=m), rule=rule, trace=True)
    assert part.merges == [merges[:m]]
    assert_spans(sequences, part)
    most = saved(sequences, exhausted)
    reduced = merge(sequences, Budget(reduction=percent), rule=rule, trace=True)
    assert_same(
        reduced,
        merge(sequences, Budget(reduction=percent), rule=rule, backend="device", trace=True),
    )
    number = len(reduced.merges[0])
    assert reduced.merges == [merges[:number]]
    goal = Fraction(percent) * most / 100  # exact: floats lose a tiny percentage
    assert saved(sequences, reduced) >= goal - Fraction(1, 10**6)
    if number:
        before = merge(sequences, Budget(merges=number - 1), rule=rule)
        assert saved(sequences, before) < goal
    if percent in (0, 100):
        assert number == (len(merges) if percent else 0)


def check_samples(sequences: list[BaseTokens], rule: PunctuationRule | None) -> None:
    """Merging each sequence by itself is merging batches of one."""
    together = merge(sequences, Budget(reduction=60), rule=rule, per_sample=True, trace=True)
    alone = [merge([s], Budget(reduction=60), rule=rule, trace=True) for s in sequences]
    assert together.merges == [batch.merges[0] for batch in alone]
    for found, batch in zip(together.sequences, alone, strict=True):
        assert found.tokens == batch.sequences[0].tokens
    if rule is None:
        device = merge(
            sequences, Budget(reduction=60), per_sample=True, trace=True, backend="device"
        )
        assert_same(together, device)


def assert_same(one: DynamicBatch, other: DynamicBatch, merges: bool = True) -> None:
    assert not merges or one.merges == other.merges
    for first, second in zip(one.sequences, other.sequences, strict=True):
        assert first.tokens == second.tokens
        np.testing.assert_array_equal(first.starts, second.starts)
        if first.word_ids is not None and second.word_ids is not None:
            np.testing.assert_array_equal(first.word_ids, second.word_ids)
        assert (first.word_ids is None) == (second.word_ids is None)


def assert_spans(sequences: list[BaseTokens], merged: DynamicBatch) -> None:
    """Each token is the base tokens of its span, which are of one unit and begin its word."""
    for base, found in zip(sequences, merged.sequences, strict=True):
        ends = [*found.starts[1:].tolist(), len(base.tokens)] if len(found.starts) else []
        assert found.starts.tolist()[:1] == [0]
        for token, start, end in zip(found.tokens, found.starts.tolist(), ends, strict=True):
            span = base.tokens[start:end]
            assert [token] == span if len(span) == 1 else token == "".join(map(str, span))
            assert len(set(base.units[start:end].tolist())) == 1
        if base.word_ids is not None:
            np.testing.assert_array_equal(found.word_ids, base.word_ids[found.starts])


def unit_lists(sequences: list[BaseTokens]) -> list[list[str]]:
    """The tokens of each unit, special ones left out."""
    lists: dict[tuple[int, int], list[str]] = {}
    for number, sequence in enumerate(sequences):
        for token, unit in zip(sequence.tokens, sequence.units.tolist(), strict=True):
            if isinstance(token, str):
                lists.setdefault((number, unit), []).append(token)
    return list(lists.values())


def saved(sequences: list[BaseTokens], merged: DynamicBatch) -> int:
    after = sum(len(sequence.tokens) for sequence in merged.sequences)
    return sum(len(sequence.tokens) for sequence in sequences) - after


@st.composite
def letter_batches(draw: st.DrawFn) -> tuple[list[list[str]], bool]:
    """Units of at most 64 tokens in all, and whether the rule for punctuation holds.

    Either any tokens of a small vocabulary, or a few words, cut into letters and again with a
    longer token in front, so that what is merged in one place is a token in another.
    """
    letters = draw(st.sampled_from(["abc", "abcd", "abcde", "ab.-", "a,.-b"]))
    if draw(st.booleans()):
        longer = st.text(letters, min_size=2, max_size=4)
        vocabulary = [*letters, *draw(st.lists(longer, min_size=2, max_size=6))]
        unit = st.lists(st.sampled_from(vocabulary), min_size=1, max_size=8)
        units = draw(st.lists(unit, min_size=1, max_size=8))
    else:
        words = draw(st.lists(st.text(letters, min_size=3, max_size=6), min_size=1, max_size=2))
        units = [list(word) for word in words]
        for word in words:
            for cut in draw(st.lists(st.integers(2, len(word) - 1), min_size=1, max_size=3)):
                before = draw(st.sampled_from(["", *letters]))
                units.append([*before, word[:cut], *word[cut:]])
        units = draw(st.permutations(units))
    return units, "." in letters and draw(st.booleans())


def test_letter_batches():
    rule = PunctuationRule([".", ",", "-", "..", ".-", "a.", ",b"])
    interrupted = 0

    @settings(common, max_examples=LETTER_BATCHES)
    @given(letter_batches(), st.integers(0, 50), st.integers(0, 50), st.floats(0, 100))
    def check(batch: tuple[list[list[str]], bool], m: int, target: int, percent: float):
        nonlocal interrupted
        units, ruled = batch
        used = rule if ruled else None
        merged, merges = merge_three_ways(units, rule=used)
        assert ["".join(unit) for unit in merged] == ["".join(unit) for unit in units]
        assert merge_three_ways(units, max_merges=m, rule=used)[1] == merges[:m]
        stopped, some = merge_three_ways(units, target_saving=target, rule=used)
        assert some == merges[: len(some)]
        assert size(units) - size(stopped) >= min(target, size(units) - size(merged))
        check_reduction(units, used, percent, size(units) - size(merged))
        counts = [count for _, _, count in merges]
        interrupted += any(a == 1 < b for a, b in pairwise(counts))

    check()
    # The case in which the tail of unique pairs is interrupted is there, often.
    assert interrupted > LETTER_BATCHES / 30


def check_reduction(units: Units, rule: PunctuationRule | None, percent: float, most: int) -> None:
    """It stops at the first merge that reaches the percentage, and not one before or after."""
    allowed = rule.allows if rule else None
    target = Budget(reduction=percent).limits(most)[1]
    reduced, merges = merge_naive(units, UNLIMITED, target, allowed)
    goal = Fraction(percent) * most / 100
    assert size(units) - size(reduced) >= goal - Fraction(1, 10**6)
    if merges:
        before, _ = merge_naive(units, len(merges) - 1, UNLIMITED, allowed)
        assert size(units) - size(before) < goal
    tokens, numbers = flat(units)
    sequence = BaseTokens(np.zeros(len(tokens), np.int32), list(tokens), numbers)
    found = merge([sequence], Budget(reduction=percent), rule=rule, trace=True)
    assert found.merges == [merges]
    kept = np.zeros(len(tokens), bool)
    kept[found.sequences[0].starts] = True
    assert cut(units, kept) == reduced


def size(units: Units) -> int:
    return sum(map(len, units))
