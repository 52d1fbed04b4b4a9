"""The hypernetwork as a provider of rows: recorded rows, own rows, chunks, what does not fit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_hypernet import FORMS, TINY, apply, random_params, run, source_of

from dyntok_jax.cli.summary import summarize
from dyntok_jax.config import MeshConfig
from dyntok_jax.embed import hypernet_rows
from dyntok_jax.embed.cache import RowCache
from dyntok_jax.embed.hypernet import Hypernet
from dyntok_jax.embed.hypernet_rows import CHUNK_SIZES, HypernetRows, chunk_sizes
from dyntok_jax.embed.source import SourceEmbeddings
from dyntok_jax.embed.zett import load_hypernet
from dyntok_jax.sharding import compiled_forward, make_mesh
from dyntok_jax.text.byte_level import spell_bytes, to_bytes
from dyntok_jax.types import DyntokError, Rows, Token


class Digits:
    """'0' to '9' and 'a', 'b' are ids 0 to 11 (1 is padding); '55' is 5 as one token."""

    vocab_size = 12
    unk_id = None

    def id_of(self, token: str) -> int | None:
        return 5 if token == "55" else int(token, 12) if len(token) == 1 else None

    def decompose(self, token: str) -> list[int]:
        return [int(digit, 12) for digit in token]


def tokens_of(forms: np.ndarray) -> list[Token]:
    digits = "0123456789ab"
    return ["".join(digits[i] for i in form if i != 1) for form in forms]


def provider(config=TINY, **options: Any) -> HypernetRows:
    source = SourceEmbeddings.from_concatenated(source_of(config), config.separate_output)
    options = {"language": 2 if config.languages else None} | options
    return HypernetRows(config, random_params(config), source, Digits(), **options)


def test_rows_are_the_hypernetworks():
    rows = provider().rows(tokens_of(FORMS))
    for table, want in zip(rows, run(TINY, random_params(TINY), language=2), strict=True):
        assert table is not None
        np.testing.assert_allclose(table, want, atol=1e-6)
        assert isinstance(table, np.ndarray)


@pytest.mark.parametrize("base_rows", ["own", "predicted"])
def test_who_keeps_their_own_row(base_rows: Any):
    """Special tokens always; vocabulary tokens by rule; the model's bias is 0 where it has none."""
    source = source_of(TINY)
    tokens: list[Token] = ["5", 3, "567", "55"]
    rows = provider(base_rows=base_rows).rows(tokens)
    own = {1: 3} | ({0: 5, 3: 5} if base_rows == "own" else {})
    predicted = provider().rows([t for i, t in enumerate(tokens) if i not in own])
    assert rows.output is not None and rows.bias is not None
    for i, token_id in own.items():
        np.testing.assert_array_equal(rows.input[i], source[token_id, :4])
        np.testing.assert_array_equal(rows.output[i], source[token_id, 4:])
        assert rows.bias[i] == 0
    rest = [i for i in range(4) if i not in own]
    for table, want in zip(rows, predicted, strict=True):
        assert table is not None and want is not None
        np.testing.assert_allclose(table[rest], want, atol=1e-6)


def test_rows_beyond_the_vocabulary_are_nobodys_own():
    """A padded table: the tokenizer's extra tokens are predicted, special tokens still read it."""
    config = replace(TINY, separate_output=False, vocab_size=9, extra_tokens=3)
    table = np.random.default_rng(3).standard_normal((12, 4)).astype(np.float32)

    def rows_of(table: np.ndarray) -> HypernetRows:
        source = SourceEmbeddings(table)
        return HypernetRows(config, random_params(config), source, Digits(), 0, base_rows="own")

    rows = rows_of(table).rows(["8", "9", 11]).input
    np.testing.assert_array_equal(rows[[0, 2]], table[[8, 11]])
    np.testing.assert_allclose(rows[1], rows_of(table[:9]).rows(["9"]).input[0], atol=1e-6)
    assert np.abs(rows[1] - table[9]).max() > 0.1


