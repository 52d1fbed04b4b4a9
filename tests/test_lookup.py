"""Drafts, what of them is accepted, and texts that are the same with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_folders import decoder, folders
from written_text import prompts, written

from dyntok_jax.config import ComputeConfig, MeshConfig
from dyntok_jax.dynamic_model import DynamicModel, load
from dyntok_jax.generate import GenerationConfig, generate
from dyntok_jax.generation import lookup
from dyntok_jax.generation.lookup import History, accept
from dyntok_jax.types import DyntokError

__all__ = ["decoder", "folders", "prompts", "written"]

BEST = GenerationConfig(max_new_tokens=40, eos_bias=-1e9)
DRAWN = GenerationConfig(max_new_tokens=60, temperature=4.0, top_k=2, seed=1, eos_bias=-1e9)
"""Texts that vary, and repeat what they said."""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ([1, 2, 3, 9, 2, 3], [9, 2, 3]),  # the last two, before others of the last one alone
        ([2, 3, 9, 5, 3, 8, 2, 3], [9, 5, 3]),
        ([2, 3, 9, 2, 3, 8, 2, 3], [8, 2, 3]),  # their last occurrence
        ([4, 3, 8, 2, 3], [8, 2, 3]),  # the last one alone
        ([3, 9, 3, 8, 2, 3], [8, 2, 3]),
        ([7, 5, 5], [5, 5, 5]),  # what follows is taken again
        ([1, 6, 5, 6, 5], [6, 5, 6]),
    ],
)
@pytest.mark.parametrize("prompt", [0, 1])
def test_drafts_are_what_followed_before(text, wanted, prompt):
    # What is behind a text is not read, nor taken for what stands before it.
    for behind in ([-1] * 4, [*text[-2:], 77, text[-2]]):
        tokens = jnp.array([[*text, *behind], [5] * (len(text) + 4)])
        history = History(tokens, jnp.array([prompt, 0]))
        assert history.draft(jnp.int32(len(text) - prompt), 3)[0].tolist() == wanted


def test_new_tokens_stand_behind_those_chosen():
    history = History(jnp.array([[1, 2, 3, 0, 0, 0], [4, 5, 0, 0, 0, 0]]), jnp.array([2, 1]))
    found = history.followed_by(jnp.array([[7, 8], [9, -1]]), jnp.int32(1))
    assert found.tokens.tolist() == [[1, 2, 3, 7, 8, 0], [4, 5, 9, -1, 0, 0]]


@pytest.mark.parametrize(
    ("drafts", "best", "active", "most", "count", "tokens", "goes_on"),
    [
        # All right, some, none: one more than right.
        ([[1, 2]], [[1, 2, 3]], [True], 9, 3, [[1, 2, 3]], [True]),
        ([[1, 2]], [[1, 5, 3]], [True], 9, 2, [[1, 5, 3]], [True]),
        ([[1, 2]], [[4, 2, 3]], [True], 9, 1, [[4, 2, 3]], [True]),
        ([[1, 2]], [[1, 2, 3]], [True], 2, 2, [[1, 2, 3]], [True]),
        # A batch goes on by what is right in all; texts that had ended hold up nobody.
        ([[1, 2], [1, 2]], [[1, 2, 3], [1, 6, 7]], [True] * 2, 9, 2, None, [True] * 2),
        ([[1, 2], [1, 2]], [[1, 2, 3], [5, 6, 7]], [True, False], 9, 3,
         [[1, 2, 3], [-1] * 3], [True, False]),
        # Nor do those that end here, which an end in tokens that are void does not.
        ([[1, 2], [3, 3]], [[1, 2, 3], [0, 6, 7]], [True] * 2, 9, 3,
         [[1, 2, 3], [0, -1, -1]], [True, False]),
        ([[1, 2], [3, 3]], [[1, 2, 3], [4, 0, 7]], [True] * 2, 9, 1, None, [True] * 2),
        ([[1, 2], [4, 3]], [[1, 5, 3], [4, 3, 0]], [True] * 2, 9, 2, None, [True] * 2),
        ([[1, 2]], [[1, 0, 3]], [True], 1, 1, None, [True]),
    ],
)  # fmt: skip
def test_what_is_accepted(drafts, best, active, most, count, tokens, goes_on):
    drafts, best, active = jnp.array(drafts), jnp.array(best), jnp.array(active)
    found = accept(drafts, best, active, jnp.array([0, 99]), most)
    assert int(found.count) == count
    assert tokens is None or found.tokens.tolist() == tokens
    assert found.active.tolist() == goes_on


@pytest.fixture
def gained(monkeypatch) -> Iterator[list[int]]:
    """Tokens of each call of the loop, which with ``steps_together`` of 1 are those of a step."""
    counts: list[int] = []
    several = lookup.several

    def watched(*args, **how):
        state, history = args[4:6]
        last = history.tokens[np.arange(len(state.token)), history.prompt + state.count - 1]
        assert np.array_equal(last[state.active], state.token[state.active])
        found = several(*args, **how)
        counts.append(int(found[-1]))
        return found

    monkeypatch.setattr(lookup, "several", watched)
    yield counts


def same_texts(model: DynamicModel, prompts, settings: GenerationConfig, **changes) -> None:
    plain = generate(model, prompts, settings)
    found = generate(model, prompts, dataclasses.replace(settings, lookup_tokens=4, **changes))
    assert [text.ids for text in found] == [text.ids for text in plain]
    assert [text.finish for text in found] == [text.finish for text in plain]
    assert [text.text for text in found] == [text.text for text in plain]


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("settings", [BEST, DRAWN], ids=["best", "drawn"])
def test_texts_are_the_same(written, prompts, settings, size, gained):
    same_texts(written, prompts[:size], settings, steps_together=1)
    assert max(gained) == 5
    if settings is DRAWN:
        assert {1, 2} <= set(gained)


@pytest.mark.parametrize("changes", [{}, {"batch_size": 1}, {"steps_together": 7}])
def test_so_they_are_however_they_are_batched(written, prompts, changes):
    same_texts(written, prompts, DRAWN, **changes)


def test_so_they_are_where_they_end_at_different_places(written, prompts):
    settings = dataclasses.replace(DRAWN, top_k=3, eos_bias=0)
    free = generate(written, prompts, settings)

    def late(ids: list[int]) -> int:
        return next(i for place, i in enumerate(ids) if place >= 9 and ids.index(i) == place)

    ending = dataclasses.replace(written, end_ids=(late(free[0].ids), late(free[2].ids)))
    lengths = [len(text.ids) for text in generate(ending, prompts, settings)]
    assert len(set(lengths)) >= 3 and min(lengths) >= 9
    same_texts(ending, prompts, settings)
    same_texts(ending, prompts, settings, steps_together=1)


def test_so_they_are_with_stop_strings_and_streams(written, prompts):
    (free,) = generate(written, prompts[:1], DRAWN)
    text = free.text
    stop = next(text[i : i + 9] for i in range(20, 90) if text.index(text[i : i + 9]) == i)
    settings = dataclasses.replace(DRAWN, stop=(stop,))
    same_texts(written, prompts, settings)
    parts: list[str] = []
    settings = dataclasses.replace(settings, lookup_tokens=4, steps_together=1)
    (text,) = generate(written, prompts[:1], settings, on_text=lambda place, new: parts.append(new))
    assert text.finish == "stop" and "".join(parts) == text.text and len(parts) > 1


def test_so_they_are_on_a_mesh(decoder, prompts, written, gained):
    mesh = ComputeConfig(mesh=MeshConfig(data=2, fsdp=2))
    split = load(str(decoder), "fvt", mesh)
    settings = dataclasses.replace(DRAWN, lookup_tokens=4)
    wanted = [text.ids for text in generate(written, prompts[:1], DRAWN)]
    # Three of four sequences are empty.
    assert [text.ids for text in generate(split, prompts[:1], settings)] == wanted
    assert sum(gained) == DRAWN.max_new_tokens - 1


@pytest.mark.parametrize("new", [1, 2, 3, 8])
def test_drafts_are_no_longer_than_what_is_left(written, prompts, new, gained):
    settings = dataclasses.replace(BEST, max_new_tokens=new, lookup_tokens=10**6)
    plain = generate(written, prompts, dataclasses.replace(settings, lookup_tokens=0))
    found = generate(written, prompts, settings)
    assert [text.ids for text in found] == [text.ids for text in plain]
    assert sum(gained) == (0 if new < 3 else new - 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lookup_tokens": -1}, "lookup_tokens -1: valid is a number from 0"),
        ({"repetition_penalty": 1.2}, "repetition_penalty 1.2: valid is 1 with lookup_tokens"),
        ({"codebook": 4}, "codebook 4: valid is 0 with lookup_tokens"),
        ({"rewrite_words": 1}, "rewrite_words 1: valid is 0 with lookup_tokens"),
    ],
)
def test_what_does_not_go_together_is_refused(written, prompts, changes, said):
    with pytest.raises(DyntokError, match=said):
        generate(written, prompts, dataclasses.replace(BEST, **{"lookup_tokens": 4} | changes))
