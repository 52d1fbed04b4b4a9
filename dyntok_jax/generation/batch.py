"""One batch of prompts, from prefill to the last token."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dyntok_jax.batching import PROMPT_BUCKETS, TOKEN_BUCKETS, Batch, bucket, make_batch
from dyntok_jax.dynamic_model import DynamicModel, placed_rows
from dyntok_jax.generation import lookup, programs
from dyntok_jax.generation.answers import Answer
from dyntok_jax.generation.lookup import History
from dyntok_jax.generation.programs import Codebook, Rules, State, WholeVocabulary
from dyntok_jax.generation.rewriting import TOGETHER, Rewriter
from dyntok_jax.generation.settings import (
    Generated,
    GenerationConfig,
    OnText,
    OutputVocabulary,
    Prompt,
)
from dyntok_jax.large_vocabulary.vocabulary import ids_by_spelling
from dyntok_jax.models.kv_cache import kv_bytes
from dyntok_jax.sharding import batch_sharding, replicated
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import Token

BESIDE = 8
"""Tokens that wait beside the cache, where the host searches, until they are written to it."""


def run_batch(
    model: DynamicModel,
    prompts: Sequence[Prompt],
    settings: GenerationConfig,
    vocabulary: OutputVocabulary | None,
    on_text: OnText | None,
) -> list[Generated]:
    """Texts that follow prompts which are read together."""
    begin = time.perf_counter()
    answers = [Answer.to(prompt, model, settings, vocabulary) for prompt in prompts]
    run = _Run(model, answers, settings, vocabulary)
    first = begin
    for tokens in run.steps():
        first = time.perf_counter() if first == begin else first
        for answer, new in zip(answers, tokens.tolist(), strict=False):
            text = answer.take(new)
            if on_text is not None and text:
                on_text(answer.prompt.place, text)
    seconds = {"prefill": first - begin, "decode": time.perf_counter() - first}
    return [
        _generated(answer, model, seconds, run.rewriter.saved[row] if run.rewriter else 0)
        for row, answer in enumerate(answers)
    ]


def cache_bytes(model: DynamicModel, tokens: int) -> int:
    """Bytes of a decoder's keys and values of so many tokens."""
    module = model.step_module
    return kv_bytes(module.config, tokens, jnp.dtype(module.dtype).itemsize)


def _generated(
    answer: Answer, model: DynamicModel, seconds: dict[str, float], saved: int
) -> Generated:
    assert answer.finish is not None
    prompt = answer.prompt
    # Of an empty prompt an opening token is read in any case.
    static, dynamic = max(len(prompt.base.tokens), 1), len(prompt.tokens)
    # The last token is not read any more.
    last = answer.base_length - 1, len(answer.ids) - 1 - saved
    return Generated(
        answer.text.text,
        answer.ids,
        answer.finish,
        {"prompt_static": static, "prompt_dynamic": dynamic, "new": len(answer.ids)},
        seconds,
        {
            "static": cache_bytes(model, static + last[0]),
            "dynamic": cache_bytes(model, dynamic + last[1]),
        },
        prompt.truncated,
        tuple(answer.codebook),
    )