def test_own_bias_is_kept_or_dropped():
    first, second = np.split(source_of(TINY), 2, axis=1)
    source = SourceEmbeddings(first, second, np.arange(10.0))
    params = random_params(TINY)
    rows = HypernetRows(TINY, params, source, Digits(), 0).rows([3, "3"])
    assert rows.bias is not None and rows.bias[0] == 3
    config = replace(TINY, predict_bias=False)
    rows = HypernetRows(config, random_params(config), source, Digits(), 0).rows([3, "3"])
    assert rows.bias is None


def test_many_tokens_run_in_few_programs():
    """Tokens of few different pieces and of many, that is with both sizes of table."""
    config = replace(TINY, vocab_size=250, extra_tokens=6)
    source = SourceEmbeddings.from_concatenated(source_of(config), separate=True)
    mesh = make_mesh(MeshConfig(data=1))
    rows_of = HypernetRows(config, random_params(config), source, Bytes(), 2, mesh=mesh)
    rng = np.random.default_rng(0)
    raw = rng.choice([*range(1), *range(2, 256)], (1500, 3))
    raw[:700] %= 50
    tokens: list[Token] = [spell_bytes(bytes(token.tolist())) for token in raw]
    wanted = apply(config, random_params(config), raw, raw != 1, source_of(config), 2)
    for count in (0, 1, 64, 65, 257, 1024, 1025, 1500):
        for place in (slice(count), slice(1500 - count, 1500)):
            rows = rows_of.rows(tokens[place])
            for table, want in zip(rows, wanted, strict=True):
                assert table is not None
                np.testing.assert_allclose(table, want[place], atol=1e-5)
    network: Any = Hypernet(config)
    forward: Any = compiled_forward(network, mesh, Hypernet.__call__)
    assert len(CHUNK_SIZES) < forward._cache_size() <= 2 * len(CHUNK_SIZES)


def test_little_of_what_runs_is_padding(monkeypatch: pytest.MonkeyPatch):
    ran = []

    def watched(network: Any, params: Any, source: Any, forms: Any, *rest: Any, **how: Any) -> Any:
        ran.append(len(forms))
        return forward(network, params, source, forms, *rest, **how)

    forward = hypernet_rows.forward
    monkeypatch.setattr(hypernet_rows, "forward", watched)
    rows_of = provider(mesh=make_mesh(MeshConfig(data=1)))
    rows_of.rows([f"{i:04o}" for i in range(257)])
    assert ran == [256, 64]
    for count in range(1, 5000):
        sizes = chunk_sizes(count)
        assert 0 <= sum(sizes) - count < CHUNK_SIZES[0] and {*sizes} <= {*CHUNK_SIZES}
        assert len(sizes) <= count // CHUNK_SIZES[-1] + 6 and sizes == sorted(sizes, reverse=True)


class Bytes:
    """A token's pieces are its bytes."""

    vocab_size = 256
    unk_id = None

    def id_of(self, token: str) -> int | None:
        return None

    def decompose(self, token: str) -> list[int]:
        return list(to_bytes(token))


def test_long_tokens_are_counted_and_warned_about_once(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    rows_of = provider()
    with caplog.at_level(logging.WARNING):
        cut = rows_of.rows(["2345", "234", "23456"])
        rows_of.rows(["2345"])
    assert rows_of.truncated == 3
    assert len(caplog.records) == 1 and "2 of 3 tokens" in caplog.messages[0]
    np.testing.assert_array_equal(cut.input[0], cut.input[1])
    summarize(9, 3, 1, 0, 0.5, RowCache(rows_of, 8))
    assert "3 rows of the first pieces only" in capsys.readouterr().err


def test_only_rows_in_use_are_read():
    """A table in which reading any other row fails."""
    table = source_of(TINY)

    class Guarded(np.ndarray):
        def __getitem__(self, key):
            assert not isinstance(key, np.ndarray) or set(key.tolist()) <= {1, 5, 6}
            return np.asarray(super().__getitem__(key))

    halves = (table[:, :4].view(Guarded), table[:, 4:].view(Guarded))
    rows = HypernetRows(TINY, random_params(TINY), SourceEmbeddings(*halves), Digits(), 0)
    found = rows.rows(["56", "5"])
    np.testing.assert_array_equal(found.input, provider(language=0).rows(["56", "5"]).input)


SMALL = source_of(TINY)[:9]
WIDE = np.zeros((10, 12), np.float32)
PLAIN = source_of(TINY)[:, :4]
NAMES = ["de", "en", "fr"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: provider(language=None), "no language given: .* has languages 0 to 2"),
        (lambda: provider(language=3), "language 3: .* has languages 0 to 2"),
        (lambda: provider(language=3, languages=NAMES), r"0 to 2 \(0 de, 1 en, 2 fr\)"),
        (lambda: provider(replace(TINY, languages=0), language=0), "has no languages"),
        (lambda: bound(SourceEmbeddings(PLAIN)), "reads separate output rows and the model has"),
        (lambda: bound(SourceEmbeddings.from_concatenated(SMALL, True)), "9 rows of width 4"),
        (lambda: bound(SourceEmbeddings.from_concatenated(WIDE, True)), "10 rows of width 6"),
    ],
)
def test_what_does_not_fit_is_an_error(make: Callable[[], HypernetRows], message: str):
    with pytest.raises(DyntokError, match=message):
        make()


