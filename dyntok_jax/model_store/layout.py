"""Write the files of a model folder in Hugging Face layout."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np


class LazyTensor(NamedTuple):
    """A tensor whose values are computed only when it is written.

    Attributes:
        shape: of the array that `load` returns.
        load: gives the values, float32.
    """

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write `content` as indented UTF-8 JSON."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write float32 `tensors` one after the other, holding only one of them in memory.

    The library's own writer takes all tensors at once, which for a model of 500 MB costs more
    memory than running it does.

    Raises:
        ValueError: a tensor's values do not have its declared shape.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * math.prod(tensor.shape)
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)  # readers map the data, which must lie on 8-byte steps
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for name, tensor in tensors.items():
            values = np.ascontiguousarray(tensor.load(), "<f4")
            if values.shape != tensor.shape:
                raise ValueError(f"{name}: values {values.shape}, declared {tensor.shape}")
            file.write(values.data)


def tokenizer_config(
    specials: Mapping[str, object], max_length: int, chat_template: str | None = None
) -> dict[str, object]:
    """Content of `tokenizer_config.json` for a `tokenizer.json` that is to be used as it stands.

    The class is the generic one on purpose: the model-specific classes of transformers rebuild
    normalizer and pre-tokenizer and would undo what the file says.

    Args:
        specials: `bos_token`, `pad_token` and so on.
        max_length: tokens the model has positions for.
        chat_template: Jinja template, where the model has one.
    """
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **specials,
    }
    return config | ({"chat_template": chat_template} if chat_template else {})
