"""Generation beside transformers and beside itself, on a tiny decoder."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dyntok_jax.config import ComputeConfig, MeshConfig
from dyntok_jax.dynamic_model import DynamicModel, load
from dyntok_jax.generation.opening import open_vocabulary
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary, write_vocabulary
from dyntok_jax.text.layouts import prompt_layout
from dyntok_jax.types import Rows, Token
from eval import bench_generation, report_bench
from eval.bench_generation import against_own, against_recomputing, against_transformers

TEXTS = ("The quick brown fox jumps over", "Geschichten über ferne Länder")


@pytest.fixture
def model(decoder: Path) -> DynamicModel:
    loaded = load(str(decoder), "fvt", ComputeConfig(mesh=MeshConfig(data=1)))
    return replace(loaded, end_ids=())


def prompts(model: DynamicModel):
    """Two prompts of one length."""
    ids = [prompt.tokens[:8] for prompt in prompt_layout(model.tokenizer, TEXTS)]
    assert [len(part) for part in ids] == [8, 8]
    return [
        replace(prompt, ids=prompt.ids[:8], tokens=prompt.tokens[:8], units=prompt.units[:8])
        for prompt in prompt_layout(model.tokenizer, TEXTS)
    ]


def other(decoder: Path):
    pytest.importorskip("torch")
    from eval.torch_generation import TorchGeneration

    return TorchGeneration(decoder, "float32")


def test_texts_are_those_of_transformers(model, decoder):
    found = against_transformers(model, other(decoder), prompts(model), new=6, repeats=1)
    assert found["batch"] == 2 and found["prompt"] == 8 and found["same_tokens"] == 1
    speeds = found["jax_tokens_per_s"] / found["torch_tokens_per_s"]
    assert found["ratio"] == pytest.approx(speeds)


def test_the_originals_scheme_gives_the_same_text(model, decoder):
    found = against_recomputing(model, other(decoder), prompts(model)[0], 6, 3, None)
    assert found["same_tokens"] == 1 and found["vocabulary"] == len(model.source.input)
    assert found["ratio"] == pytest.approx(found["torch_s"] / found["jax_s"])


@pytest.fixture
def large(model: DynamicModel, tmp_path: Path) -> Path:
    """A vocabulary of 20 more tokens, with random rows that are like none of the model's own."""
    new = [f"Ġquick{'ox' * i}" for i in range(1, 21)]
    write_vocabulary(tmp_path / "large", model.tokenizer, new, "tiny", {})
    vocabulary = LargeVocabulary.load(tmp_path / "large", model.tokenizer)
    vocabulary.rows_file.predict(vocabulary.row_tokens, RandomRows(), {"rows": "random"})
    return vocabulary.folder


class RandomRows:
    """The same rows each time."""

    def rows(self, tokens: Sequence[Token]) -> Rows:
        return Rows(np.random.default_rng(1).standard_normal((len(tokens), 16)).astype(np.float32))


def test_a_step_in_another_vocabulary(model, large):
    vocabulary = open_vocabulary(large, model)
    found = against_own(model, prompts(model)[0], vocabulary, new=4, repeats=1)
    assert found["size"] == len(model.source.input) + 20
    assert found["ratio"] == pytest.approx(found["large_step_s"] / found["own_step_s"])


def test_the_originals_scheme_in_a_large_vocabulary(model, large, decoder):
    found = against_recomputing(model, other(decoder), prompts(model)[0], 6, 3, str(large))
    assert found["same_tokens"] == 1 and found["vocabulary"] == len(model.source.input) + 20
    assert "lookup_jax_s" not in found


def test_the_runs_that_it_names_are_there():
    named = re.findall(r"eval/results/[\w*.]+json", bench_generation.__doc__ or "")
    root = Path(bench_generation.__file__).parents[1]
    assert named and all(list(root.glob(name)) for name in named)