def bound(source: SourceEmbeddings) -> HypernetRows:
    return HypernetRows(TINY, random_params(TINY), source, Digits(), 0)


def test_a_tied_hypernetwork_for_a_model_with_output_rows_is_an_error():
    config = replace(TINY, separate_output=False)
    with pytest.raises(DyntokError, match="the hypernetwork predicts none"):
        HypernetRows(config, random_params(config), SourceEmbeddings(PLAIN, PLAIN), Digits(), 0)


def test_a_tied_model_is_read_twice_where_merged_tokens_have_output_rows():
    config = replace(TINY, native=True)

    def rows_of(source: SourceEmbeddings) -> Rows:
        params = random_params(config)
        return HypernetRows(config, params, source, Digits(), 0, "own").rows(["5", 3, "567"])

    found, twice = rows_of(SourceEmbeddings(PLAIN)), rows_of(SourceEmbeddings(PLAIN, PLAIN))
    for one, other in zip(found, twice, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found.output is not None
    np.testing.assert_array_equal(found.output[:2], PLAIN[[5, 3]])
    assert np.abs(found.output[2] - found.input[2]).max() > 1e-3


def test_a_tokenizer_with_too_many_ids_is_an_error():
    config = replace(TINY, extra_tokens=1)
    with pytest.raises(DyntokError, match="gave id 11: this hypernetwork knows ids below 11"):
        provider(config).rows(["2b"])


@pytest.mark.parametrize(
    "name", ["tiny_tied_lang", "mistral_like_two_heads", "default_heads_hidden128"]
)
def test_recorded_rows_from_tokens(recorded_hypernet, byte_tokenizer, name: str):
    """The 256 recorded tokens, from strings to rows; special tokens' names are strings there."""
    recorded = recorded_hypernet(name)
    config, params = load_hypernet(recorded.folder)
    source = SourceEmbeddings.from_concatenated(recorded.source, config.separate_output)
    tokenizer = byte_tokenizer(recorded.facts["tokenizer"])
    language = 3 if config.languages else None
    rows_of = HypernetRows(config, params, source, tokenizer, language)
    tokens = recorded.facts["tokens"]
    rows = rows_of.rows(tokens)
    specials = list(tokenizer.special_ids.values())
    own = rows_of.rows(specials)
    np.testing.assert_array_equal(own.input, source.input[specials])
    # A name is decomposed like any text where the vocabulary's own model does not hold it whole.
    compared = [i for i, token in enumerate(tokens) if token not in tokenizer.special_ids]
    case = "nolang" if language is None else f"lang{language}"
    check(rows, recorded.outputs, case, compared)


def check(rows: Rows, outputs: dict[str, np.ndarray], case: str, compared: list[int]) -> None:
    for table, key in zip(rows, ("in", "out", "bias"), strict=True):
        if table is not None:
            wanted = outputs[f"{case}_{key}"][compared]
            np.testing.assert_allclose(table[compared], wanted, atol=1e-5, rtol=0)
