"""Whole batches as recorded: text, base tokens, merges, rows through the cache, padding.

The original cuts sequences after merging, and so loses the closing token of long pairs; so does
this test, to compare all numbers. The package's own layouts cut before merging and keep it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dyntok_jax.embed.cache import RowCache
from dyntok_jax.embed.hypernet_rows import HypernetRows
from dyntok_jax.embed.source import FvtRows, RowProvider, SourceEmbeddings
from dyntok_jax.embed.zett import load_hypernet
from dyntok_jax.merging.batch import merge
from dyntok_jax.merging.budget import Budget
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.layouts import BaseTokens, pair_layout, prompt_layout, words_layout
from dyntok_jax.types import Token

CASES = [
    "nli_dynamic_bpe",
    "ner_dynamic_bpe",
    "nli_original_tk_hypernet",
    "ner_original_tk_hypernet",
    "nli_word_tk_hypernet",
    "ner_word_tk_hypernet",
    "nli_fvt",
    "ner_fvt",
    "nli_fvt_dynamic_bpe",
    "ner_fvt_dynamic_bpe",
    "ner_dynamic_bpe_label_all",
    "nli_dynamic_bpe_surf4",
    "nli_dynamic_bpe_tokenise_idx2",
    "mmlu_dynamic_bpe",
    "mmlu_original_tk_hypernet",
    "mmlu_word_tk_hypernet",
    "mmlu_lp_tk_hypernet",
]
NOT_REPRODUCED = {
    "nli_dynamic_bpe_zh_swallowed_eos": "pieces that are not UTF-8 absorb the closing tokens there",
    "mmlu_fvt_dynamic_bpe": "fails there unless the batch is as long as the maximum",
}
THREE_BATCHES = "nli_3batches_cache420"


class Model:
    """One of the two recorded models: its tokenizer, hypernetwork and source."""

    def __init__(self, name: str, tokenizer: BaseTokenizer, recorded: Any, language: int | None):
        self.name = name
        self.tokenizer = tokenizer
        self.config, self.params = load_hypernet(recorded.folder)
        self.source = SourceEmbeddings.from_concatenated(
            recorded.source, self.config.separate_output
        )
        self.language = language

    def provider(self, kind: str, length: int) -> RowProvider:
        if kind.startswith("fvt"):
            return FvtRows(self.source, self.tokenizer, base_rows="predicted")
        config = replace(self.config, surface_length=length)
        return HypernetRows(config, self.params, self.source, self.tokenizer, self.language)


@pytest.fixture(scope="module")
def models(byte_tokenizer, recorded_hypernet) -> dict[str, Model]:
    """The recorded models by task; the multilingual one runs with language 3."""
    tied = Model("xlmrlike", byte_tokenizer("xlmrlike"), recorded_hypernet("tiny_tied_lang"), 3)
    separate = recorded_hypernet("mistral_like_two_heads")
    return {
        "nli": tied,
        "ner": tied,
        "mmlu": Model("mistral", byte_tokenizer("mistral"), separate, None),
    }


@pytest.fixture(scope="module")
def cases(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden" / "encoder" / "manifest.json").read_text())["cases"]


def lay_out(case: dict[str, Any], tokenizer: BaseTokenizer) -> list[BaseTokens]:
    task, given = case["kwargs"]["task"], case["input"]
    if task == "nli":
        return pair_layout(tokenizer, given["premise"], given["hypothesis"])
    if task == "mmlu":
        return prompt_layout(tokenizer, given)
    # Words as tokens are cut to the length as such, pieces before they are merged.
    by_words = case["exp_type"] in ("word_tk_hypernet", "fvt")
    length = None if by_words else case["kwargs"]["max_length"]
    return words_layout(tokenizer, given["tokens"], max_length=length)


def dynamic(
    case: dict[str, Any], tokenizer: BaseTokenizer
) -> tuple[list[list[Token]], list[list[int]]]:
    """Tokens and word ids of a case by its kind; a word is a pre-token."""
    kind, base = case["exp_type"], lay_out(case, tokenizer)
    if kind.startswith("original"):
        budget = Budget(merges=0)
    else:
        budget = Budget(merges=case["merges_attr"]) if "dynamic" in kind else Budget()
    merged = merge(base, budget).sequences
    tokens = [sequence.tokens for sequence in merged]
    words = [[] if s.word_ids is None else s.word_ids.tolist() for s in merged]
    if kind.startswith("lp"):
        tokens = [list(longest_prefixes(sequence, tokenizer)) for sequence in tokens]
    if case["kwargs"]["task"] == "ner":
        length = case["kwargs"]["max_length"]
        over = [len(sequence) > length for sequence in tokens]
        tokens = [[*t[: length - 1], t[-1]] if o else t for t, o in zip(tokens, over, strict=True)]
        words = [[*w[: length - 1], -1] if o else w for w, o in zip(words, over, strict=True)]
    return tokens, words


def longest_prefixes(tokens: Iterable[Token], tokenizer: BaseTokenizer) -> Iterable[Token]:
    """Each pre-token cut greedily into the longest tokens of the vocabulary."""
    for token in tokens:
        while isinstance(token, str) and token:
            end = next(
                n for n in range(len(token), 0, -1) if tokenizer.id_of(token[:n]) is not None
            )
            yield token[:end]
            token = token[end:]
        if isinstance(token, int):
            yield token


def padded(tokens: list[list[Token]], task: str, length: int, pad: int) -> list[list[Token]]:
    if task == "mmlu":
        longest = max(map(len, tokens))
        return [[*[pad] * (longest - len(t)), *t] for t in tokens]
    return [[*t[:length], *[pad] * (length - len(t))] for t in tokens]


def spelled(tokens: list[Token], tokenizer: BaseTokenizer) -> list[str]:
    names = {index: name for name, index in tokenizer.special_ids.items()}
    return [names[token] if isinstance(token, int) else token for token in tokens]


def test_all_recorded_cases_are_here(cases):
    assert {*CASES, *NOT_REPRODUCED, THREE_BATCHES} == cases.keys()


@pytest.mark.parametrize("name", CASES)
def test_recorded_batch(shared, cases, models, name: str):
    case = cases[name]
    task, length = case["kwargs"]["task"], case["kwargs"]["max_length"]
    model = models[task]
    tokens, words = dynamic(case, model.tokenizer)
    assert [len(sequence) for sequence in tokens] == case["seq_lengths"]
    if case["batch_tokens"] is not None:
        assert [spelled(t, model.tokenizer) for t in tokens] == case["batch_tokens"]
    pad = model.tokenizer.pad_id
    cache = RowCache(model.provider(case["exp_type"], case["surface_form_maxlen"]), 512)
    table = looked_up(cache, [token for sequence in tokens for token in sequence] + [pad])
    if case["tokens_processed_per_batch"]:
        assert [cache.misses] == case["tokens_processed_per_batch"]
    recorded = np.load(shared / "golden" / "encoder" / f"{name}.npz")
    rows = padded(tokens, task, length, pad)
    found = {
        "inputs_embeds": np.array([[table(token) for token in row] for row in rows]),
        "attention_mask": np.array(padded_mask([len(t) for t in tokens], task, length)),
    }
    if task == "ner":
        found["labels"] = np.array([labels(case, *pair) for pair in enumerate(words)])
    assert found.keys() == set(recorded)
    chosen = case["kwargs"].get("tokenise_idx")
    for key, value in found.items():
        value = value if chosen is None else value[chosen]
        np.testing.assert_allclose(value, recorded[key], atol=1e-5, rtol=0, err_msg=key)


def looked_up(cache: RowCache, tokens: list[Token]) -> Callable[[Token], np.ndarray]:
    """The rows of tokens by token, as the cache has them."""
    unique = list(dict.fromkeys(tokens))
    slots = dict(zip(unique, cache.lookup(unique).tolist(), strict=True))
    rows = np.asarray(cache.tables.input)
    return lambda token: rows[slots[token]]


def padded_mask(lengths: list[int], task: str, length: int) -> list[list[int]]:
    if task == "mmlu":
        return [[0] * (max(lengths) - n) + [1] * n for n in lengths]
    return [[1] * min(n, length) + [0] * max(length - n, 0) for n in lengths]


def labels(case: dict[str, Any], row: int, words: list[int]) -> list[int]:
    """Each word's label at its first token; at the others -100, or the label of inside it."""
    tags, inside = case["input"]["ner_tags"][row], case["kwargs"]["b_to_i_label"]
    everywhere = case["kwargs"].get("label_all_tokens", False)
    found, last = [], -1
    for word in words:
        first = word != last
        if word < 0 or not (first or everywhere):
            found.append(-100)
        else:
            found.append(tags[word] if first else inside[tags[word]])
        last = word
    return found + [-100] * (case["kwargs"]["max_length"] - len(found))


