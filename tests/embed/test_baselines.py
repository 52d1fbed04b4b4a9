"""Weighted and ridge rows on made-up tables: values, and what they share with FVT."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from dyntok_jax.embed import baselines
from dyntok_jax.embed.baselines import RidgeRows, WeightedRows
from dyntok_jax.embed.providers import row_provider
from dyntok_jax.embed.source import FvtRows, SourceEmbeddings
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import DyntokError

LETTERS = "abcdefghij"


class Words:
    """A vocabulary of <unk>, ten letters and words of up to three of them.

    Its model splits every string into letters.
    """

    def __init__(self):
        words = ["".join(word) for n in (1, 2, 3) for word in product(LETTERS, repeat=n)]
        self.ids = {word: i + 1 for i, word in enumerate(words)}
        self.vocab_size = len(self.ids) + 1
        self.unk_id = 0

    def vocabulary(self) -> list[str]:
        return list(self.ids)

    def id_of(self, token: str) -> int | None:
        return self.ids.get(token)

    def decompose(self, token: str) -> list[int]:
        return [self.ids.get(letter, 0) for letter in token]


WORDS = Words()
WIDTH = 4


def rows_of(*tokens: str, table: np.ndarray) -> np.ndarray:
    return table[[WORDS.ids[token] for token in tokens]]


def linear_table(rng: np.random.Generator, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows in which those of words are a linear map of their letters' rows, and the map."""
    table = rng.standard_normal((WORDS.vocab_size, WIDTH)).astype(np.float32)
    fitted = rng.standard_normal((3 * WIDTH + 1, WIDTH)).astype(np.float32)
    for word, i in WORDS.ids.items():
        if len(word) > 1:
            form = baselines._split(word, i, WORDS)
            table[i] = baselines.predicted(table[None, form], fitted)[0]
    return table + noise * rng.standard_normal(table.shape).astype(np.float32), fitted


def test_weighted_rows_lean_to_the_last_piece():
    table = np.random.default_rng(0).standard_normal((WORDS.vocab_size, WIDTH)).astype(np.float32)
    bias = np.arange(WORDS.vocab_size, dtype=np.float32)
    rows = WeightedRows(SourceEmbeddings(table, 2 * table, bias), WORDS).rows(["abcd", 7, "ab"])
    pieces = rows_of("a", "b", "c", "d", table=table)
    expected = (pieces[0] + 2 * pieces[1] + 3 * pieces[2] + 4 * pieces[3]) / 10
    np.testing.assert_allclose(rows.input[0], expected, rtol=1e-5)
    assert rows.output is not None and rows.bias is not None
    np.testing.assert_allclose(rows.output, 2 * rows.input, rtol=1e-5)
    np.testing.assert_array_equal(rows.input[1:], table[[7, WORDS.ids["ab"]]])
    np.testing.assert_allclose(rows.bias, [(1 + 4 + 9 + 16) / 10, 7, WORDS.ids["ab"]])


def test_the_regression_recovers_a_linear_map():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((500, 3 * WIDTH)).astype(np.float32)
    expected = rng.standard_normal((3 * WIDTH + 1, WIDTH)).astype(np.float32)
    own = inputs[:, WIDTH : 2 * WIDTH] + inputs @ expected[:-1] + expected[-1]
    np.testing.assert_allclose(baselines.fit(inputs, own, 0.0), expected, atol=1e-4)
    heavy = baselines.fit(inputs, own, 1e9)
    np.testing.assert_allclose(heavy[:-1], 0, atol=1e-4)


def test_ridge_rows_follow_the_vocabulary():
    table, expected = linear_table(np.random.default_rng(0))
    provider = RidgeRows(SourceEmbeddings(table), WORDS, penalty=1e-9)
    rows = provider.rows(["abc", 3, "abcd", "jihgfedcba"]).input
    np.testing.assert_array_equal(rows[:2], table[[WORDS.ids["abc"], 3]])
    for row, token in zip(rows[2:], ("abcd", "jihgfedcba"), strict=True):
        letters = rows_of(*token, table=table)[None]
        np.testing.assert_allclose(row, baselines.predicted(letters, expected)[0], atol=1e-3)


def test_under_a_large_penalty_ridge_rows_are_shifted_means():
    table, _ = linear_table(np.random.default_rng(0), noise=0.1)
    source = SourceEmbeddings(table)
    tokens = ["abcd", "jihgf", "ajajaj"]
    fvt = FvtRows(source, WORDS).rows(tokens).input
    beyond = RidgeRows(source, WORDS, penalty=1e9).rows(tokens).input - fvt
    np.testing.assert_allclose(beyond, np.broadcast_to(beyond[0], beyond.shape), atol=1e-4)


def test_ridge_rows_of_every_table():
    table, _ = linear_table(np.random.default_rng(0), noise=0.1)
    bias = table[:, 0].copy()
    provider = RidgeRows(SourceEmbeddings(table, -table, bias), WORDS)
    rows = provider.rows(["abcd", "ab"])
    np.testing.assert_allclose(-np.asarray(rows.output), rows.input, atol=1e-4)
    assert (
        rows.bias is not None and rows.bias.shape == (2,) and rows.bias[1] == bias[WORDS.ids["ab"]]
    )
    assert provider.rows([]).input.shape == (0, WIDTH)


def test_words_are_cut_between_characters_and_behind_their_first_letter():
    class Recorder(Words):
        def decompose(self, token: str) -> list[int]:
            seen.append(token)
            return [1]

    seen: list[str] = []
    for rank in range(6):
        # Two characters of two bytes and one of one, behind a space.
        assert baselines._split("ĠÃ¤Ã¶a", rank, Recorder()) == [1, 1]
    parts = set(zip(seen[::2], seen[1::2], strict=True))
    assert parts == {("ĠÃ¤", "Ã¶a"), ("ĠÃ¤Ã¶", "a")}
    assert baselines._split("a", 0, WORDS) is None and baselines._split("Ġa", 0, WORDS) is None


@pytest.mark.parametrize("name", ["weighted", "ridge"])
def test_they_can_be_had_by_name(name: str, tiny_tokenizers):
    tokenizer = BaseTokenizer(*tiny_tokenizers["byte_bpe"])
    table = np.random.default_rng(0).standard_normal((tokenizer.vocab_size, 8)).astype(np.float32)
    source = SourceEmbeddings(table)
    provider = row_provider(name, lambda _: source, tokenizer)
    tokens = ["Ġdogs", "Ġlighthousesxyz"]
    assert not np.allclose(
        provider.rows(tokens).input, FvtRows(source, tokenizer).rows(tokens).input
    )
    with pytest.raises(DyntokError, match=f"{name} rows have none"):
        row_provider(name, lambda _: source, tokenizer, language=1)


def test_base_rows_leave_no_choice(tiny_tokenizers):
    tokenizer = BaseTokenizer(*tiny_tokenizers["byte_bpe"])
    source = SourceEmbeddings(np.ones((tokenizer.vocab_size, 8), np.float32))
    assert row_provider("base", lambda _: source, tokenizer).rows([0]).input.shape == (1, 8)
    with pytest.raises(DyntokError, match="base_rows: own is nothing to base rows"):
        row_provider("base", lambda _: source, tokenizer, base_rows="own")
