"""Generation against transformers' records, and what goes on around the network."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_folders import decoder, folders

from dyntok_jax.config import MeshConfig
from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.embed.cache import RowCache
from dyntok_jax.embed.source import BaseRows, SourceEmbeddings
from dyntok_jax.generate import GenerationConfig, OutputVocabulary, generate
from dyntok_jax.generation.answers import Answer
from dyntok_jax.generation.settings import Prompt
from dyntok_jax.large_vocabulary.exact import ExactIndex
from dyntok_jax.large_vocabulary.index import Candidates
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.weights import load_model, model_module
from dyntok_jax.sharding import make_mesh, shard_params
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.types import Rows

__all__ = ["decoder", "folders"]

FIXTURES = Path(__file__).parent / "fixtures"
RECORD = json.loads((FIXTURES / "generation.json").read_text())["greedy"]
STATIC = GenerationConfig(max_new_tokens=16, reduction=0, steps_together=5)


def tiny(name: str, tokenizer: BaseTokenizer, sizes: tuple[int, ...] = (1, 1, 1)) -> DynamicModel:
    """A recorded model; its prompts are given by id, so that any tokenizer will do."""
    loaded = load_model(FIXTURES / "models" / name)
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    module: Any = model_module(loaded.architecture)
    source = SourceEmbeddings(*loaded.source)
    params = shard_params(loaded.params, abstract_params(module), mesh)
    cache = RowCache(BaseRows(source, tokenizer), 64)
    return DynamicModel(
        name, "decoder", tokenizer, "base", module, params, source, cache, mesh, 64, ()
    )


def by_id(ids: list[int]) -> BaseTokens:
    return BaseTokens(np.array(ids, np.int32), [*ids], np.arange(len(ids), dtype=np.int32))


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizers) -> BaseTokenizer:
    return BaseTokenizer(*tiny_tokenizers["byte_bpe"])


@pytest.mark.parametrize("name", list(RECORD))
def test_greedy_is_transformers_token_for_token(name, tokenizer):
    model = tiny(name, tokenizer)
    for penalty in (1.0, 1.3):
        cases = [case for case in RECORD[name] if case["repetition_penalty"] == penalty]
        settings = dataclasses.replace(STATIC, repetition_penalty=penalty)
        texts = generate(model, [by_id(case["prompt"]) for case in cases], settings)
        assert [text.ids for text in texts] == [case["new"] for case in cases]
        assert {text.finish for text in texts} == {"length"}


def test_sequences_end_on_their_own(tokenizer):
    for case in RECORD["llama_tied"]:
        model = dataclasses.replace(tiny("llama_tied", tokenizer), end_ids=(case["end"],))
        settings = dataclasses.replace(STATIC, repetition_penalty=case["repetition_penalty"])
        others = [by_id(other["prompt"]) for other in RECORD["llama_tied"]]
        texts = generate(model, [by_id(case["prompt"]), *others], settings)
        assert texts[0].ids == case["until_end"] and texts[0].finish == "end"
        assert any(len(text.ids) != len(texts[0].ids) for text in texts)


def test_a_stop_string_can_be_a_special_token(tokenizer):
    model = tiny("llama_tied", tokenizer)
    special, letter = tokenizer.special_ids["<|endoftext|>"], 10
    for stop, ids, finish in (((), 4, None), (("<|endoftext|>",), 2, "end")):
        settings = dataclasses.replace(STATIC, stop=stop)
        answer = Answer.to(Prompt(0, by_id([5]), [5], False, 0), model, settings, None)
        answer.take([letter, special, letter, letter])
        assert len(answer.ids) == ids and answer.finish == finish


class HostIndex:
    """All inner products, on the host."""

    on_device = False

    def __init__(self, rows: np.ndarray):
        self.rows, self.size = rows, len(rows)

    def search(self, hidden: Any, k: int) -> Candidates:
        assert isinstance(hidden, np.ndarray) and hidden.dtype == np.float32
        scores = hidden @ self.rows.T
        ids = np.argsort(-scores, axis=1)[:, :k].astype(np.int32)
        return Candidates(ids, np.take_along_axis(scores, ids, axis=1))  # pyright: ignore


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_vocabulary_with_an_index_is_the_same(on_device, penalty, tokenizer):
    model = tiny("mistral", tokenizer)
    cases = [case for case in RECORD["mistral"] if case["repetition_penalty"] == penalty]
    rows = np.asarray(model.source.input, np.float32)
    output = np.asarray(model.source.output, np.float32)
    index: Any = ExactIndex.of(Rows(rows, output), model.mesh) if on_device else HostIndex(output)
    vocabulary = OutputVocabulary([*range(len(rows))], rows, index)
    settings = dataclasses.replace(STATIC, repetition_penalty=penalty, candidates=40)
    prompts = [by_id(case["prompt"]) for case in cases]
    texts = generate(model, prompts, settings, vocabulary)
    assert [text.ids for text in texts] == [case["new"] for case in cases]


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_the_same_on_a_mesh(tokenizer):
    model = tiny("mistral", tokenizer, (2, 2, 2))
    cases = RECORD["mistral"][::2]
    texts = generate(model, [by_id(case["prompt"]) for case in cases], STATIC)
    assert [text.ids for text in texts] == [case["new"] for case in cases]
