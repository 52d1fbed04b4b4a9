import gzip
import json
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import SPLIT
from dyntok_jax.text.byte_level import CHAR_TO_BYTE, to_byte_chars
from dyntok_jax.text.layouts import BaseTokens, prompt_layout, text_layout
from dyntok_jax.text.longest_prefix import LongestPrefix
from dyntok_jax.types import DyntokError


def naive(ids, unit):
    """The definition: at each place the longest token that stands there."""
    found = []
    while unit:
        longest = max((t for t in ids if t and unit.startswith(t)), key=len, default=None)
        if longest is None:
            return None
        found.append(ids[longest])
        unit = unit[len(longest) :]
    return tuple(found)


@given(
    st.sets(st.text("abÃ", max_size=5), max_size=12),
    st.lists(st.text("abcÃ", max_size=12), max_size=5),
)
def test_it_is_greedy_at_every_place(tokens, units):
    ids = {token: 7 + i for i, token in enumerate(sorted(tokens))}
    tokenizer = LongestPrefix(ids)
    for unit in units:
        assert tokenizer.split(unit) == naive(ids, unit)


def sequence(*units, specials=()):
    """Base tokens of one byte each, with their bytes as ids, and a special token behind each."""
    tokens, numbers = [], []
    for i, unit in enumerate(units):
        tokens += [*unit, *specials]
        numbers += [i * 9] * len(unit) + [i * 9 + 1 + n for n in range(len(specials))]
    ids = [t if isinstance(t, int) else ord(t) for t in tokens]
    return BaseTokens(np.array(ids, np.int32), tokens, np.array(numbers, np.int32))


def test_units_are_not_crossed_and_special_tokens_stay():
    tokenizer = LongestPrefix({"ab": 500, "abba": 501, "a": 97, "b": 98, "bab": 502})
    base = sequence("ab", "ba", "abbab", "x", specials=[3, 4])
    assert tokenizer.tokenize(base) == [500, 3, 4, 98, 97, 3, 4, 501, 98, 3, 4, 120, 3, 4]
    assert tokenizer.tokenize(sequence("ab", "ba")) == [500, 98, 97]
    assert tokenizer.tokenize(sequence()) == []


def test_a_unit_with_an_unknown_byte_keeps_its_base_tokens():
    tokenizer = LongestPrefix({"ab": 500, "a": 97, "b": 98})
    assert tokenizer.tokenize(sequence("abcab", "ab")) == [97, 98, 99, 97, 98, 500]


def test_characters_that_are_no_bytes_are_refused():
    with pytest.raises(DyntokError, match="byte characters"):
        LongestPrefix({"a b": 1})


def test_the_time_grows_with_the_length_of_a_unit():
    tokenizer = LongestPrefix({**{"a" * n: n for n in range(1, 40)}, "b": 99})

    def seconds(length):
        times = []
        for trial in range(3):
            unit = "a" * (length + trial) + "b"
            start = time.process_time()
            ids = tokenizer.split(unit)
            times.append(time.process_time() - start)
            assert ids is not None and sum(ids) == length + trial + 99
        return min(times)

    # Quadratic time would be 64 times as long.
    assert seconds(160_000) < 24 * seconds(20_000)


GOLDEN = {
    "expanded_mistral": None,
    "base_mistral": "mistral_byte",
    "base_xlmrlike": "xlmrlike_byte",
}
LONGEST_THERE = 100  # bytes of a pre-token; longer ones are unknown in the recorded files
SPECIALS = {"<s>": 0, "</s>": 1, "<unk>": 2}  # that the expanded tokenizer finds in texts


@pytest.fixture(scope="module")
def recorded(shared):
    folder = shared / "golden" / "longest_prefix"
    return {
        name: json.loads(gzip.decompress((folder / f"{name}.json.gz").read_bytes()))
        for name in ("goldens", "expanded_vocab")
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_recorded_tokens(name, recorded, shared):
    folder = GOLDEN[name]
    if folder is None:
        vocabulary = recorded["expanded_vocab"]
    else:
        path = shared / "golden" / "tokenizers" / folder / "tokenizer.json.gz"
        vocabulary = json.loads(gzip.decompress(path.read_bytes()))["model"]["vocab"]
        if isinstance(vocabulary, list):
            vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
    vocabulary = {t: i for t, i in vocabulary.items() if t and set(t) <= CHAR_TO_BYTE.keys()}
    tokenizer, specials = LongestPrefix(vocabulary), SPECIALS if folder is None else {}
    longer = 0
    for _, text, _, ids in recorded["goldens"][name]:
        expected = iter(ids)
        for unit in original_pretokens(text, specials):
            if unit in specials:
                assert next(expected) == specials[unit]
                continue
            found = tokenizer.split(unit)
            assert found is not None and found == naive_by_lengths(vocabulary, unit)
            if len(unit) > LONGEST_THERE:
                longer += 1
                assert next(expected) in range(4)
            else:
                assert list(found) == [next(expected) for _ in found]
        assert list(expected) == []
    assert longer == 43


def original_pretokens(text, specials):
    """Pre-tokens as the original cuts a text, a space before each stretch of it."""
    for part in re.split("(" + "|".join(specials) + ")", text) if specials else [text]:
        if part in specials:
            yield part
        elif part:
            yield from (to_byte_chars(unit) for unit, _ in SPLIT.pre_tokenize_str(" " + part))


def naive_by_lengths(ids, unit):
    found, start = [], 0
    while start < len(unit):
        end = next(e for e in range(len(unit), start, -1) if unit[start:e] in ids)
        found.append(ids[unit[start:end]])
        start = end
    return tuple(found)


@pytest.mark.parametrize("family", ["byte_bpe", "fallback_bpe", "unigram"])
def test_layouts_are_as_they_are_for_merging(family, tiny_tokenizers):
    tokenizer = BaseTokenizer(*tiny_tokenizers[family])
    texts = ["The quick dog, the lazy fox 1999!", "Großvater erzählte über Länder", ""]
    if family == "byte_bpe":  # which knows all bytes
        texts.append("a  line\n\nand </s>")
    spelled = tokenizer.spelled()
    own = {token: i for i, token in spelled.items()}
    # A whole pre-token, and a token that goes on over a boundary.
    more = {"Ġquick": 9000, "ĠGroÃŁvater": 9001, "quickĠdog": 9002, "ĠdogĠ": 9003}
    longest = LongestPrefix(own | more)
    every = spelled | {i: t for t, i in more.items()}
    for layout in (text_layout, prompt_layout):
        for base in layout(tokenizer, texts):
            ids = longest.tokenize(base)
            text = "".join(every[i] for i in ids if i in every)
            assert text == "".join(t for t in base.tokens if isinstance(t, str))
            specials = [t for t in base.tokens if isinstance(t, int)]
            assert [i for i in ids if i not in every] == specials
    ids = longest.tokenize(text_layout(tokenizer, texts[:1])[0])
    assert 9002 not in ids and 9003 not in ids
    # That family's base tokens themselves go over boundaries.
    assert 9000 in ids or family == "fallback_bpe"
