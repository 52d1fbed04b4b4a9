"""The states that a large vocabulary's rows are asked with."""

from __future__ import annotations

import numpy as np
import pytest

from dyntok_jax.dynamic_model import load
from dyntok_jax.large_vocabulary.hidden_states import hidden_states
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary, write_vocabulary
from dyntok_jax.sharding import gathered
from dyntok_jax.text.layouts import prompt_layout
from dyntok_jax.types import DyntokError

TEXTS = ["The quick fox und alle", "Großvater und die 24 Kinder", "quick quick"]


@pytest.fixture
def model(decoder):
    return load(str(decoder), "fvt")


@pytest.fixture
def large(model, tmp_path):
    write_vocabulary(tmp_path / "large", model.tokenizer, ["Ġquick", "Ġalle", "Ġund"], "tiny", {})
    return LargeVocabulary.load(tmp_path / "large", model.tokenizer)


@pytest.mark.parametrize("longest", [256, 3])
def test_they_are_those_after_the_tokens_of_each_text(model, large, longest):
    expected = []
    for text in TEXTS:
        ids = large.tokenize(prompt_layout(model.tokenizer, [text])[0])[:longest]
        ((_, (states,)),) = model.outputs([[large.tokens[i] for i in ids]], gathered, 1)
        expected.append(states[len(states) - len(ids) :])
    expected = np.concatenate(expected)
    every = hidden_states(model, large, TEXTS, 1000, longest)
    np.testing.assert_allclose(every, expected, atol=1e-5)
    some = hidden_states(model, large, TEXTS, 4, longest)
    places = [i * len(expected) // 4 for i in range(4)]
    np.testing.assert_allclose(some, expected[places], atol=1e-5)


def test_encoders_and_empty_texts_have_none(model, large, encoder):
    with pytest.raises(DyntokError, match="is an encoder"):
        hidden_states(load(str(encoder), "fvt"), large, TEXTS, 4, 8)
    with pytest.raises(DyntokError, match="without a token"):
        hidden_states(model, large, ["", ""], 4, 8)
