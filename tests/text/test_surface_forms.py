"""Surface forms against the original's, and the rules in between."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.surface_forms import surface_forms
from dyntok_jax.types import DyntokError, Token


class Letters:
    """Splits a string into its letters; the id of a letter is its place in the alphabet."""

    vocab_size = 30

    def decompose(self, token: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in token]


def test_pieces_are_cut_padded_and_counted():
    forms = surface_forms(["abc", "", 29, "a", "abcd"], Letters(), length=3, pad_id=25)
    expected = [[0, 1, 2], [25, 25, 25], [29, 25, 25], [0, 25, 25], [0, 1, 2]]
    np.testing.assert_array_equal(forms.ids, np.array(expected, np.int32))
    assert forms.ids.dtype == np.int32
    assert forms.truncated == 1


def test_no_tokens_give_no_rows():
    assert surface_forms([], Letters(), length=3, pad_id=25).ids.shape == (0, 3)


@pytest.mark.parametrize("token", ["▁hello", "東", "a b", "a\n"])
def test_a_character_outside_the_byte_alphabet_is_an_error(token: str):
    with pytest.raises(DyntokError, match="256 byte characters"):
        surface_forms([token], Letters(), length=3, pad_id=25)


@pytest.mark.parametrize("index", [-1, 30])
def test_a_special_id_outside_the_vocabulary_is_an_error(index: int):
    with pytest.raises(DyntokError, match=f"id {index}: the vocabulary has ids 0 to 29"):
        surface_forms([index], Letters(), length=3, pad_id=25)


@pytest.mark.parametrize("name", ["mistral", "xlmrlike", "focus_de"])
def test_recorded_surface_forms(shared, name: str):
    golden = shared / "golden"
    manifest = json.loads((golden / "surface_forms" / "manifest.json").read_text())
    facts = manifest["tokenizers"][name]
    with gzip.open(golden / "tokenizers" / f"{name}_byte" / "tokenizer.json.gz") as file:
        tokenizer = BaseTokenizer(json.load(file))
    with gzip.open(golden / "surface_forms" / f"tokens_{name}.json.gz") as file:
        recorded: list[str] = json.load(file)["tokens"]
    assert set(tokenizer.special_ids) == set(facts["special_tokens"])
    assert tokenizer.pad_id == facts["pad_token_id"]
    ids: dict[str, Token] = {**tokenizer.special_ids}
    tokens: list[Token] = [ids.get(token, token) for token in recorded]
    matrices = np.load(golden / "surface_forms" / "matrices.npz")
    for length in manifest["maxlens"]:
        forms = surface_forms(tokens, tokenizer, length, facts["pad_token_id"])
        np.testing.assert_array_equal(forms.ids, matrices[f"{name}_maxlen{length}"])
        assert forms.truncated == facts[f"n_truncated_{length}"]


@pytest.mark.parametrize("name", ["mistral", "xlmrlike"])
def test_recorded_exceptions(shared, name: str):
    """What the original refused is refused, what it decomposed is decomposed alike."""
    golden = shared / "golden"
    manifest = json.loads((golden / "surface_forms" / "manifest.json").read_text())
    with gzip.open(golden / "tokenizers" / f"{name}_byte" / "tokenizer.json.gz") as file:
        tokenizer = BaseTokenizer(json.load(file))
    assert tokenizer.pad_id is not None
    cases = [case for case in manifest["exceptions"] if case[0] == name]
    assert len(cases) == 4
    for _, token, outcome in cases:
        if outcome[0] == "KeyError":
            with pytest.raises(DyntokError):
                surface_forms([token], tokenizer, 7, tokenizer.pad_id)
        else:
            forms = surface_forms([token], tokenizer, 7, tokenizer.pad_id)
            np.testing.assert_array_equal(forms.ids, outcome)
