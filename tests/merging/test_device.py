"""The device merger, and where its closed form for the tail of unique pairs must stop."""

from __future__ import annotations

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from three_mergers import UNLIMITED, flat, merge_three_ways, on_device

from dyntok_jax.config import MeshConfig
from dyntok_jax.merging import device
from dyntok_jax.merging.device_tokens import device_tokens, padded_length, read_merges
from dyntok_jax.merging.host import merge_host
from dyntok_jax.merging.punctuation import PunctuationRule
from dyntok_jax.sharding import batch_sharding, make_mesh

# Every pair stands once at first; each merge as (left, right, count).
TAILS = {
    "no conflict": (
        ["a b c", "d e f"],
        ["a b 1", "ab c 1", "d e 1", "de f 1"],
    ),
    "a folded prefix and the next token are a pair of another unit": (
        ["a b c", "x ab c"],
        ["a b 1", "ab c 2", "x abc 1"],
    ),
    "the other pair is inside a unit": (
        ["a b c", "x ab c y"],
        ["a b 1", "ab c 2", "x abc 1", "xabc y 1"],
    ),
    "the other pair is a unit": (
        ["a b c", "ab c"],
        ["a b 1", "ab c 2"],
    ),
    "the other pair comes first and is gone by then": (
        ["x ab c", "a b c"],
        ["x ab 1", "xab c 1", "a b 1", "ab c 1"],
    ),
    "the pair overlaps itself": (
        ["x y xy xy"],
        ["x y 1", "xy xy 2", "xyxy xy 1"],
    ),
    "the pair stands further on in the same unit": (
        ["a b c d ab c"],
        ["a b 1", "ab c 2", "abc d 1", "abcd abc 1"],
    ),
    "the pair stands right behind in the same unit": (
        ["a b c ab c"],
        ["a b 1", "ab c 2", "abc abc 1"],
    ),
    "the prefix alone is a base token": (
        ["a b c", "ab", "d ab"],
        ["a b 1", "ab c 1", "d ab 1"],
    ),
    "only after two folds": (
        ["a b c d", "x abc d"],
        ["a b 1", "ab c 1", "abc d 2", "x abcd 1"],
    ),
    "in a unit that is not the first": (
        ["p q r", "a b c", "x ab c"],
        ["p q 1", "pq r 1", "a b 1", "ab c 2", "x abc 1"],
    ),
    "several conflicts": (
        ["a b c", "x ab c", "p q r", "y pq r", "s t"],
        ["a b 1", "ab c 2", "x abc 1", "p q 1", "pq r 2", "y pqr 1", "s t 1"],
    ),
    "two conflicts in one unit": (
        ["a b c d e", "x ab c", "y abcd e"],
        ["a b 1", "ab c 2", "abc d 1", "abcd e 2", "x abc 1", "y abcde 1"],
    ),
    "the conflict makes the next one": (
        ["a b c d", "x ab c", "y abc d"],
        ["a b 1", "ab c 2", "abc d 2", "x abc 1", "y abcd 1"],
    ),
    "the same bytes, cut differently": (
        ["a bc d", "ab c e", "x abc d"],
        ["a bc 1", "abc d 2", "ab c 1", "abc e 1", "x abcd 1"],
    ),
    "bytes of value zero": (
        ["Ā ĀĀ x", "ĀĀ Ā y", "z ĀĀĀ x"],
        ["Ā ĀĀ 1", "ĀĀĀ x 2", "ĀĀ Ā 1", "ĀĀĀ y 1", "z ĀĀĀx 1"],
    ),
}


@pytest.fixture(params=TAILS)
def tail(request: pytest.FixtureRequest):
    units, merges = TAILS[request.param]
    expected = [(left, right, int(count)) for left, right, count in map(str.split, merges)]
    return [unit.split() for unit in units], expected


def test_tail_of_unique_pairs(tail):
    units, expected = tail
    merged, merges = merge_three_ways(units)
    assert merges == expected
    assert merged == [["".join(unit)] for unit in units]


def test_tail_stops_at_any_number_of_merges(tail):
    units, expected = tail
    for m in range(len(expected) + 2):
        assert merge_three_ways(units, max_merges=m)[1] == expected[:m]


