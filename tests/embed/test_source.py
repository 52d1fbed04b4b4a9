"""Base and FVT rows: values, special tokens, unknown tokens, memory-mapped sources."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dyntok_jax.embed.baselines import WeightedRows
from dyntok_jax.embed.source import BaseRows, FvtRows, SourceEmbeddings, map_tensor, predict_rows
from dyntok_jax.types import DyntokError


class Syllables:
    """A vocabulary of 'a', 'b', 'ab' and a token 'zz' that its own model splits otherwise."""

    def __init__(self, unk_id: int | None = 0):
        self.vocab_size = 8
        self.ids = {"a": 3, "b": 4, "ab": 5, "zz": 6}
        self.unk_id = unk_id

    def id_of(self, token: str) -> int | None:
        return self.ids.get(token)

    def decompose(self, token: str) -> list[int]:
        if token in ("a", "b", "ab"):
            return [self.ids[token]]
        return [7 if letter == "z" else self.ids[letter] for letter in token]


SOURCE = SourceEmbeddings(
    input=np.arange(14, dtype=np.float32).reshape(7, 2),
    output=-np.arange(14, dtype=np.float32).reshape(7, 2),
    bias=np.arange(7, dtype=np.float32) * 10,
)


def test_base_rows_are_the_models_own():
    rows = BaseRows(SOURCE, Syllables()).rows(["b", 1, "ab"])
    np.testing.assert_array_equal(rows.input, [[8, 9], [2, 3], [10, 11]])
    np.testing.assert_array_equal(rows.output, [[-8, -9], [-2, -3], [-10, -11]])
    np.testing.assert_array_equal(rows.bias, [40, 10, 50])


def test_base_rows_refuse_a_merged_token():
    with pytest.raises(DyntokError, match="'abb' is not in the model's vocabulary"):
        BaseRows(SOURCE, Syllables()).rows(["a", "abb"])


@pytest.mark.parametrize("provider", [BaseRows, FvtRows])
@pytest.mark.parametrize("index", [-1, 7])
def test_a_special_token_without_a_row_is_an_error(provider, index: int):
    with pytest.raises(DyntokError, match=f"id {index}: the model has rows 0 to 6"):
        provider(SOURCE, Syllables()).rows([index])


def test_fvt_rows_are_means():
    provider = FvtRows(SOURCE, Syllables())
    rows = provider.rows(["aab", 2, "ab", "bb"])
    # a = [6, 7], b = [8, 9]; "ab" is a base token and keeps its own row.
    np.testing.assert_allclose(rows.input, [[20 / 3, 23 / 3], [4, 5], [10, 11], [8, 9]], rtol=1e-6)
    assert rows.output is not None and rows.bias is not None
    np.testing.assert_allclose(rows.output, -rows.input, rtol=1e-6)
    np.testing.assert_allclose(rows.bias, [100 / 3, 20, 50, 40], rtol=1e-6)
    assert provider.unknown == 0


def test_fvt_base_tokens_keep_their_row_or_are_predicted():
    own = FvtRows(SOURCE, Syllables()).rows(["zz"])
    np.testing.assert_array_equal(own.input, [[12, 13]])
    provider = FvtRows(SOURCE, Syllables(), base_rows="predicted")
    np.testing.assert_array_equal(provider.rows(["zz", 6]).input, [[0, 1], [12, 13]])
    assert provider.unknown == 1


@pytest.mark.parametrize("kind", [FvtRows, WeightedRows])
def test_fvt_unknown_tokens_get_the_unknown_row_and_are_counted(kind, caplog):
    provider = kind(SOURCE, Syllables())
    assert len(provider.rows(["ab", "a"]).input) == 2 and not caplog.records
    rows = provider.rows(["az", "", "a"])
    np.testing.assert_array_equal(rows.input, [[0, 1], [0, 1], [6, 7]])
    assert provider.unknown == 2
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("token 'az' has no pieces with rows")


def test_fvt_without_an_unknown_token_is_an_error():
    with pytest.raises(DyntokError, match="'az' has no pieces with rows"):
        FvtRows(SOURCE, Syllables(unk_id=None)).rows(["az"])


@pytest.mark.parametrize("provider", [BaseRows, FvtRows])
def test_no_tokens_give_empty_rows(provider):
    rows = provider(SOURCE, Syllables()).rows([])
    assert [t.shape for t in rows if t is not None] == [(0, 2), (0, 2), (0,)]


def test_tied_sources_give_input_rows_only():
    rows = FvtRows(SourceEmbeddings(SOURCE.input), Syllables()).rows(["aab"])
    assert rows.output is None and rows.bias is None


@pytest.mark.parametrize("name", ["mistral", "xlmrlike"])
def test_recorded_fvt_rows(shared, byte_tokenizer, name: str):
    """All 500 recorded rows; the original decomposes special tokens' names like any string."""
    golden = shared / "golden"
    facts = json.loads((golden / "fvt_manifest.json").read_text())["tokenizers"][name]
    recorded = np.load(golden / f"fvt_{name}.npz")
    vocab_size = {"mistral": 32000, "xlmrlike": 24002}[name]
    table = np.random.RandomState(11).standard_normal((vocab_size, 16)) * 0.5
    source = SourceEmbeddings(table.astype(np.float32))
    tokenizer = byte_tokenizer(name)
    provider = FvtRows(source, tokenizer, base_rows="predicted")
    rows = provider.rows(facts["tokens"])
    np.testing.assert_allclose(rows.input, recorded["embeddings"], atol=1e-6)
    unknown = np.flatnonzero((rows.input == recorded["unk_row"]).all(axis=1))
    assert unknown.tolist() == facts["unk_row_indices"]
    # The recording also counts the unknown token itself where the vocabulary decomposes to it.
    assert provider.unknown == len(unknown) - (facts["piece_ids"][2] == [tokenizer.unk_id])
    specials = list(tokenizer.special_ids.values())
    np.testing.assert_array_equal(provider.rows(specials).input, source.input[specials])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_a_memory_mapped_source_gives_the_same_rows(tmp_path, dtype):
    table = np.random.default_rng(0).standard_normal((50, 8)).astype(dtype)
    path = tmp_path / "model.safetensors"
    save_file({"embedding": table, "ids": np.arange(3)}, path)
    mapped = map_tensor(path, "embedding")
    np.testing.assert_array_equal(mapped, table)
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
    rows = SourceEmbeddings(mapped).take([3, 49, 3])
    np.testing.assert_array_equal(rows.input, table[[3, 49, 3]].astype(np.float32))
    assert rows.input.dtype == np.float32 and not isinstance(rows.input, np.memmap)


@pytest.mark.parametrize("name", ["absent", "ids"])
def test_a_tensor_that_is_not_there_is_an_error(tmp_path, name: str):
    path = tmp_path / "model.safetensors"
    save_file({"embedding": np.zeros((2, 2), np.float32), "ids": np.arange(3)}, path)
    with pytest.raises(DyntokError, match=f"no tensor '{name}' of floats; it has embedding, ids"):
        map_tensor(path, name)


def test_predicted_rows_are_written(tmp_path):
    path = tmp_path / "rows.safetensors"
    predict_rows(["aab", 1], FvtRows(SOURCE, Syllables()), path)
    written = load_file(path)
    want = FvtRows(SOURCE, Syllables()).rows(["aab", 1])
    assert sorted(written) == ["bias", "input", "output"]
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, getattr(want, name))
    predict_rows(["aab"], FvtRows(SourceEmbeddings(SOURCE.input), Syllables()), path)
    assert sorted(load_file(path)) == ["input"]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.safetensors"]


def test_a_failing_provider_writes_nothing(tmp_path):
    with pytest.raises(DyntokError):
        predict_rows(["abb"], BaseRows(SOURCE, Syllables()), tmp_path / "rows.safetensors")
    assert not list(tmp_path.iterdir())