def test_a_large_vocabulary_is_read_once(model, large, monkeypatch):
    real, read = LargeVocabulary.load, []

    def noted(folder, tokenizer):
        read.append(folder)
        return real(folder, tokenizer)

    monkeypatch.setattr(LargeVocabulary, "load", noted)
    # Without torch, too: what reads the whole prefix has a text of its own.
    texts = SimpleNamespace(recompute=lambda ids, new, rows, output: [0] * new)
    found = against_recomputing(model, texts, prompts(model)[0], 3, 3, str(large))
    assert read == [str(large)] and found["vocabulary"] == len(model.source.input) + 20


def test_the_command(command, decoder, tmp_path):
    text = tmp_path / "xx.txt"
    text.write_text("The quick brown foxes of the lighthouses.\n" * 300, "utf-8")
    out = tmp_path / "run.json"
    common = ("--model", decoder, "--rows", "fvt", "--texts", text, "--out", out)
    few = ("--repeats", "1", "--new-tokens", "4", "--recompute-tokens", "4")
    parts = ("--parts", "prefill,decode,recompute,lookup")
    done = command(bench_generation.main, *common, *few, *parts)
    assert done.code == 0, done.err
    figures = json.loads(out.read_text("utf-8"))
    if importlib.util.find_spec("torch"):
        assert [row["batch"] for row in figures["decode"]] == [1, 8]
        whole = figures["recompute"]
        assert whole["same_tokens"] == whole["lookup_same_tokens"] == 1
        assert whole["lookup_ratio"] == pytest.approx(whole["torch_s"] / whole["lookup_jax_s"])
    else:
        assert figures["decode"] == figures["recompute"] == "torch is not installed"
    assert [row["temperature"] for row in figures["lookup"]] == [0, 1]
    for row in figures["lookup"]:
        assert row["same_tokens"] == 1
        assert row["ratio"] == pytest.approx(row["plain_s"] / row["lookup_s"])
    (row,) = figures["prefill"]
    assert row["tokens_before"] == 512 and row["tokens_after"] < 400
    left = row["tokens_after"] / row["tokens_before"]
    assert row["bound_s"] == pytest.approx(row["static_s"] * left / 0.85)
    assert row["within_bound"] == (row["dynamic_s"] <= row["bound_s"])
    assert f"{row['dynamic_s'] / row['static_s']:.2f}" in report_bench.generation(figures)

    done = command(bench_generation.main, *common, "--parts", "index")
    assert done.code == 2 and "it needs --vocabulary and --index" in done.err
    done = command(bench_generation.main, *common, "--parts", "decoding")
    assert done.code == 2 and "valid are decode, prefill" in done.err


def test_the_table():
    run = {
        "generation": ["decode", "recompute", "lookup", "index"],
        "dtype": "float32",
        "decode": [
            {
                "batch": 8,
                "new": 128,
                "jax_tokens_per_s": 150.0,
                "torch_tokens_per_s": 100.0,
                "ratio": 1.5,
                "same_tokens": 0.995,
            }
        ],
        "recompute": "torch is not installed",
        "lookup": [
            {
                "temperature": 0.0,
                "texts": 8,
                "new": 128,
                "draft": 7,
                "plain_s": 3.0,
                "lookup_s": 2.0,
                "ratio": 1.5,
                "same_tokens": 1.0,
            }
        ],
        "index": {"size": 1000000, "large_step_s": 0.024, "own_step_s": 0.02, "ratio": 1.2},
        "command": "python -m eval.bench_generation",
        "commit": "abc1234",
        "machine": "x86_64, 2 cores",
    }
    assert report_bench.generation(run).splitlines() == [
        "`python -m eval.bench_generation` at commit abc1234, x86_64, 2 cores:",
        "",
        "| what | measured | bound |",
        "|---|---|---|",
        "| tokens/s of decoding, batch 8, 128 tokens, float32 "
        "| 150.0, transformers 100.0: 1.50× (99.5 % same tokens) | ≥ 1.5× |",
        "| recompute | torch is not installed |  |",
        "| 8 texts of 128 tokens, one by one, temperature 0, drafts of 7 tokens "
        "| 2.0 s, without 3.0 s: 1.50× (100.0 % same tokens) |  |",
        "| a decode step among 1000000 tokens ÷ one among the model's own "
        "| 24.0 ms, 20.0 ms: 1.20× | ≤ 1.3× |",
    ]