def test_tail_stops_at_any_saving(tail):
    units, _ = tail
    size = sum(map(len, units))
    saved = [size - sum(map(len, merge_three_ways(units, m)[0])) for m in range(size + 1)]
    for target in range(size + 1):
        merged, merges = merge_three_ways(units, target_saving=target)
        enough = [m for m in range(size + 1) if saved[m] >= target]
        # The first merge that reaches it, or all there are.
        assert len(merges) == (enough[0] if enough else len(merge_three_ways(units)[1]))
        assert size - sum(map(len, merged)) == saved[len(merges)]


def test_tail_stops_in_the_middle_of_a_unit_and_goes_on_as_if_it_had_not():
    units = [list("abcdef"), list("ghi")]
    merged, merges = merge_three_ways(units, max_merges=3)
    assert merged == [["abcd", "e", "f"], ["g", "h", "i"]]
    assert merge_three_ways(merged)[1] == merge_three_ways(units)[1][len(merges) :]


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (["a a a"], ["a a 2", "aa a 1"]),
        (["a a a a"], ["a a 3", "aa aa 1"]),
        (["a a a a a", "a a"], ["a a 5", "aa aa 1", "aaaa a 1"]),
        (["b a a a b a a"], ["a a 3", "b aa 2", "baa a 1", "baaa baa 1"]),
        # Runs that end where a unit ends do not go on in the next one.
        (["a a a", "a a a"], ["a a 4", "aa a 2"]),
        # A token equal to a base token is counted with it.
        (["a b c", "ab c", "a b"], ["a b 2", "ab c 2"]),
        (["ab c", "a b", "d ab c", "a b c"], ["ab c 2", "a b 2", "d abc 1", "ab c 1"]),
        (["x y xy xy xy"], ["xy xy 2", "x y 1", "xy xyxy 1", "xyxyxy xy 1"]),
        # Ties go to the first occurrence at that moment, not to the first ever seen: x ab, first
        # counted in front of q w, is gone there and comes back behind it.
        (
            ["x ab c", "q w", "q w", "x ab", "ab c", "ab c", "x a b", "a b", "a b"],
            ["ab c 3", "a b 3", "q w 2", "x ab 2", "x abc 1"],
        ),
        (["c d a b", "a b", "c d"], ["c d 2", "a b 2", "cd ab 1"]),
        (["x a b", "c d", "c d", "a b"], ["a b 2", "c d 2", "x ab 1"]),
        (["x y", "y x", "x y x"], ["x y 2", "y x 1", "xy x 1"]),
    ],
)
def test_overlaps_ties_and_equal_tokens(units: list[str], expected: list[str]):
    _, merges = merge_three_ways([unit.split() for unit in units])
    assert [f"{left} {right} {count}" for left, right, count in merges] == expected


def random_rows(number: int, seed: int) -> list[list[list[str]]]:
    """Rows of 64 three-letter tokens in 8 units; almost every pair stands once."""
    rng = random.Random(seed)

    def token() -> str:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=3))

    return [[[token() for _ in range(8)] for _ in range(8)] for _ in range(number)]


def test_a_false_alarm_does_not_stop_the_fold_for_good():
    """Pairs are looked up by hash; one that only seems to stand further on must not hold up a
    unit's first pair, else the loop would make no progress."""
    rows = random_rows(1024, seed=0)
    tokens = device_tokens([flat(row) for row in rows])

    def first_fold(row):
        state = device._initial(row)
        alarm = device._stands_further_on(row, state)[1]
        return alarm, device._fold_units(row, state, jnp.int32(UNLIMITED)).merges

    alarms, merges = jax.device_get(jax.jit(jax.vmap(first_fold))(tokens))
    assert alarms.any()  # else this test shows nothing
    assert (merges > 0).all()
    for i in np.flatnonzero(alarms):
        merge_three_ways(rows[i])


def test_rows_are_independent():
    rows = [[unit.split() for unit in units] for units, _ in TAILS.values()]
    merges = [(UNLIMITED, 2, UNLIMITED, 0)[i % 4] for i in range(len(rows))]
    savings = [(UNLIMITED, UNLIMITED, 2, UNLIMITED)[i % 4] for i in range(len(rows))]
    merged = on_device(rows, merges, savings)
    for i, row in enumerate(rows):
        tokens, units = flat(row)
        kept, expected = merge_host(tokens, units, merges[i], savings[i])
        assert read_merges(merged, i, tokens) == expected
        np.testing.assert_array_equal(merged.begins[i, : len(tokens)], kept)


