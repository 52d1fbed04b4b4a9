"""Words that a decoder has finished, merged in its cache."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from tiny_folders import decoder, folders
from written_text import DRAWN, last_hidden, prompts, written

from dyntok_jax.generate import generate
from dyntok_jax.generation import programs
from dyntok_jax.generation.rewriting import rewritten, word_lengths
from dyntok_jax.merging.budget import Budget
from dyntok_jax.text.boundaries import Boundary

__all__ = ["decoder", "folders", "prompts", "written"]


def test_finished_words_are_merged_in_the_cache(written, prompts):
    settings = dataclasses.replace(DRAWN, steps_together=3, max_new_tokens=24)
    plain = generate(written, prompts, settings)
    texts = generate(written, prompts, dataclasses.replace(settings, rewrite_words=1))
    saved = [
        before.kv_cache["dynamic"] - after.kv_cache["dynamic"]
        for before, after in zip(plain, texts, strict=True)
    ]
    assert max(saved) > 0 and min(saved) >= 0
    # Until the first word is finished nothing differs.
    assert [text.ids[:2] for text in texts] == [text.ids[:2] for text in plain]
    assert [text.kv_cache["static"] for text in texts] == [t.kv_cache["static"] for t in plain]


def test_a_rewritten_cache_is_that_of_the_merged_text(written, prompts, monkeypatch):
    settings = dataclasses.replace(
        DRAWN, max_new_tokens=24, kept_words=0, steps_together=1, reduction=100, rewrite_words=1
    )
    read: list[np.ndarray] = []
    several = programs.several

    def watched(
        params: Any, rows: Any, search: Any, rules: Any, state: Any, *args: Any, **how: Any
    ):
        inputs = rows[state.token][:, None], state.cache, state.length, None, 0
        hidden, _ = programs.read_beside(params, *inputs, how["module"], how["mesh"])
        read.append(np.asarray(hidden[:, 0]))
        return several(params, rows, search, rules, state, *args, **how)

    monkeypatch.setattr(programs, "several", watched)
    texts = generate(written, prompts, settings)
    merged = written.merge(prompts, Budget(reduction=100), per_sample=True).sequences
    spelled, size = written.tokenizer.spelled(), len(written.source.input)
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(merged[i].tokens))
    differ = 0
    for place, (text, prompt) in enumerate(zip(texts, merged, strict=True)):
        row = longest_first.index(place)
        words: list[Any] = []
        done = 0
        for t in range(1, len(text.ids)):
            ids = text.ids[:t]
            tokens = [spelled.get(i, i) for i in ids[done:]]
            lengths, new = rewritten(tokens, ids[done:], Boundary.PRETOKEN, size)
            here = read[t - 1][row]
            fresh = last_hidden(written, [*prompt.tokens, *words, *new, ids[-1]])[0]
            words += new[: len(lengths)]
            done += sum(lengths)
            np.testing.assert_allclose(here, fresh, atol=1e-5)
            plain = last_hidden(written, [*prompt.tokens, *ids])[0]
            differ += np.abs(plain - here).max() > 1e-2
    assert differ > 20


def test_what_would_be_merged():
    tokens = ["Ġa", "bc", "Ġd", 7, "e", "f", "Ġg", "h"]
    assert word_lengths(tokens, Boundary.PRETOKEN) == [2, 1, 1, 2, 2]
    lengths, new = rewritten(tokens, [*range(8)], Boundary.PRETOKEN, 8)
    assert lengths == [2, 1, 1, 2] and new == ["Ġabc", 2, 3, "ef", 6]
    assert rewritten(["Ġa"], [4], Boundary.PRETOKEN, 8) == ([], [])
    # Behind the vocabulary are the prompt's merged tokens, which are read by their spelling.
    lengths, new = rewritten(["Ġab", "Ġc", "d", "e"], [9, 8, 9, 3], Boundary.PRETOKEN, 8)
    assert (lengths, new) == ([1], ["Ġab", "Ġc", "d"])


def test_a_codebook_goes_with_rewriting(written, prompts):
    settings = dataclasses.replace(
        DRAWN, codebook=8, top_k=0, temperature=1e4, max_new_tokens=250, rewrite_words=1
    )
    (text,) = generate(written, prompts[:1], settings)
    assert len(text.ids) == 250 and max(text.ids[:-20]) >= len(written.source.input)
