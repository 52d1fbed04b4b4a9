"""Operations by formula and by program, cache curves and latencies, on tiny models."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_folders import of_languages

from dyntok_jax.config import read_config
from dyntok_jax.embed.hypernet import HypernetConfig
from dyntok_jax.models.decoder import DecoderConfig
from dyntok_jax.models.kv_cache import kv_bytes
from dyntok_jax.tasks import mmlu as task
from dyntok_jax.text.base_tokens import BaseTokenizer
from eval import efficiency, efficiency_figures, efficiency_latency
from eval.efficiency_config import EfficiencyRun
from eval.efficiency_flops import (
    decoder_flops,
    decoder_products,
    hypernet_flops,
    hypernet_products,
    scored_pairs,
)

ROOT = Path(__file__).parents[2]
SMALL = DecoderConfig(
    width=192, layers=5, heads=6, kv_heads=2, head_width=32, feed_forward=512, vocab_size=64
)
MISTRAL = DecoderConfig()
ZETT = HypernetConfig(
    4096, 4096, 8192, 3, 32, 7, 32_000, 522, 2, separate_output=True, predict_bias=False
)


@pytest.mark.parametrize("tokens", [96, 512, 700, 1024, 2560, 4096])
def test_a_decoders_formula_is_the_programs_products(tokens):
    assert decoder_flops(SMALL, tokens) == decoder_products(SMALL, tokens)


def test_pairs_of_blocks():
    half, whole = 256, 512
    assert scored_pairs(half) == half**2 and scored_pairs(whole) == whole**2
    assert scored_pairs(whole + half) == whole**2 + half * (whole + half)
    assert scored_pairs(4 * whole) == (1 + 2 + 3 + 4) * whole**2
    # Six blocks in four parts: 2, 2, 1 and 1.
    assert scored_pairs(6 * whole) == (2 * 2 + 2 * 4 + 5 + 6) * whole**2
    lengths = np.arange(1, 9000)
    assert (np.diff(scored_pairs(lengths)) > 0).all()
    seen = np.array([scored_pairs(int(n)) for n in lengths[::511]])
    np.testing.assert_array_equal(seen, scored_pairs(lengths[::511]))


@pytest.mark.parametrize(
    "config",
    [
        HypernetConfig(96, 256, 512, 3, 4, 7, 64, 3, 0),
        HypernetConfig(96, 256, 512, 2, 4, 7, 64, 3, 0, languages=5, separate_output=True),
        HypernetConfig(96, 256, 512, 1, 4, 7, 64, 3, 0, separate_output=True, single_head=True),
    ],
)
def test_a_hypernetworks_formula_is_the_programs_products(config):
    assert hypernet_flops(config, 48) == hypernet_products(config, 48)


def test_sizes_of_mistral():
    # 6.98 billion parameters are in the layers' maps, each of which counts twice a token.
    assert decoder_flops(MISTRAL, 1.0) == pytest.approx(2 * 6.979e9, rel=1e-3)
    assert decoder_products(MISTRAL, 64) == decoder_flops(MISTRAL, 64)
    assert hypernet_products(ZETT, 8) == hypernet_flops(ZETT, 8)
    assert kv_bytes(MISTRAL, 1.0, 2) == 131_072


def record(i: int) -> dict[str, Any]:
    names = task.CHOICE_NAMES[0]
    choices = ["lighthouses", "Geschichten", "Straßenbahnen", "children"]
    text = f"Which lighthouses number {i} are lit?"
    return {"id": "coast/dev/1", "instruction": text, "answer": "A"} | dict(
        zip(names, choices, strict=True)
    )


@pytest.fixture
def content(decoder, tmp_path) -> dict[str, Any]:
    for name, numbers in (("val", range(10, 15)), ("dev", range(5))):
        path = tmp_path / f"xx_{name}.json"
        path.write_text(json.dumps([record(i) for i in numbers]), "utf-8")
    (tmp_path / "xx.txt").write_text("The quick brown foxes of the lighthouses.\n" * 20)
    source = [{"files": str(tmp_path / f"xx_{name}.json")} for name in ("val", "dev")]
    return {
        "model": str(decoder),
        "rows": "fvt",
        "data": [{"language": "xx", "questions": source[0], "shots": source[1]}],
        "reductions": [0, 50, 100],
        "cache": {"capacities": [256, 8], "batch_size": 2},
        "latency": {
            "texts": {"xx": str(tmp_path / "xx.txt")},
            "prompts": 2,
            "tokens": 64,
            "repeats": 1,
        },
    }


def measured(content, tmp_path, command) -> dict[str, Any]:
    (tmp_path / "run.yaml").write_text(json.dumps(content), "utf-8")
    out = tmp_path / "found.json"
    run = command(efficiency.main, "--config", tmp_path / "run.yaml", "--out", out)
    assert run.code == 0, run.err
    assert "<svg" in out.with_suffix(".svg").read_text("utf-8")
    found = json.loads(out.read_text("utf-8"))
    for point in found["efficiency"]["xx"]["points"]:
        assert f" xx {' '.join(efficiency_figures.operation_cells(point))}" in run.shown
    return found


def test_a_run(content, tmp_path, command):
    found = measured(content, tmp_path, command)
    language = found["efficiency"]["xx"]
    static, half, full = language["points"]
    assert static["tokens"] > half["tokens"] > full["tokens"] and language["prompts"] == 5
    assert static["tokens_saved_percent"] == 0 < full["total_flops_saved_percent"]
    # No token is predicted by base rows, and fewer than there are by merging.
    assert static["predicted_tokens"] == 0 < full["predicted_tokens"] < full["tokens"]
    assert full["predicted_tokens_cached"] < full["predicted_tokens"]
    assert full["kv_bytes"] / static["kv_bytes"] == pytest.approx(full["tokens"] / static["tokens"])
    small, large = language["cache"]
    assert small["capacity"] == 8 and small["grown_to"] >= 64 > small["capacity"]
    assert large["grown_to"] == 256 and len(large["hits"]) == 3
    assert large["hits"][0] == 0
    # The shots are the same in all prompts: later batches miss little but their questions.
    assert large["misses"][1] < 0.2 * large["misses"][0]
    shares = efficiency_figures.hit_shares(large)
    assert shares == sorted(shares) and shares[0] == 0 < shares[-1] < 100
    steps = found["latency"]["xx"]
    assert steps[0]["tokens"] == 64 > steps[-1]["tokens"]
    assert all(0 < step["prefill_ms"] <= step["first_token_ms"] for step in steps)
    assert set(found["check"]["decoder"].values()) == {1.0}


def test_what_is_timed_is_what_is_counted(content, decoder, tmp_path, command, monkeypatch):
    content["rows"] = str(of_languages(tmp_path / "rows", decoder, []))
    providers = []
    real = efficiency_latency._first_token

    def noted(model, *rest):
        providers.append(model.cache._provider)
        return real(model, *rest)

    monkeypatch.setattr(efficiency_latency, "_first_token", noted)
    for base_rows, alike in (("own", True), ("predicted", False)):
        providers.clear()
        measured(content | {"base_rows": base_rows}, tmp_path, command)
        # Those with an empty cache too.
        (provider,) = set(providers)
        token = BaseTokenizer.from_folder(decoder).spelled()[100]
        rows = provider.rows([100, token]).input
        assert np.allclose(*rows) == alike


def test_a_shape_needs_no_weights(content, folders, tmp_path, command):
    del content["latency"], content["rows"]
    content["model"] = str(folders["byte_bpe"])
    content["decoder"] = {"width": 192, "layers": 2, "heads": 6, "kv_heads": 2, "head_width": 32}
    content["decoder"] |= {"feed_forward": 512}
    content["hypernet"] = {"width": 192, "hidden": 64, "feed_forward": 128, "layers": 1, "heads": 2}
    content["hypernet"] |= {"surface_length": 7, "vocab_size": 480, "extra_tokens": 0, "pad_id": 0}
    content["base_rows"] = "predicted"
    found = measured(content, tmp_path, command)
    static = found["efficiency"]["xx"]["points"][0]
    assert found["latency"] == {} and found["check"]["hypernet"] == 1
    assert static["predicted_tokens"] > 20
    each = static["hypernet_flops_uncached"] / static["predicted_tokens"]
    assert static["hypernet_flops"] == pytest.approx(each * static["predicted_tokens_cached"])
    assert static["total_flops"] == static["model_flops"] + static["hypernet_flops"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("reductions", [50, 100], "the first is 0"),
        ("hypernet", ZETT.__dict__, "together with decoder"),
        ("decoder", {}, "cannot be timed"),
        ("cache", {"capacities": []}, "capacities"),
        ("latency", {"texts": {}}, "a text at least"),
        ("latency", {"texts": {"xx": "nowhere.txt"}}, "nowhere.txt"),
        ("rows", "nothing", "no such folder"),
    ],
)
def test_a_bad_config_is_one_line(content, tmp_path, command, key, value, words):
    (tmp_path / "run.yaml").write_text(json.dumps(content | {key: value}), "utf-8")
    arguments = "--config", tmp_path / "run.yaml", "--out", tmp_path / "found.json"
    run = command(efficiency.main, *arguments)
    assert run.code == 2 and words in run.err and run.err.count("\n") == 1


def test_base_rows_are_not_predicted_where_they_are_read(content, tmp_path, command):
    content |= {"rows": "base", "base_rows": "predicted"}
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(content), "utf-8")
    run = command(efficiency.main, "--config", path, "--out", tmp_path / "found.json")
    assert run.code == 2 and "nothing to base rows" in run.err and run.err.count("\n") == 1
    del content["latency"]
    path.write_text(json.dumps(content | {"decoder": {}}), "utf-8")
    assert read_config(EfficiencyRun, path).base_rows == "predicted"


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"decoder": {"kv_heads": 0}}, "decoder: kv_heads is 0; valid is a number from 1"),
        ({"decoder": {"heads": 30}}, "decoder: heads is 30; valid are multiples of kv_heads"),
        ({"decoder": {"activation": "rely"}}, "decoder: activation is 'rely'; valid are"),
        ({"decoder": {}, "hypernet": asdict(ZETT) | {"heads": 7}}, "valid are multiples of heads"),
    ],
)
def test_a_shape_of_no_network_is_one_line(content, tmp_path, command, shape, words):
    del content["latency"]
    (tmp_path / "run.yaml").write_text(json.dumps(content | shape), "utf-8")
    arguments = "--config", tmp_path / "run.yaml", "--out", tmp_path / "found.json"
    run = command(efficiency.main, *arguments)
    assert run.code == 2 and words in run.err and run.err.count("\n") == 1


@pytest.mark.parametrize(
    ("latency", "words"),
    [
        ({"tokens": 5000}, "latency: tokens 5000; valid is 1 to 1023"),
        ({"texts": {"xx": "nowhere.txt"}}, "nowhere.txt"),
    ],
)
def test_what_cannot_be_timed_is_said_before_the_counting(
    content, tmp_path, command, monkeypatch, latency, words
):
    monkeypatch.setattr(efficiency.Counting, "language", lambda *_: pytest.fail("counted"))
    content["latency"] |= latency
    (tmp_path / "run.yaml").write_text(json.dumps(content), "utf-8")
    arguments = "--config", tmp_path / "run.yaml", "--out", tmp_path / "found.json"
    run = command(efficiency.main, *arguments)
    assert run.code == 2 and words in run.err and run.err.count("\n") == 1


@pytest.mark.parametrize("name", ["efficiency_smollm2.yaml", "efficiency_mistral.yaml"])
def test_config_files_are_valid_and_say_their_command(name, monkeypatch):
    for variable in ("MMLU", "M_MMLU", "TEXT"):
        monkeypatch.setenv(variable, variable.lower())
    path = ROOT / "configs" / "eval" / name
    run = read_config(EfficiencyRun, path)
    assert bool(run.latency) == (name == "efficiency_smollm2.yaml")
    if run.decoder:
        assert (run.decoder, run.hypernet) == (MISTRAL, ZETT)
    head = path.read_text("utf-8").split("model:")[0]
    assert f"--config configs/eval/{name}" in head


def test_words_that_are_too_long_for_a_hypernetwork_stay_in_base_tokens(
    content, folders, tmp_path, command
):
    del content["latency"], content["rows"]
    content["model"] = str(folders["byte_bpe"])
    content["decoder"] = {"width": 192, "layers": 2, "heads": 6, "kv_heads": 2, "head_width": 32}
    content["decoder"] |= {"feed_forward": 512}
    shape = {"width": 192, "hidden": 64, "feed_forward": 128, "layers": 1, "heads": 2}
    shape |= {"vocab_size": 480, "extra_tokens": 0, "pad_id": 0}
    tokens = []
    for longest in (2, 3, 30):
        content["hypernet"] = shape | {"surface_length": longest}
        points = measured(content, tmp_path, command)["efficiency"]["xx"]["points"]
        tokens.append(points[-1]["tokens"])
    assert points[0]["tokens"] > tokens[0] > tokens[1] > tokens[2]


def test_layers_of_the_model_that_a_hypernetwork_reads_are_not_counted(
    content, folders, tmp_path, command
):
    del content["latency"], content["rows"]
    content["model"] = str(folders["byte_bpe"])
    content["decoder"] = {"width": 192, "layers": 2, "heads": 6, "kv_heads": 2, "head_width": 32}
    content["hypernet"] = ZETT.__dict__ | {"model_layers": 1}
    (tmp_path / "run.yaml").write_text(json.dumps(content), "utf-8")
    arguments = "--config", tmp_path / "run.yaml", "--out", tmp_path / "found.json"
    run = command(efficiency.main, *arguments)
    assert run.code == 2 and "(model_layers) are not counted" in run.err
