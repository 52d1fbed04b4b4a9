"""A tiny GGUF file, written by the gguf package, becomes a Llama folder with the same values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quantization
from gguf import GGUFWriter
from gguf.quants import quantize
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from dyntok_jax.model_store.gguf_model import convert_gguf, undo_rotary_permutation
from dyntok_jax.text.byte_level import BYTE_TO_CHAR
from dyntok_jax.types import DyntokError

WIDTH, INNER, HEADS, KV_HEADS, HEAD = 64, 96, 4, 2, 16
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*CONTROL, *BYTE_TO_CHAR.values(), "Ġt", "he", "Ġthe"]
MERGES = ["Ġ t", "h e", "Ġt he"]


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp orders them: row i of a head's first half, row i of its second, ..."""
    rows = []
    for head in np.split(weight, heads):
        first, second = np.split(head, 2)
        for pair in zip(first, second, strict=True):
            rows.extend(pair)
    return np.stack(rows)


def whole_numbers(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Values 0-15 with both ends in every block of 32, so that Q4_1 holds them exactly."""
    values = rng.integers(0, 16, size=(shape[0], shape[1] // 32, 32))
    values[:, :, 3], values[:, :, 17] = 0, 15
    return values.reshape(shape).astype(np.float32)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """Under Hugging Face names, in Hugging Face order."""
    rng = np.random.default_rng(1)
    embedding = rng.integers(-126, 127, size=(len(TOKENS), WIDTH)).astype(np.float32)
    embedding[:, ::32] = 127  # the scale of a Q8_0 block is its largest value / 127
    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": rng.normal(size=WIDTH).astype(np.float32),
        f"{layer}input_layernorm.weight": rng.normal(size=WIDTH).astype(np.float32),
        f"{layer}post_attention_layernorm.weight": rng.normal(size=WIDTH).astype(np.float32),
        f"{layer}self_attn.q_proj.weight": whole_numbers(rng, (HEADS * HEAD, WIDTH)),
        f"{layer}self_attn.k_proj.weight": whole_numbers(rng, (KV_HEADS * HEAD, WIDTH)),
        f"{layer}self_attn.v_proj.weight": whole_numbers(rng, (KV_HEADS * HEAD, WIDTH)),
        f"{layer}self_attn.o_proj.weight": whole_numbers(rng, (WIDTH, HEADS * HEAD)),
        f"{layer}mlp.gate_proj.weight": whole_numbers(rng, (INNER, WIDTH)),
        f"{layer}mlp.up_proj.weight": whole_numbers(rng, (INNER, WIDTH)),
        f"{layer}mlp.down_proj.weight": whole_numbers(rng, (WIDTH, INNER)),
    }


def write_metadata(writer: GGUFWriter, pre_tokenizer: str) -> None:
    writer.add_block_count(1)
    writer.add_context_length(40)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(12345.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(TOKENS) - len(CONTROL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}")


def write_gguf(
    path: Path, weights: dict[str, np.ndarray], pre_tokenizer: str = "smollm", tied: bool = True
) -> Path:
    names = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "blk.0.attn_norm": "model.layers.0.input_layernorm",
        "blk.0.ffn_norm": "model.layers.0.post_attention_layernorm",
        "blk.0.attn_q": "model.layers.0.self_attn.q_proj",
        "blk.0.attn_k": "model.layers.0.self_attn.k_proj",
        "blk.0.attn_v": "model.layers.0.self_attn.v_proj",
        "blk.0.attn_output": "model.layers.0.self_attn.o_proj",
        "blk.0.ffn_gate": "model.layers.0.mlp.gate_proj",
        "blk.0.ffn_up": "model.layers.0.mlp.up_proj",
        "blk.0.ffn_down": "model.layers.0.mlp.down_proj",
    } | ({} if tied else {"output": "model.embed_tokens"})
    heads = {"blk.0.attn_q": HEADS, "blk.0.attn_k": KV_HEADS}
    writer = GGUFWriter(path, "llama")
    write_metadata(writer, pre_tokenizer)
    for name, source in names.items():
        array = weights[f"{source}.weight"]
        if name in heads:
            array = interleave(array, heads[name])
        kind = Quantization.F32
        if array.ndim == 2:
            kind = Quantization.Q8_0 if source.endswith("tokens") else Quantization.Q4_1
        writer.add_tensor(f"{name}.weight", quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, np.ndarray]) -> Path:
    target = tmp_path_factory.mktemp("llama")
    convert_gguf([write_gguf(target / "tiny.gguf", weights)], target)
    return target


def test_weights_have_their_values_and_names(folder: Path, weights: dict[str, np.ndarray]):
    converted = load_file(folder / "model.safetensors")
    assert converted.keys() == weights.keys()
    for name, values in weights.items():
        np.testing.assert_array_equal(converted[name], values, err_msg=name)


def test_untied_output_is_kept(tmp_path: Path, weights: dict[str, np.ndarray]):
    convert_gguf([write_gguf(tmp_path / "tiny.gguf", weights, tied=False)], tmp_path)
    converted = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(converted["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert not json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]


def test_rotary_permutation_of_one_head():
    weight = np.array([[0], [2], [4], [1], [3], [5]])  # a head of 6: halves 0 2 4 and 1 3 5
    interleaved = np.array([[0], [1], [2], [3], [4], [5]])
    np.testing.assert_array_equal(undo_rotary_permutation(interleaved, heads=1), weight)


def test_config(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(TOKENS),
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "max_position_embeddings": 40,
        "rms_norm_eps": 1e-6,
        "rope_theta": 12345.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    assert {name: config[name] for name in expected} == expected


def test_tokenizer(folder: Path):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoded = tokenizer.encode("in the 12<|im_end|>é")
    assert encoded.tokens == ["i", "n", "Ġthe", "Ġ", "1", "2", "<|im_end|>", "Ã", "©"]
    assert encoded.ids[6] == 2
    assert tokenizer.decode(encoded.ids, skip_special_tokens=True) == "in the 12é"


def test_tokenizer_config(folder: Path):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    specials = {name: config[f"{name}_token"] for name in ("bos", "eos", "pad", "unk")}
    assert specials == {
        "bos": "<|im_start|>",
        "eos": "<|im_end|>",
        "pad": "<|im_end|>",
        "unk": "<|endoftext|>",
    }
    assert config["chat_template"] == "{{ messages[0].content }}"
    assert config["model_max_length"] == 40


def test_another_pre_tokenizer_is_an_error(tmp_path: Path, weights: dict[str, np.ndarray]):
    path = write_gguf(tmp_path / "tiny.gguf", weights, pre_tokenizer="qwen2")
    with pytest.raises(DyntokError, match=r"tiny\.gguf: .*qwen2"):
        convert_gguf([path], tmp_path)
