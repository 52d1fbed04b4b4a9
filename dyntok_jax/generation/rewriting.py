"""Words in the cache rewritten: base tokens replaced by the merged token, once it is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dyntok_jax.batching import make_batch
from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.generation import programs
from dyntok_jax.generation.answers import Answer
from dyntok_jax.generation.programs import State
from dyntok_jax.generation.settings import GenerationConfig
from dyntok_jax.sharding import batch_sharding
from dyntok_jax.text.boundaries import Boundary, unit_numbers
from dyntok_jax.types import Token

TOGETHER = 32
"""Tokens of a sequence that one forward rewrites at most."""


class Rewriter:
    """Rewrites caches between two calls of the decode loop.

    Words are what merging to exhaustion would make one token. Once enough are finished, the
    sequence is taken back to before the first of them, and reads them merged.

    Attributes:
        saved: tokens that each sequence's cache holds less than were generated.
    """

    def __init__(
        self, model: DynamicModel, settings: GenerationConfig, rows: int, step: dict[str, Any]
    ):
        self.saved = [0] * rows
        self._done = [0] * rows
        self._model, self._settings, self._step = model, settings, step

    def __call__(self, answers: Sequence[Answer], state: State) -> State:
        """The state with the finished words of all answers that go on rewritten."""
        length = np.array(state.length)
        waiting: list[list[Token]] = [[] for _ in length]
        for row, answer in enumerate(answers):
            if answer.finish is not None:
                continue
            done = self._done[row]
            # The last token is not in the cache yet, but shows whether the word before it is over.
            finished, new = rewritten(
                answer.tokens[done:],
                answer.ids[done:],
                self._settings.boundary,
                answer.names.size,
            )
            if len(finished) < self._settings.rewrite_words:
                continue
            before, after = len(answer.ids) - done - 1, len(new)
            self._done[row] += sum(finished)
            if after < before:
                self.saved[row] += before - after
                length[row] -= before
                waiting[row] = new
        cache = reread(self._model, waiting, state.cache, length, self._step)
        return state._replace(
            cache=cache, length=jax.device_put(length, batch_sharding(self._model.mesh))
        )


def rewritten(
    tokens: Sequence[Token], ids: Sequence[int], boundary: Boundary, size: int
) -> tuple[list[int], list[Token]]:
    """What a sequence's end would be if its finished words were merged.

    Args:
        tokens: spelled, or special tokens' ids; the last belongs to the word that goes on.
        ids: the same as ids.
        boundary: what a word does not cross.
        size: of the vocabulary; ids from there on are merged tokens of the prompt.

    Returns:
        The lengths of the finished words in generated tokens; and the tokens to be read in their
        place and in that of all others but the last: merged ones spelled, all others by id.
    """
    read = [i if i < size else token for i, token in zip(ids, tokens, strict=True)]
    lengths = word_lengths(tokens, boundary)
    ends = np.cumsum(lengths)
    new: list[Token] = []
    for end, length in zip(ends[:-1].tolist(), lengths, strict=False):
        part = tokens[end - length : end]
        new.append("".join(map(str, part)) if length > 1 else read[end - 1])
    return lengths[:-1], [*new, *read[len(read) - lengths[-1] : -1]]


def word_lengths(tokens: Sequence[Token], boundary: Boundary) -> list[int]:
    """Tokens of each word; a special token is one by itself."""
    lengths: list[int] = []
    start = 0
    while start < len(tokens):
        end = start
        while end < len(tokens) and isinstance(tokens[end], str):
            end += 1
        text = [str(token) for token in tokens[start:end]]
        lengths += np.bincount(unit_numbers(text, boundary)).tolist() if text else [1]
        start = max(end, start + 1)
    return lengths


def reread(
    model: DynamicModel,
    waiting: list[list[Token]],
    cache: Any,
    length: np.ndarray,
    step: dict[str, Any],
) -> Any:
    """The cache after each sequence has read its tokens; ``length`` grows with them.

    Args:
        model: the decoder and its rows.
        waiting: tokens of each sequence.
        cache: is given up. Behind each length it needs room for ``TOGETHER`` tokens.
        length: (B,) tokens in the cache, on the host.
        step: module and mesh of ``programs.read_more``.
    """
    while any(waiting):
        now, waiting = [w[:TOGETHER] for w in waiting], [w[TOGETHER:] for w in waiting]
        batch = make_batch(now, "right", len(now), TOGETHER, (8, TOGETHER))
        ids, start = jax.device_put((batch.ids, length.copy()), batch_sharding(model.mesh))
        _, cache = programs.read_more(
            model.step_params, model.table(batch), ids, cache, start, **step
        )
        length += np.array([len(tokens) for tokens in now], length.dtype)
    return cache
