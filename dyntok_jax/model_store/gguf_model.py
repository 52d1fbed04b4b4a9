"""A Llama model in llama.cpp's GGUF format -> a folder in Hugging Face layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dyntok_jax.model_store.layout import (
    tokenizer_config,
    write_json,
)
from dyntok_jax.tensor_files import LazyTensor, write_tensors
from dyntok_jax.types import DyntokError

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPECIALS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "pad_token": "padding",
    "unk_token": "unknown",
}
_CONTROL_TOKEN = 3


def convert_gguf(files: Sequence[Path], folder: Path) -> None:
    """Convert a GGUF Llama with a `smollm` byte-level BPE tokenizer.

    Args:
        files: the GGUF file.
        folder: receives config.json, model.safetensors (float32), tokenizer.json and
            tokenizer_config.json.

    Raises:
        DyntokError: another architecture or another pre-tokenizer.
    """
    from gguf import GGUFReader

    reader = GGUFReader(files[0])
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    kind = metadata.get("general.architecture"), metadata.get("tokenizer.ggml.pre")
    if kind != ("llama", "smollm"):
        raise DyntokError(
            f"{files[0].name}: architecture and pre-tokenizer are {kind}, not ('llama', 'smollm')"
        )
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = llama_config(metadata, tied)
    write_json(folder / "config.json", config)
    write_tensors(folder / "model.safetensors", llama_tensors(reader, config))
    write_json(folder / "tokenizer.json", smollm_tokenizer(metadata))
    specials = {
        name: metadata["tokenizer.ggml.tokens"][metadata[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in _SPECIALS.items()
    }
    template = metadata.get("tokenizer.chat_template")
    length = config["max_position_embeddings"]
    write_json(folder / "tokenizer_config.json", tokenizer_config(specials, length, template))


def llama_config(metadata: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """Content of `config.json`.

    Args:
        metadata: the file's key-value pairs.
        tied: whether the output rows are the input rows.
    """
    heads = metadata["llama.attention.head_count"]
    width = metadata["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": width // heads,
        "hidden_act": "silu",
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": _shortest_decimal(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": _shortest_decimal(metadata["llama.rope.freq_base"]),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def llama_tensors(reader: GGUFReader, config: dict[str, Any]) -> dict[str, LazyTensor]:
    """The tensors under their Hugging Face names, dequantized to float32 when written."""
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    tensors = {}
    for tensor in reader.tensors:
        *prefix, stem, suffix = tensor.name.split(".")
        if prefix:
            name = f"model.layers.{prefix[1]}.{_LAYER_NAMES[stem]}.{suffix}"
        else:
            name = f"{_TOP_NAMES[stem]}.{suffix}"
        shape = tuple(int(size) for size in reversed(tensor.shape))
        tensors[name] = LazyTensor(shape, partial(_float32, tensor, shape, heads.get(stem)))
    return tensors


def undo_rotary_permutation(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix back into Hugging Face's order.

    llama.cpp interleaves the two halves of every head (row 0, row H/2, row 1, ...), because it
    rotates neighbouring pairs where Hugging Face rotates the halves against each other.

    Args:
        weight: (N·H, D), interleaved.
        heads: N.

    Returns:
        (N·H, D), halves one after the other.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def smollm_tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Content of `tokenizer.json`: byte-level BPE in which every digit is a pre-token.

    Args:
        metadata: the file's key-value pairs.
    """
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": token, **flags, "special": True}
            for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == _CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**byte_level, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def _float32(tensor: ReaderTensor, shape: tuple[int, ...], heads: int | None) -> np.ndarray:
    from gguf.quants import dequantize

    values = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    return values if heads is None else undo_rotary_permutation(values, heads)


def _shortest_decimal(number: float) -> float:
    # GGUF holds float32; 1e-5 read as a double would be 9.999999747378752e-06.
    return float(str(np.float32(number)))