class _Run:
    """The programs of one batch, one after another.

    Attributes:
        rewriter: of the cache, where that is asked for.
    """

    def __init__(
        self,
        model: DynamicModel,
        answers: Sequence[Answer],
        settings: GenerationConfig,
        vocabulary: OutputVocabulary | None,
    ):
        self._model, self._answers, self._settings = model, answers, settings
        self._vocabulary = vocabulary
        self._step = {"module": model.step_module, "mesh": model.mesh}
        ends = np.array(model.end_ids or [programs.NO_TOKEN - 1], np.int32)
        self._rules = Rules(settings.sampling, jax.device_put(ends, replicated(model.mesh)))
        k = 1 if settings.best_only else max(settings.candidates, settings.plan.top_k)
        self._choice = {"plan": settings.plan, "k": k}
        # Behind the first token and the one that ends the last step there is none to guess.
        self._draft = max(0, min(settings.lookup_tokens, settings.max_new_tokens - 2))
        self.rewriter = None
        if settings.rewrite_words:
            self.rewriter = Rewriter(model, settings, len(answers), self._step)

    def steps(self) -> Iterator[np.ndarray]:
        """(B, n) ids of the new tokens, -1 after a sequence's end; rows may exceed the answers."""
        batch = self._padded([answer.prompt.tokens for answer in self._answers])
        table = self._table(batch)
        longest = int(batch.mask.sum(axis=1).max()) + self._settings.max_new_tokens
        room = bucket(longest + (TOGETHER if self.rewriter else self._draft), TOKEN_BUCKETS)
        ids, mask = self._split((batch.ids, batch.mask))
        model = self._model
        hidden, cache = programs.prefill(
            model.params, table, ids, mask, module=model.module, mesh=model.mesh, room=room
        )
        state = self._state(batch, cache)
        if self._vocabulary is None or self._vocabulary.index.on_device:
            yield from self._on_devices(state, hidden)
        else:
            yield from self._with_host(state, hidden)

    def _on_devices(self, state: State, hidden: jax.Array) -> Iterator[np.ndarray]:
        settings, search = self._settings, self._search()
        rows = self._model.input_rows
        if self._vocabulary is not None:
            rows = _placed(self._vocabulary, self._model.mesh)
        state = programs.first(state, hidden, search, self._rules, **self._choice)
        first = np.asarray(state.token)
        yield first[:, None]
        history = self._history(first) if self._draft else None
        chunk = min(settings.steps_together, settings.max_new_tokens)
        how = self._step | self._choice | {"chunk": chunk}
        left = settings.max_new_tokens - 1
        while left and (going := self._going(state)) is not None:
            state = going if self.rewriter is None else self.rewriter(self._answers, going)
            done = min(left, chunk)
            inputs = self._model.step_params, rows, search, self._rules, state
            if history is None:
                state, tokens = programs.several(*inputs, np.int32(done), **how)
            else:
                state, history, tokens, count = lookup.several(
                    *inputs, history, np.int32(done), np.int32(left), **how, size=self._draft
                )
                done = int(count)
            left -= done
            yield np.asarray(tokens)[:, :done]

    def _history(self, first: np.ndarray) -> History:
        """The prompts and their first new tokens."""
        prompts = [answer.prompt.base.ids for answer in self._answers]
        lengths = np.zeros(len(first), np.int32)
        lengths[: len(prompts)] = [len(ids) for ids in prompts]
        room = int(lengths.max()) + self._settings.max_new_tokens + self._draft
        tokens = np.full((len(first), bucket(room, TOKEN_BUCKETS)), programs.NO_TOKEN, np.int32)
        for row, ids in zip(tokens, prompts, strict=False):
            row[: len(ids)] = ids
        tokens[np.arange(len(first)), lengths] = first
        return History(*self._split((tokens, lengths)))

    def _with_host(self, state: State, hidden: jax.Array) -> Iterator[np.ndarray]:
        vocabulary, plan, k = self._vocabulary, self._settings.plan, self._choice["k"]
        assert vocabulary is not None
        params, mesh = self._model.step_params, self._model.mesh
        cache, state = state.cache, state._replace(cache=())
        recent, waiting = programs.beside(cache, BESIDE, mesh), 0
        for _ in range(self._settings.max_new_tokens):
            if waiting == BESIDE:
                state = state._replace(cache=cache)
                state = programs.settle(state, recent, np.int32(waiting), mesh)
                cache, state, waiting = state.cache, state._replace(cache=()), 0
            found = vocabulary.index.search(np.asarray(hidden, np.float32), k)
            rows = np.asarray(vocabulary.input[np.maximum(found.ids, 0)], np.float32)
            # The program places what is found: on one device that is faster than to do it here.
            state, recent, hidden = programs.one(
                params, cache, state, recent, np.int32(waiting), found, rows, self._rules,
                **self._step, plan=plan,
            )  # fmt: skip
            waiting += 1
            yield np.asarray(state.token)[:, None]
            going = self._going(state)
            if going is None:
                return
            state = going

    def _going(self, state: State) -> State | None:
        """The state with only those answers active that go on; None if none does."""
        goes_on = np.zeros(len(state.token), bool)
        goes_on[: len(self._answers)] = [answer.finish is None for answer in self._answers]
        if not goes_on.any():
            return None
        if not self._settings.stop:
            return state
        return state._replace(active=self._split(goes_on))

    def _search(self) -> Any:
        if self._vocabulary is not None:
            return self._vocabulary.index
        rows = self._model.output_rows
        codebook = self._codebook() if self._settings.codebook else None
        return WholeVocabulary(rows, codebook)

    def _padded(self, sequences: Sequence[Sequence[Token]]) -> Batch:
        rows = self._model.batch_rows(len(sequences))
        return make_batch(sequences, "right", rows, self._model.max_length, PROMPT_BUCKETS)

    def _table(self, batch: Batch) -> jax.Array:
        if not self._answers[0].prompt.in_vocabulary:
            return self._model.table(batch)
        assert self._vocabulary is not None
        ids = batch.table_ids(np.array(batch.tokens, np.int32))
        rows = np.asarray(self._vocabulary.input[ids], np.float32)
        return jax.device_put(rows, replicated(self._model.mesh))

    def _state(self, batch: Batch, cache: Any) -> State:
        lengths = batch.mask.sum(axis=1, dtype=np.int32)
        places = np.zeros(len(lengths), np.int32)
        places[: len(self._answers)] = [answer.prompt.draw for answer in self._answers]
        key = jax.random.key(self._settings.seed)
        seen = np.zeros((len(lengths), 0), bool)
        if self._settings.plan.penalized:
            seen = self._seen(len(lengths))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        nothing, active = np.full(len(lengths), programs.NO_TOKEN, np.int32), lengths > 0
        count = jax.device_put(np.int32(0), replicated(self._model.mesh))
        lengths, nothing, active, seen, keys = self._split((lengths, nothing, active, seen, keys))
        return State(cache, lengths, nothing, active, seen, keys, count)

    def _seen(self, rows: int) -> np.ndarray:
        """(B, V) which tokens the prompts hold, base or merged."""
        size, codebook = self._answers[0].names.size, self._settings.codebook
        seen = np.zeros((rows, size + codebook), bool)
        ids: Mapping[str, int] = {}
        if self._vocabulary is not None and not self._answers[0].prompt.in_vocabulary:
            ids = _ids(self._vocabulary, self._model.tokenizer)
        for row, answer in zip(seen, self._answers, strict=False):
            row[answer.prompt.base.ids] = True
            if answer.prompt.in_vocabulary:
                row[np.array(answer.prompt.tokens, np.int64)] = True
            spelled = (token for token in answer.prompt.tokens if isinstance(token, str))
            row[[ids[token] for token in spelled if token in ids]] = True
            row[size : size + len(answer.codebook)] = True
        return seen

    def _codebook(self) -> Codebook:
        cache, size = self._model.cache, self._settings.codebook
        rows = self._model.batch_rows(len(self._answers))
        unique = list(dict.fromkeys(token for a in self._answers for token in a.codebook))
        slots = dict(zip(unique, cache.lookup(unique).tolist(), strict=True))
        places, used = np.zeros((rows, size), np.int32), np.zeros((rows, size), bool)
        for row, answer in enumerate(self._answers):
            places[row, : len(answer.codebook)] = [slots[token] for token in answer.codebook]
            used[row, : len(answer.codebook)] = True
        tables = cache.tables
        output = tables.input if tables.output is None else tables.output
        bias = None if tables.bias is None else tables.bias[places]
        return Codebook(*self._split((tables.input[places], output[places], used, bias)))

    def _split(self, arrays: Any) -> Any:
        """Arrays with a leading batch axis, on the mesh."""
        return jax.device_put(arrays, batch_sharding(self._model.mesh))


@lru_cache(maxsize=1)
def _ids(vocabulary: OutputVocabulary, tokenizer: BaseTokenizer) -> dict[str, int]:
    return ids_by_spelling(vocabulary.tokens, tokenizer)


@lru_cache(maxsize=1)
def _placed(vocabulary: OutputVocabulary, mesh: Mesh) -> jax.Array:
    return placed_rows(vocabulary.input, mesh)