def test_padded_lengths():
    assert [padded_length(n) for n in (0, 1, 64, 65, 96, 97, 128, 129, 4097)] == [
        *(64, 64, 64, 96, 96, 128, 128, 192, 6144),
    ]


@pytest.mark.parametrize("size", [0, 1, 2, 63, 64])
def test_a_row_may_be_full_or_empty(size: int):
    letters = random.Random(size).choices("abc", k=size)
    merged, _ = merge_three_ways([letters] if size else [])
    assert merged == ([["".join(letters)]] if size else [])


def test_many_merges_of_one_long_unit():
    letters = random.Random(5).choices("ab", k=64)
    _, merges = merge_three_ways([letters])
    assert [merge.count for merge in merges] == sorted((m.count for m in merges), reverse=True)


def test_rows_on_eight_devices_are_merged_where_they_are():
    rng = random.Random(3)
    rows = [flat([rng.choices("abc", k=rng.randint(1, 9)) for _ in range(6)]) for _ in range(16)]
    cut = batch_sharding(make_mesh(MeshConfig(data=8)))
    limits = np.full(16, UNLIMITED, np.int32)
    given = jax.device_put((device_tokens(rows), limits, limits), cut)
    merged = device.merge_device(*given)
    assert merged.begins.sharding.is_equivalent_to(cut, 2)
    for i, (tokens, units) in enumerate(rows):
        kept, _ = merge_host(tokens, units, UNLIMITED, UNLIMITED)
        np.testing.assert_array_equal(merged.begins[i, : len(tokens)], kept)


def test_hashes_tell_bytes_apart():
    """Spans with equal bytes have equal hashes however they are cut, and others do not."""
    tokens = ["Ā", "ĀĀ", "ĀĀ", "Ā", "ÿ", "a", "ab", "c", "abc", "b", "a"]
    row = jax.tree.map(lambda x: jnp.asarray(x[0]), device_tokens([flat([tokens])]))
    spans = [(i, j) for i in range(len(tokens)) for j in range(i + 1, len(tokens) + 1)]
    starts, ends = jnp.array(spans, jnp.int32).T
    hashes = [tuple(h) for h in np.asarray(device._span_hashes(row, starts, ends)).tolist()]
    texts = ["".join(tokens[i:j]) for i, j in spans]
    for column in (0, 1):  # each of the two by itself
        named = [h[column] for h in hashes]
        assert len(set(zip(texts, named, strict=True))) == len(set(texts)) == len(set(named))


def test_arithmetic_modulo_the_prime():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, device.PRIME, 2000, np.uint32)
    numbers[:4] = 0, 1, device.PRIME - 1, 2**16
    a, b = numbers, np.roll(numbers, 1)
    exact = a.astype(object) * b.astype(object) % device.PRIME
    product = np.asarray(device._multiply(jnp.asarray(a), jnp.asarray(b)))
    np.testing.assert_array_equal(product.astype(object), exact)
    exact = (a.astype(object) + b.astype(object)) % device.PRIME
    total = np.asarray(device._add(jnp.asarray(a), jnp.asarray(b)))
    np.testing.assert_array_equal(total.astype(object), exact)


@pytest.mark.parametrize("vocabulary", [[".", ",", "-", "...", "a."], [".", "--"]])
def test_punctuation_rule(vocabulary: list[str]):
    """The second vocabulary has no hyphen, which then is no punctuation token on the left."""
    rule = PunctuationRule(vocabulary)
    rng = random.Random(0)
    for _ in range(50):
        units = [
            rng.choices([".", ",", "-", "a", "b", "a."], k=rng.randint(1, 7)) for _ in range(6)
        ]
        _, merges = merge_three_ways(units, rule=rule)
        for left, right, _ in merges:
            assert left in vocabulary or right not in vocabulary or right == "-"


def test_punctuation_rule_by_hand():
    units = [["a", "-", "b", "."], [".", "."], ["a", ","]]
    rule = PunctuationRule([".", "..", "-", ","])
    merged, merges = merge_three_ways(units, rule=rule)
    assert merges == [("a", "-", 1), ("a-", "b", 1), (".", ".", 1)]
    assert merged == [["a-b", "."], [".."], ["a", ","]]
    without_hyphen = PunctuationRule([".", ","])
    assert without_hyphen.allows("a", "-") and not without_hyphen.allows("-", ".")
    merged, _ = merge_three_ways([["-", "."], ["a", "-"]], rule=without_hyphen)
    assert merged == [["-", "."], ["a-"]]