def test_three_batches_through_one_cache(shared, cases, models):
    """Pairs in batches of 8 and room for 420 rows: the recorded misses, sizes and mean values.

    The third batch misses 173 rows here and 169 there: which rows the second one evicts depends on
    the order of its unique tokens, which is that of a set there and of first occurrence here.
    """
    with gzip.open(shared / "golden" / "merges" / "nli_xlmrlike_de.json.gz") as file:
        pairs = json.load(file)["input"]
    case, model = cases[THREE_BATCHES], models["nli"]
    cache = RowCache(model.provider("dynamic_bpe", 7), 420)
    pad = model.tokenizer.pad_id
    missed = []
    for number, snap in enumerate(case["snap"]):
        part = slice(8 * number, 8 * number + 8)
        base = pair_layout(model.tokenizer, pairs["premise"][part], pairs["hypothesis"][part])
        tokens = [s.tokens for s in merge(base, Budget(merges=30)).sequences]
        unique = list(dict.fromkeys([token for t in tokens for token in t] + [pad]))
        assert len(unique) == case["unique_tokens_per_batch"][number]
        before = cache.misses
        table = looked_up(cache, unique)
        missed.append((cache.misses - before, case["tokens_processed_per_batch"][number]))
        assert len(cache.slots.order) == snap["cache_size"]
        rows = [[table(token) for token in row] for row in padded(tokens, "nli", 64, pad)]
        assert np.abs(rows).mean() == pytest.approx(snap["mean_abs"], abs=1e-5)
    assert missed == [(284, 284), (253, 253), (173, 169)]
    assert cache.growths == 0


