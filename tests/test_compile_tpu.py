"""Forwards, an adapter's training and merging compile for TPU v4-32, or lower for CUDA and TPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from dyntok_jax.config import MeshConfig
from dyntok_jax.merging.device import merge_device
from dyntok_jax.merging.device_tokens import empty_tokens
from dyntok_jax.models.decoder import Decoder, DecoderConfig
from dyntok_jax.models.encoder import Encoder, EncoderConfig
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.sharding import compiled_forward, gathered, make_mesh, shard_params

SCRIPT = Path(__file__).with_name("tpu_compilation.py")
CASES = (
    *("xlm_r_base", "xlm_r_base_lora_step"),
    *("mistral_7b", "mistral_7b_prefill", "mistral_7b_decode"),
    *(
        "mistral_7b_lookup",
        "mistral_7b_large",
        "mistral_7b_prefill_long",
        "mistral_7b_step_params",
        "merge_samples",
        "merge_batch",
    ),
)
HBM = 32e9
"""Bytes a v4 chip has."""


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    """What each case's program needs, compiled in a process that loads libtpu."""
    command = [sys.executable, str(SCRIPT), *CASES]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if "no libtpu" in run.stderr:
        pytest.skip(run.stderr.strip())
    assert run.returncode == 0, run.stderr
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    return {case["case"]: case for case in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_compiles_for_a_v4_32_and_fits(compiled, name):
    case = compiled[name]
    assert case["devices"] == 16 and case["kind"] == "TPU v4"
    assert case["arguments"] + case["outputs"] + case["temporaries"] < HBM


@pytest.mark.slow
def test_an_adapters_step_holds_the_frozen_base_once_and_no_moments_of_it(compiled):
    base = abstract_params(Encoder(EncoderConfig()))
    frozen = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(base)))
    # 12 layers of two maps, and a head of 7 classes; each with two moments.
    trained = 4 * (12 * 2 * 2 * 768 * 256 + 768 * 7 + 7)
    rows = 4 * 2048 * 768
    case = compiled["xlm_r_base_lora_step"]
    assert 0 <= case["arguments"] - frozen - 3 * trained - rows < 1e6
    assert 0 <= case["outputs"] - 3 * trained < 1e6


@pytest.mark.slow
def test_parameters_of_mistral_7b_are_cut_into_sixteen(compiled):
    shapes = jax.tree.leaves(nn.unbox(abstract_params(Decoder(DecoderConfig()))))
    parameters = sum(4 * math.prod(leaf.shape) for leaf in shapes)
    arguments = compiled["mistral_7b"]["arguments"]
    # Norms are cut into four parts only; the rows, 4096 x 4096 float32, are on every chip.
    assert 0 <= arguments - parameters / 16 - 4 * 4096 * 4096 < 4e6


@pytest.mark.slow
def test_tables_of_a_million_rows_are_cut_into_four(compiled):
    config, size = DecoderConfig(), 1_000_000
    further = 2 * (size - config.vocab_size) * config.width * 4 / 4
    arguments = [compiled[f"mistral_7b_{case}"]["arguments"] for case in ("decode", "large")]
    # Beside them each sequence has its marks of the tokens that it has had.
    assert 0 <= arguments[1] - arguments[0] - further < 8 * size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mistral_7b_prefill", "mistral_7b_decode", "mistral_7b_lookup"])
def test_the_cache_of_mistral_7b_is_cut_into_sixteen(compiled, name):
    config, tokens, sequences = DecoderConfig(), 4096, 8
    values = 2 * config.layers * sequences * tokens * config.kv_heads * config.head_width
    # Beside it there is what a step says of each sequence, and bfloat16 has two bytes.
    assert 0 <= compiled[name]["outputs"] - 2 * values / 16 < 1e6


@pytest.mark.parametrize(
    "module",
    [
        Encoder(EncoderConfig(16, 2, 4, 32, vocab_size=9)),
        Decoder(DecoderConfig(16, 2, 8, 4, 4, 32, vocab_size=9)),
    ],
)
def test_lowers_for_cuda_and_tpu(module: Any):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    abstract = abstract_params(module)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), nn.unbox(abstract))
    params = shard_params(zeros, abstract, mesh)
    rows, ids = jnp.zeros((8, 16)), jnp.zeros((4, 6), jnp.int32)
    function: Any = compiled_forward(module, mesh, gathered)
    exported = jax.export.export(function, platforms=("cuda", "tpu"))(
        params, rows, ids, ids == 0, ()
    )
    assert exported.platforms == ("cuda", "tpu") and exported.nr_devices == 8
    assert exported.out_avals[0].shape == (4, 6, 16)
    assert "sharding" in exported.mlir_module()


@pytest.mark.parametrize("rows", [1, 4])
def test_the_merge_step_lowers_for_cuda_and_tpu(rows: int):
    tokens, limit = empty_tokens(rows, 64), jnp.ones(rows, jnp.int32)
    exported = jax.export.export(merge_device, platforms=("cuda", "tpu"))(tokens, limit, limit)
    assert exported.platforms == ("cuda", "tpu")
    assert exported.out_avals[0].shape == (rows, 64)
    # One loop: no host round trip between merges.
    assert "stablehlo.while" in exported.mlir_module()
