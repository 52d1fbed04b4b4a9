"""Generation against transformers' records, and what goes on around the network."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny_folders import decoder, folders
from written_text import DRAWN, last_hidden, prompts, written

from dyntok_jax.config import MeshConfig
from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.embed.cache import RowCache
from dyntok_jax.embed.source import BaseRows, SourceEmbeddings
from dyntok_jax.generate import GenerationConfig, OutputVocabulary, _prepared, generate
from dyntok_jax.generation import programs
from dyntok_jax.generation.answers import Answer
from dyntok_jax.generation.programs import Codebook, WholeVocabulary, rows_of
from dyntok_jax.generation.settings import Prompt
from dyntok_jax.large_vocabulary.exact import ExactIndex
from dyntok_jax.large_vocabulary.index import Candidates
from dyntok_jax.large_vocabulary.vocabulary import base_tokens
from dyntok_jax.merging.budget import Budget
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.weights import load_model, model_module
from dyntok_jax.sharding import make_mesh, shard_params
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.byte_level import to_text
from dyntok_jax.text.layouts import BaseTokens, prompt_layout
from dyntok_jax.types import DyntokError, PromptError, Rows

__all__ = ["decoder", "folders", "prompts", "written"]

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
    architecture = dataclasses.replace(loaded.architecture, max_length=64)
    return DynamicModel(
        name, "decoder", tokenizer, "base", module, params, source, cache, mesh, architecture
    )


def by_id(ids: list[int]) -> BaseTokens:
    return BaseTokens(np.array(ids, np.int32), [*ids], np.arange(len(ids), dtype=np.int32))


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizers) -> BaseTokenizer:
    return BaseTokenizer(*tiny_tokenizers["byte_bpe"])


def test_a_prompt_is_read_at_its_own_length(tokenizer, monkeypatch):
    """Of 33 tokens it is not read as 48, as batches of texts are."""
    lengths, prefill = [], programs.prefill

    def noted(params, table, ids, *inputs, **how):
        lengths.append(ids.shape[1])
        return prefill(params, table, ids, *inputs, **how)

    monkeypatch.setattr(programs, "prefill", noted)
    model = tiny(next(iter(RECORD)), tokenizer)
    generate(model, [by_id([5] * 33)], dataclasses.replace(STATIC, max_new_tokens=2))
    assert lengths == [40]


@pytest.mark.parametrize("name", list(RECORD))
def test_greedy_is_transformers_token_for_token(name, tokenizer):
    model = tiny(name, tokenizer)
    for penalty in (1.0, 1.3):
        cases = [case for case in RECORD[name] if case["repetition_penalty"] == penalty]
        settings = dataclasses.replace(STATIC, repetition_penalty=penalty)
        texts = generate(model, [by_id(case["prompt"]) for case in cases], settings)
        assert [text.ids for text in texts] == [case["new"] for case in cases]
        assert {text.finish for text in texts} == {"length"}


@pytest.mark.parametrize("on_host", [False, True])
def test_sequences_end_on_their_own(tokenizer, on_host):
    for case in RECORD["llama_tied"]:
        model = dataclasses.replace(tiny("llama_tied", tokenizer), end_ids=(case["end"],))
        rows = np.asarray(model.source.input, np.float32)
        index: Any = HostIndex(rows)
        vocabulary = OutputVocabulary([*range(len(rows))], rows, index) if on_host else None
        settings = dataclasses.replace(
            STATIC, repetition_penalty=case["repetition_penalty"], candidates=len(rows)
        )
        others = [by_id(other["prompt"]) for other in RECORD["llama_tied"]]
        texts = generate(model, [by_id(case["prompt"]), *others], settings, vocabulary)
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
@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("name", ["mistral", "llama_tied"])
def test_the_same_on_a_mesh(tokenizer, name, on_host, monkeypatch):
    model = tiny(name, tokenizer, (2, 2, 2))
    specs = []

    def watched(run: Any) -> Any:
        def ran(*inputs: Any, **settings: Any) -> Any:
            made = run(*inputs, **settings)
            state = made if isinstance(made, programs.State) else made[0]
            specs.extend(leaf.sharding.spec for leaf in jax.tree.leaves(state.cache))
            if (
                len(made) == 3 and made is not state
            ):  # of `one`, what waits beside the cache, stacked
                specs.extend(leaf.sharding.spec[1:] for leaf in jax.tree.leaves(made[1]))
            return made

        return ran

    for program in ("several", "one", "settle"):
        monkeypatch.setattr(programs, program, watched(getattr(programs, program)))
    cases = RECORD[name][::2]
    rows = np.asarray(model.source.input, np.float32)
    output = rows if model.source.output is None else np.asarray(model.source.output, np.float32)
    index: Any = HostIndex(output)
    vocabulary = OutputVocabulary([*range(len(rows))], rows, index) if on_host else None
    settings = dataclasses.replace(STATIC, candidates=len(rows))
    texts = generate(model, [by_id(case["prompt"]) for case in cases], settings, vocabulary)
    assert [text.ids for text in texts] == [case["new"] for case in cases]
    assert {(*spec, None, None)[:2] for spec in specs} == {(("data", "fsdp"), "model")}
    layer = model.step_params["layer_1"]
    cuts = {path[0].key: leaf.sharding.spec for path, leaf in jax.tree.leaves_with_path(layer)
            if path[-1].key == "kernel"}  # fmt: skip
    assert cuts == {
        "query_key_value": PartitionSpec("model", "fsdp"),
        "output": PartitionSpec("fsdp", "model"),
        "gate_up": PartitionSpec(None, "model", "fsdp"),
        "down": PartitionSpec("fsdp", "model"),
    }


def test_draws_depend_on_the_seed_and_the_place_alone(written, prompts):
    together = generate(written, prompts, DRAWN)
    alone = generate(written, prompts, dataclasses.replace(DRAWN, batch_size=1, steps_together=1))
    assert [text.ids for text in together] == [text.ids for text in alone]
    other = generate(written, prompts, dataclasses.replace(DRAWN, seed=6))
    assert all(a.ids != b.ids for a, b in zip(together, other, strict=True))
    same = generate(written, [prompts[0]] * 2, DRAWN)
    assert same[0].ids != same[1].ids
    numbered = generate(written, prompts[2:], DRAWN, draws=[2, 3])
    assert [text.ids for text in numbered] == [text.ids for text in together[2:]]


def test_texts_are_given_out_whole_and_as_they_come(written, prompts):
    shown: dict[int, list[str]] = {}
    texts = generate(
        written,
        prompts,
        DRAWN,
        on_text=lambda place, text: shown.setdefault(place, []).append(text),
    )
    spelled = written.tokenizer.spelled()
    for place, text in enumerate(texts):
        assert "".join(shown[place]) == text.text
        assert text.text == to_text(spelled.get(i, "") for i in text.ids)


def test_a_stop_string_ends_one_text_and_not_the_others(written, prompts):
    free = generate(written, prompts, DRAWN)
    found = [(place, re.search("[ -~]{2}", one.text[1:])) for place, one in enumerate(free)]
    place, match = next((place, match) for place, match in found if match)
    text, stop = free[place].text, match[0]
    for steps in (1, 5):
        settings = dataclasses.replace(DRAWN, stop=(stop, "never said"), steps_together=steps)
        stopped = generate(written, prompts, settings)
        one = stopped[place]
        assert one.text == text[: text.index(stop)] and one.finish == "stop"
        # With the token in which the stop string ends, and no further.
        assert one.ids == free[place].ids[: len(one.ids)]
        spelled = [written.tokenizer.spelled().get(i, "") for i in one.ids]
        assert stop in to_text(spelled) and stop not in to_text(spelled[:-1])
        for one, other in zip(stopped, free, strict=True):
            assert one.ids == other.ids or stop in other.text


def test_prompts_are_merged_alone_unless_asked_otherwise(written, prompts):
    settings = dataclasses.replace(DRAWN, reduction=50, max_new_tokens=1)
    alone = [generate(written, [prompt], settings)[0].tokens for prompt in prompts]
    assert [text.tokens for text in generate(written, prompts, settings)] == alone
    merged = generate(written, prompts, dataclasses.replace(settings, merge_together=True))
    assert [text.tokens for text in merged] != alone
    for text, prompt in zip(merged, prompts, strict=True):
        assert text.tokens["prompt_static"] == len(prompt.tokens)


def test_the_last_words_of_a_prompt_stay_in_base_tokens(written, prompts):
    prompt = prompts[0]
    assert prompt.tokens[-4:] == ["gh", "tho", "us", "es"]
    whole = written.merge([prompt], Budget(reduction=100)).sequences[0].tokens
    assert whole[-3:] == ["Ġmind", "Ġthe", "Ġlighthouses"]
    for kept, end in ((0, whole[-1:]), (1, prompt.tokens[-5:]), (99, prompt.tokens)):
        settings = GenerationConfig(max_new_tokens=1, kept_words=kept)
        (ready,) = _prepared(written, [prompt], settings, None, [0])
        assert ready.tokens[-len(end) :] == end and ready.base is prompt
        assert len(ready.tokens) == (
            len(prompt.tokens) if kept == 99 else len(whole) - 1 + len(end)
        )


def test_a_codebook_is_the_vocabulary_and_the_prompts_merged_tokens(written, prompts):
    size = len(written.source.input)
    settings = GenerationConfig(max_new_tokens=1, kept_words=0, codebook=8, eos_bias=-1e9)
    plain = dataclasses.replace(settings, codebook=0)
    texts = generate(written, prompts, settings)
    for text, without, prompt in zip(
        texts, generate(written, prompts, plain), prompts, strict=True
    ):
        assert set(text.codebook) == set(_merged(written, prompt))
        rows = written.source.input
        sequence = written.merge([prompt], Budget(reduction=100)).sequences[0].tokens
        extra = [written.cache.lookup([token])[0] for token in text.codebook]
        table = np.concatenate([rows, np.asarray(written.cache.tables.input)[extra]])
        last = last_hidden(written, sequence)[0]
        scores = table @ last
        scores[list(written.end_ids)] = -np.inf
        assert text.ids == [int(scores.argmax())]
        assert without.ids == [int(scores[:size].argmax())]
    at_random = dataclasses.replace(DRAWN, codebook=8, top_k=0, temperature=1e4)
    drawn = generate(written, prompts[:1], dataclasses.replace(at_random, max_new_tokens=250))
    new = [(text, i) for text in drawn for i in text.ids if i >= size]
    assert new
    for text, i in new:
        assert to_text([text.codebook[i - size]]) in text.text


def test_tokens_of_a_codebook_are_read_by_its_rows():
    rows, extra = np.arange(6.0).reshape(3, 2), 10 + np.arange(8.0).reshape(2, 2, 2)
    codebook = Codebook(*(jnp.asarray(x) for x in (extra, extra, np.ones((2, 2), bool))))
    read = rows_of(jnp.array([4, 1]), jnp.asarray(rows), codebook)
    assert read.tolist() == [[12, 13], [2, 3]]


def test_a_codebooks_predicted_bias_counts():
    rows, extra = jnp.eye(2), jnp.ones((1, 2, 2))
    codebook = Codebook(extra, extra, jnp.array([[True, False]]), jnp.array([[3.0, 9.0]]))
    found = WholeVocabulary(rows, codebook).search(jnp.array([[1.0, 2.0]]), 0)
    assert found.logits.tolist() == [[1, 2, 6, -np.inf]]


def _merged(model: DynamicModel, prompt: BaseTokens) -> list[str]:
    tokens = model.merge([prompt], Budget(reduction=100)).sequences[0].tokens
    return [t for t in tokens if isinstance(t, str) and model.tokenizer.id_of(t) is None]


def test_prompts_and_texts_in_a_large_vocabulary(written, prompts):
    own = len(written.source.input)
    more = ["Ġlighthouses", "ĠdogĠdoes", "Ġold"]
    names = written.tokenizer.spelled()
    tokens = [*(names.get(i, i) for i in range(own)), *more]
    rows = np.random.default_rng(1).standard_normal((len(tokens), 16)).astype(np.float32)
    rows[:own] = written.source.input
    rows[own:] *= 4  # so that they are drawn
    index: Any = HostIndex(rows)

    def tokenize(base: BaseTokens) -> list[int]:
        return [tokens.index("Ġold"), *base.ids.tolist()]

    settings = dataclasses.replace(DRAWN, reduction=None, top_k=50, repetition_penalty=1.2)
    vocabulary = OutputVocabulary(tokens, rows, index, tokenize)
    texts = generate(written, prompts, settings, vocabulary)
    for text, prompt in zip(texts, prompts, strict=True):
        assert text.tokens["prompt_dynamic"] == len(prompt.tokens) + 1
        assert text.text == to_text(t for i in text.ids if isinstance(t := tokens[i], str))
    assert any(i >= own for text in texts for i in text.ids)
    on_device: Any = ExactIndex.of(Rows(rows), written.mesh)
    same = generate(written, prompts, settings, dataclasses.replace(vocabulary, index=on_device))
    assert [text.ids for text in same] == [text.ids for text in texts]


def test_rows_that_pad_the_model_are_no_tokens_of_a_large_vocabulary(written, prompts):
    tokenizer = written.tokenizer
    tokens = [*base_tokens(tokenizer), "Ġlighthouses"]
    padded = np.concatenate([written.source.input, np.zeros((32, 16), np.float32)])
    model = dataclasses.replace(written, source=SourceEmbeddings(padded))
    rows = np.zeros((len(tokens), 16), np.float32)
    vocabulary = OutputVocabulary(tokens, rows, HostIndex(rows))
    prompt = Prompt(0, prompts[0], prompts[0].tokens, False, 0)
    answer = Answer.to(prompt, model, DRAWN, vocabulary)
    answer.take([10, tokens.index("Ġlighthouses")])
    pieces = tokenizer.decompose("Ġlighthouses")
    assert answer.base_length == 1 + len(pieces) > len(answer.ids)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_new_tokens": 1024}, "max_new_tokens 1024: .* reads 1024 tokens"),
        ({"reduction": None}, "a reduction is needed without"),
        ({"top_k": 10**9}, r"top_k 1000000000: valid is a number up to \d+, the tokens"),
        ({"max_new_tokens": 1018, "reduction": 0}, "prompt 1: 1. tokens, and there is room for 6"),
    ],
)
def test_what_does_not_fit_is_refused(written, prompts, changes, said):
    with pytest.raises(DyntokError, match=said):
        generate(written, prompts, GenerationConfig(**changes))


def test_a_prompts_mistake_can_be_passed_on():
    error = PromptError(2, "too long")
    same = copy.copy(error)
    assert type(same) is PromptError and (same.place, same.problem) == (2, "too long")
    assert str(same) == str(error) == "prompt 3: too long"


def test_all_tokens_can_be_drawn_from_and_not_more(written, prompts):
    size = len(written.source.input)
    for codebook in (0, 2):
        most = size + codebook
        settings = dataclasses.replace(DRAWN, max_new_tokens=2, top_k=most, codebook=codebook)
        whole = generate(written, prompts, dataclasses.replace(settings, top_k=0))
        texts = generate(written, prompts, settings)
        assert [text.ids for text in texts] == [text.ids for text in whole]
        more = dataclasses.replace(settings, top_k=most + 1)
        with pytest.raises(DyntokError, match=f"top_k {most + 1}: valid is a number up to {most},"):
            generate(written, prompts, more)


def test_vocabularies_that_do_not_fit_are_refused(written, prompts):
    rows = np.zeros((9, 16), np.float32)
    index: Any = HostIndex(rows)
    vocabulary = OutputVocabulary([*range(9)], rows, index)
    refused: list[tuple[Any, str]] = [
        (
            {"candidates": 10, "eos_bias": 1.0},
            "candidates 10: valid is a number up to 9, the tokens",
        ),
        ({"top_k": 12, "candidates": 1}, "top_k 12: valid is a number up to 9, the tokens"),
        ({"codebook": 1}, "codebook: it needs the model's own"),
        ({"lookup_tokens": 1}, "lookup_tokens: it needs the model's own"),
        ({"reduction": None}, "this vocabulary tokenizes no prompts"),
    ]
    for changes, said in refused:
        settings = dataclasses.replace(GenerationConfig(candidates=4), **changes)
        with pytest.raises(DyntokError, match=said):
            generate(written, prompts, settings, vocabulary)
    # The best token is one, of however few.
    settings = GenerationConfig(max_new_tokens=1)
    assert settings.candidates > len(rows)
    assert len(generate(written, prompts, settings, vocabulary)) == len(prompts)
    with pytest.raises(DyntokError, match=r"8 tokens, 9 input rows .* index of 9"):
        OutputVocabulary([*range(8)], rows, index)


def test_an_index_is_asked_for_as_many_tokens_as_are_chosen_among(written, prompts):
    rows = np.asarray(written.source.input, np.float32)
    asked: list[int] = []

    class Noting(HostIndex):
        def search(self, hidden: Any, k: int) -> Candidates:
            asked.append(k)
            return super().search(hidden, k)

    index: Any = Noting(rows)
    vocabulary = OutputVocabulary([*range(len(rows))], rows, index)
    greedy = GenerationConfig(max_new_tokens=1, candidates=30, top_k=50)
    for changes, wanted in (
        ({}, 1),
        ({"repetition_penalty": 1.1}, 30),
        ({"eos_bias": 1.0}, 30),
        ({"temperature": 1.0}, 50),
        ({"temperature": 1.0, "top_k": 0}, 30),
    ):
        generate(written, prompts, dataclasses.replace(greedy, **changes), vocabulary)
        assert asked.pop() == wanted and not asked


def test_greedy_is_the_best_by_cosine_unless_others_are_asked_for(written, prompts):
    rows = np.array(written.source.input, np.float32)
    last = last_hidden(written, prompts[0].tokens)[0]
    rows[7] = last / 9  # of the same direction, and short
    rows[8] = 3 * last + 9 * np.linalg.norm(last) * np.eye(16)[0]
    assert rows[8] @ last > rows[7] @ last
    index: Any = ExactIndex.of(Rows(rows), written.mesh, cosine=True)
    vocabulary = OutputVocabulary([*range(len(rows))], rows, index)
    greedy = GenerationConfig(max_new_tokens=1, reduction=0)
    assert greedy.best_only
    for bias, wanted in ((0.0, 7), (1e-9, int((rows @ last).argmax()))):
        settings = dataclasses.replace(greedy, eos_bias=bias, candidates=len(rows))
        (text,) = generate(written, prompts[:1], settings, vocabulary)
        assert text.ids == [wanted] and (wanted == 7) == (not bias)


@pytest.mark.parametrize("in_vocabulary", [False, True])
def test_of_a_cut_prompt_both_lengths_are_of_the_same_text(written, prompts, in_vocabulary):
    prompt, kept = prompts[0], 4
    own = [written.tokenizer.spelled().get(i, i) for i in range(len(written.source.input))]
    whole = written.merge([prompt], Budget(reduction=100)).sequences[0]
    tokens = [*own, *(token for token in whole.tokens if token not in own)]
    rows = np.zeros((len(tokens), 16), np.float32)
    vocabulary = OutputVocabulary(
        tokens, rows, HostIndex(rows), lambda _: [tokens.index(token) for token in whole.tokens]
    )  # fmt: skip
    settings = GenerationConfig(
        max_new_tokens=written.max_length - kept,
        kept_words=0,
        stop=("<|endoftext|>",),
        truncate=True,
    )
    if in_vocabulary:
        settings = dataclasses.replace(settings, reduction=None, candidates=1)
    (ready,) = _prepared(written, [prompt], settings, vocabulary if in_vocabulary else None, [0])
    prefix = len(written.tokenizer.prompt_ids)
    start = int(whole.starts[len(whole.tokens) - kept + prefix])
    assert ready.truncated == len(whole.tokens) - kept > 0 and len(ready.tokens) == kept
    assert ready.base.tokens == prompt.tokens[:prefix] + prompt.tokens[start:]
    assert len(ready.base.tokens) > kept


def test_an_empty_prompt_follows_the_opening_token(written, prompts):
    (empty,) = prompt_layout(written.tokenizer, [""])
    settings = GenerationConfig(max_new_tokens=3, reduction=0, eos_bias=-1e9)
    (text,) = generate(written, [empty], settings)
    opening = written.tokenizer.opening_id
    assert opening is not None
    assert text.ids == generate(written, [by_id([opening])], settings)[0].ids
    assert text.tokens["prompt_static"] == text.tokens["prompt_dynamic"] == 1 and not text.truncated
    other = copy.copy(written.tokenizer)
    other.opening_id = None
    with pytest.raises(DyntokError, match=r"prompt 2: an empty text, .* no opening token"):
        generate(dataclasses.replace(written, tokenizer=other), [prompts[0], empty], settings)