def test_closing_tokens_are_not_absorbed(cases, models):
    """What the original loses: every pair keeps its four special tokens, after all merges."""
    name = "nli_dynamic_bpe_zh_swallowed_eos"
    tokens, _ = dynamic(cases[name], models["nli"].tokenizer)
    specials = [[t for t in sequence if isinstance(t, int)] for sequence in tokens]
    assert specials == [[0, 2, 2, 2]] * 4
    lengths = [len(sequence) for sequence in tokens]
    assert all(a >= b for a, b in zip(lengths, cases[name]["seq_lengths"], strict=True))
    assert lengths != cases[name]["seq_lengths"]


def test_prompts_get_fvt_rows_of_any_length(cases, models):
    """Where the original fails: the rows are those of the tokens, whatever the batch's length."""
    case = cases["mmlu_fvt_dynamic_bpe"] | {"exp_type": "fvt_dynamic_bpe", "merges_attr": 20}
    model = models["mmlu"]
    tokens, _ = dynamic(case, model.tokenizer)
    assert max(map(len, tokens)) < case["kwargs"]["max_length"]
    provider = model.provider("fvt", 7)
    for sequence in tokens:
        rows = provider.rows(sequence).input
        assert rows.shape == (len(sequence), model.config.width)
        ids = [[t] if isinstance(t, int) else model.tokenizer.decompose(t) for t in sequence]
        means = np.stack([model.source.input[i].mean(axis=0) for i in ids])
        np.testing.assert_allclose(rows, means, atol=1e-6)
