"""Guessed tokens, and texts that are the same with them."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_folders import decoder, folders
from written_text import DRAWN, TEXTS, prompts, written

from dyntok_jax.config import ComputeConfig, MeshConfig
from dyntok_jax.dynamic_model import load
from dyntok_jax.generate import GenerationConfig, _prepared, generate
from dyntok_jax.generation.answers import Answer
from dyntok_jax.generation.batch import _Run
from dyntok_jax.generation.lookup import guess
from dyntok_jax.text.layouts import prompt_layout
from dyntok_jax.types import DyntokError

__all__ = ["decoder", "folders", "prompts", "written"]

BEST = GenerationConfig(max_new_tokens=40, eos_bias=-1e9)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ([1, 2, 3, 9, 2, 3], [9, 2, 3]),  # the last two, before others of the last one alone
        ([2, 3, 9, 5, 3, 8, 2, 3], [9, 5, 3]),
        ([2, 3, 9, 2, 3, 8, 2, 3], [8, 2, 3]),  # their last occurrence
        ([4, 3, 8, 2, 3], [8, 2, 3]),  # the last one alone
        ([7, 5, 5], [5, 5, 5]),  # what follows is taken again
        ([1, 6, 5, 6, 5], [6, 5, 6]),
    ],
)
def test_what_followed_before_is_guessed(text, wanted):
    # What is behind a text, or stands around the corner, is not read.
    for behind in ([-1] * 4, [*text[-2:], 77, 77]):
        history = jnp.array([[*text, *behind], [0] * (len(text) + 4)])
        found = guess(history, jnp.array([len(text), 1]), 3)
        assert found[0].tolist() == wanted


def test_without_an_occurrence_any_tokens_are_guessed():
    assert guess(jnp.array([[5, 6, 7, 8]]), jnp.array([3]), 2).shape == (1, 2)


@pytest.mark.parametrize("changes", [{}, {"batch_size": 1}, {"steps_together": 3}, {"guesses": 1}])
@pytest.mark.parametrize("settings", [BEST, DRAWN], ids=["best", "drawn"])
def test_texts_are_the_same(written, prompts, settings, changes):
    changes = dict(changes)
    guesses = changes.pop("guesses", 5)
    plain = generate(written, prompts, settings)
    settings = dataclasses.replace(settings, lookup_tokens=guesses, **changes)
    assert [text.ids for text in generate(written, prompts, settings)] == [t.ids for t in plain]


def test_texts_that_end_are_the_same(written, prompts):
    settings = dataclasses.replace(BEST, max_new_tokens=60)
    free = generate(written, prompts, settings)
    # A token of each text ends it, and most others' too where they have it.
    for text in free:
        ending = dataclasses.replace(written, end_ids=(text.ids[-1], text.ids[20]))
        settings = dataclasses.replace(BEST, max_new_tokens=60, eos_bias=0)
        plain = generate(ending, prompts, settings)
        found = generate(ending, prompts, dataclasses.replace(settings, lookup_tokens=6))
        assert [t.ids for t in found] == [t.ids for t in plain]
        assert [t.finish for t in found] == [t.finish for t in plain]
        assert "end" in {t.finish for t in plain}


def test_on_a_mesh_too(decoder, prompts, written):
    mesh = ComputeConfig(mesh=MeshConfig(data=2, fsdp=2))
    split = load(str(decoder), "fvt", mesh)
    settings = dataclasses.replace(BEST, lookup_tokens=4)
    wanted = [text.ids for text in generate(written, prompts, BEST)]
    assert [text.ids for text in generate(split, prompts, settings)] == wanted


def test_a_text_that_repeats_takes_fewer_steps(written):
    prompts = prompt_layout(written.tokenizer, TEXTS[:1])
    settings = dataclasses.replace(BEST, max_new_tokens=200, steps_together=1, lookup_tokens=4)
    (text,) = generate(written, prompts, settings)
    cycle = next(n for n in range(1, 100) if text.ids[-60:-n] == text.ids[n - 60 :])
    ready = _prepared(written, prompts, settings, None, [0])
    answer = Answer.to(ready[0], written, settings, None)
    gained = []
    for tokens in _Run(written, [answer], settings, None).steps():
        answer.take(tokens[0].tolist())
        gained.append(tokens.shape[1])
    assert answer.ids == text.ids and sum(gained) == 200
    # Once it repeats itself all guesses are right; in the end there is no more to gain.
    start = next(i for i in range(200) if text.ids[i : -cycle or None] == text.ids[i + cycle :])
    steps = np.cumsum(gained)
    assert set(gained[int((steps < start + 2 * cycle).sum()) + 1 : -1]) == {5}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lookup_tokens": -1}, "lookup_tokens -1: valid is a number from 0"),
        ({"repetition_penalty": 1.2}, "repetition_penalty 1.2: valid is 1 with lookup_tokens"),
        ({"codebook": 4}, "codebook 4: valid is 0 with lookup_tokens"),
        ({"rewrite_words": 1}, "rewrite_words 1: valid is 0 with lookup_tokens"),
        ({"lookup_tokens": 5000}, "lookup_tokens 5000: valid is a number from 0 to 1024"),
    ],
)
def test_what_does_not_go_together_is_refused(written, prompts, changes, said):
    with pytest.raises(DyntokError, match=said):
        generate(written, prompts, dataclasses.replace(BEST, **{"lookup_tokens": 4} | changes))
