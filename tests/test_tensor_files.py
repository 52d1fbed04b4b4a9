"""The safetensors reader and writer against the format's own library."""

from __future__ import annotations

import resource

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dyntok_jax.tensor_files import (
    LazyTensor,
    file_metadata,
    file_tensors,
    stored_tensors,
    write_tensors,
)
from dyntok_jax.types import DyntokError

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([1.5, -2.0], np.float16),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(3.0, np.float32),
    "ünïcode transposed": np.arange(8, dtype=np.float32).reshape(4, 2).T,
    "half": np.array([[0.5]], ml_dtypes.bfloat16),
}


def test_reads_and_maps_what_the_library_writes(tmp_path):
    dense = {name: np.asarray(values, order="C") for name, values in TENSORS.items()}
    save_file(dense, tmp_path / "model.safetensors", {"format": "pt"})
    stored = stored_tensors(tmp_path)
    assert stored.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        values = stored[name].read()
        assert values.dtype == expected.dtype and values.shape == expected.shape
        np.testing.assert_array_equal(values, expected)
    mapped = stored["b"].map()
    np.testing.assert_array_equal(mapped, TENSORS["b"])
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable


def test_the_library_reads_what_is_written(tmp_path):
    path = tmp_path / "out.safetensors"
    half = {"a": "F16", "half": "BF16"}
    lazy = {k: LazyTensor(v.shape, lambda v=v: v, half.get(k, "F32")) for k, v in TENSORS.items()}
    write_tensors(path, lazy)
    written = load_file(path)
    assert written.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert written[name].dtype == expected.dtype
        np.testing.assert_array_equal(written[name], expected)
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match=r"x: values \(2,\), declared \(3,\)"):
        write_tensors(path, {"x": LazyTensor((3,), lambda: np.zeros(2))})
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """A limit on the size of files stands for the full disk."""
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(DyntokError, match=r"out\.safetensors: cannot be written \(File too"):
            write_tensors(path, {"x": LazyTensor((9_000,), lambda: np.zeros(9_000))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_a_header_that_contradicts_itself_is_refused(tmp_path):
    save_file({"x": np.zeros((2, 3), np.float32)}, tmp_path / "model.safetensors")
    raw = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(raw.replace(b"[2,3]", b"[2,4]"))
    with pytest.raises(DyntokError, match=r"not a whole safetensors file \(x \(2, 4\) has 24 byt"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("metadata", ['["x"]', '"x"', '{"x": 1}', "[" * 100_000])
def test_a_header_that_is_none_is_refused(tmp_path, metadata):
    header = f'{{"__metadata__": {metadata}}}'.encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(DyntokError, match=r"x: not a whole safetensors file \("):
        file_tensors(tmp_path / "x")


def test_a_header_may_say_nothing_of_itself(tmp_path):
    header = b'{"__metadata__": null}'
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header)
    assert file_tensors(tmp_path / "x") == file_metadata(tmp_path / "x") == {}


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    for shard in ("1", "2"):
        save_file({"x": np.zeros(1, np.float32)}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "1", "y": "2"}}')
    with pytest.raises(DyntokError, match="also in another shard: x"):
        stored_tensors(tmp_path)
    index.write_text('{"weight_map": {"x": "1", "y": "3"}}')
    with pytest.raises(DyntokError, match="3: No such file"):
        stored_tensors(tmp_path)
