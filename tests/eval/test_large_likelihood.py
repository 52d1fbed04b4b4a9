"""Bits under a large vocabulary against a softmax over all of it at once, and the command."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyntok_jax.dynamic_model import load
from dyntok_jax.embed.source import FvtRows
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary, write_vocabulary
from dyntok_jax.types import Rows
from eval import large_likelihood

NEW = ["Ġquick", "ĠGroÃŁ", "Ġalle", "Ġund"]
TEXT = "The quick fox und alle Kinder\nund der quick fox\n" * 12


@pytest.fixture
def large(decoder, tmp_path):
    """A tiny vocabulary whose stored rows are half the FVT rows, and its model."""
    model = load(str(decoder), "fvt")
    write_vocabulary(tmp_path / "large", model.tokenizer, NEW, "tiny", {})
    found = LargeVocabulary.load(tmp_path / "large", model.tokenizer)
    provider = FvtRows(model.source, model.tokenizer)

    class Half:
        def rows(self, tokens):
            return Rows(provider.rows(tokens).input / 2)

    found.rows_file.predict(found.row_tokens, Half(), {"model": str(decoder)})
    return found, model


def test_bits_are_of_a_softmax_over_all_tokens(large):
    vocabulary, model = large
    new = range(vocabulary.base_size, len(vocabulary.tokens))
    prefixes, following = [[5, 6, 7], [8]], [[new[0], 9], [4, new[3], new[1], new[0]]]
    for name in ("fvt", "stored"):
        rows = large_likelihood.rows_of(name, vocabulary, model)
        found = large_likelihood.large_bits(model, rows, prefixes, following, len(new) + new[0])
        table = rows(np.arange(len(vocabulary.tokens))).input
        expected = []
        for prefix, ids in zip(prefixes, following, strict=True):
            embeddings = jnp.asarray(table[[*prefix, *ids]][None])
            mask = jnp.ones(embeddings.shape[:2], bool)
            hidden = model.module.apply({"params": model.params}, embeddings, mask)
            (hidden,) = np.asarray(hidden)
            scores = jax.nn.log_softmax(hidden[len(prefix) - 1 : -1] @ table.T, axis=-1)
            expected.append(-scores[np.arange(len(ids)), np.array(ids)].sum() / np.log(2))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("block", [3, 7, 10_000])
def test_sums_over_blocks_are_the_sum(block, monkeypatch):
    rng = np.random.default_rng(0)
    hidden, output = rng.standard_normal((5, 4), np.float32), rng.standard_normal((21, 4)) * 9
    output, bias = output.astype(np.float32), np.arange(21, dtype=np.float32)
    rows = Rows(np.zeros_like(output), output, bias)
    monkeypatch.setattr(large_likelihood, "TOGETHER", 2)

    def of(ids):
        return jax.tree.map(lambda table: table[ids], rows)

    found = large_likelihood._log_sums(hidden, of, 21, block)
    expected = jax.nn.logsumexp(hidden @ output.T + bias, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_command(large, decoder, tmp_path, command):
    (tmp_path / "en.txt").write_text(TEXT, "utf-8")
    run = command(
        large_likelihood.main,
        *("--model", decoder, "--vocabulary", tmp_path / "large", "--text", tmp_path / "en.txt"),
        *("--windows", 4, "--prefix-tokens", 8, "--continuation-tokens", 12),
        *("--out", tmp_path / "out.json"),
    )
    assert run.code == 0, run.err
    found = json.loads((tmp_path / "out.json").read_text())
    (part,) = found["files"].values()
    assert found["size"] == len(large[0].tokens) and part["tokens_static"] == 48
    assert part["tokens_large"] < 48 and list(part["rows"]) == ["fvt", "stored"]
    fvt, stored = part["rows"].values()
    above = 100 * (fvt["bits_per_byte"] / part["static_bits_per_byte"] - 1)
    assert fvt["above_static_percent"] == pytest.approx(above)
    assert fvt["bits_per_byte"] != stored["bits_per_byte"] and "gap_closed" in stored
    for name, row in part["rows"].items():
        above = f"{row['above_static_percent']:+.1f} %"
        said = f" {name} {part['tokens_large']} {row['bits_per_byte']:.3f} {above}"
        assert said in run.shown


def test_mistakes_are_one_line(large, decoder, tmp_path, command):
    (tmp_path / "en.txt").write_text(TEXT, "utf-8")
    given = ("--model", decoder, "--vocabulary", tmp_path / "large", "--text", tmp_path / "en.txt")
    out = ("--out", tmp_path / "out.json")
    for more, said in (
        (("--rows", "fvd"), "rows 'fvd': no such folder"),
        (("--windows", 9999), "9999 are asked for"),
        (("--prefix-tokens", 2000, "--windows", 1), "2064"),
    ):
        run = command(large_likelihood.main, *given, *more, *out)
        assert run.code == 2 and said in run.err and run.err.count("\n") == 1, run.err
