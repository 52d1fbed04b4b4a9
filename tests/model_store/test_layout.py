"""Files of a model folder are what their readers expect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dyntok_jax.model_store.layout import LazyTensor, tokenizer_config, write_safetensors


def test_safetensors_are_read_back(tmp_path: Path):
    rng = np.random.default_rng(0)
    tensors = {
        "matrix": rng.normal(size=(3, 5)).astype(np.float32),
        "ünïcode": rng.normal(size=7).astype(np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "transposed": rng.normal(size=(4, 2)).astype(np.float32).T,
    }
    path = tmp_path / "model.safetensors"
    lazy = {name: LazyTensor(array.shape, lambda a=array: a) for name, array in tensors.items()}
    write_safetensors(path, lazy)
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(read[name], array)
    header_size = int.from_bytes(path.read_bytes()[:8], "little")
    assert header_size % 8 == 0


def test_values_of_another_shape_are_an_error(tmp_path: Path):
    lazy = {"w": LazyTensor((2, 3), lambda: np.zeros((3, 2), np.float32))}
    with pytest.raises(ValueError, match=r"w: values \(3, 2\), declared \(2, 3\)"):
        write_safetensors(tmp_path / "model.safetensors", lazy)


def test_tokenizer_config_has_a_template_only_where_there_is_one():
    assert "chat_template" not in tokenizer_config({"bos_token": "<s>"}, 8)
    config = tokenizer_config({"bos_token": "<s>"}, 8, "{{ messages }}")
    assert config["chat_template"] == "{{ messages }}"
    assert (config["bos_token"], config["model_max_length"]) == ("<s>", 8)
