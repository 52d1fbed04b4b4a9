"""Indexes by name, and generation through each of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dyntok_jax.dynamic_model import load
from dyntok_jax.embed.source import FvtRows
from dyntok_jax.generate import GenerationConfig, generate
from dyntok_jax.generation.opening import open_vocabulary
from dyntok_jax.large_vocabulary.opening import open_index
from dyntok_jax.large_vocabulary.scann_index import ScannSettings, build_index
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary, write_vocabulary
from dyntok_jax.text.layouts import prompt_layout
from dyntok_jax.types import DyntokError

NEW = ["Ġquick", "ĠGroÃŁ", "Ġalle", "Ġund"]


@pytest.fixture
def large(decoder, tmp_path):
    """A tiny vocabulary with rows, and its model."""
    model = load(str(decoder), "fvt")
    write_vocabulary(tmp_path / "large", model.tokenizer, NEW, "tiny", {})
    found = LargeVocabulary.load(tmp_path / "large", model.tokenizer)
    found.rows_file.predict(found.row_tokens, FvtRows(model.source, model.tokenizer), {})
    return found, model


def test_exact_ones(large):
    vocabulary, model = large
    rows = vocabulary.rows().input
    hidden = np.random.default_rng(0).standard_normal((3, rows.shape[1])).astype(np.float32)
    logits = hidden @ rows.T
    for name, scores in (
        ("exact", logits),
        ("exact-cosine", logits / np.linalg.norm(rows, axis=1)),
    ):
        found = open_index(name, vocabulary, model).search(hidden, 1)
        np.testing.assert_array_equal(np.asarray(found.ids)[:, 0], scores.argmax(axis=1))


def test_another_name(large):
    vocabulary, model = large
    with pytest.raises(DyntokError, match="valid: exact, exact-cosine, a ScaNN index's folder"):
        open_index("exact-cosin", vocabulary, model)


def test_control_tokens_are_found_by_any_search(large, tmp_path):
    pytest.importorskip("scann", reason="ScaNN is for Linux only")
    vocabulary, model = large
    settings = ScannSettings(20, 1, 1000, 2, reorder=1)
    build_index(tmp_path / "index", vocabulary.rows(), settings, vocabulary.made_for)
    ends = 7  # no special token, as in tokenizers that declare none
    assert 7 not in model.tokenizer.special_ids.values()
    model = replace(model, end_ids=(ends,))
    index = open_index(str(tmp_path / "index"), vocabulary, model)
    special = {*model.tokenizer.special_ids.values(), ends}
    hidden = vocabulary.rows().input[:20].astype(np.float32)
    found = index.search(hidden, index.size).ids
    assert len(special) > 1 and all(special <= set(ids) for ids in found)
    assert (found == -1).any()  # one of the leaves is not the whole vocabulary


def test_texts_by_a_scann_index_are_those_of_the_exact_one(large, tmp_path):
    pytest.importorskip("scann", reason="ScaNN is for Linux only")
    vocabulary, model = large
    size = len(vocabulary.tokens)
    settings = ScannSettings(20, 20, 1000, 2, reorder=size)
    build_index(tmp_path / "index", vocabulary.rows(), settings, vocabulary.made_for)
    prompts = prompt_layout(model.tokenizer, ["The quick fox", "und alle Kinder"])
    how = GenerationConfig(max_new_tokens=12, reduction=None)
    exact, scann = (
        generate(model, prompts, how, open_vocabulary(vocabulary.folder, model, index))
        for index in ("exact", str(tmp_path / "index"))
    )
    assert [text.ids for text in scann] == [text.ids for text in exact]
    assert len({i for text in exact for i in text.ids}) > 1
