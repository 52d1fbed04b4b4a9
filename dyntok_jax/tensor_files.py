"""Safetensors files read tensor by tensor and written tensor by tensor, in little memory.

The format (https://github.com/huggingface/safetensors): 8 bytes little-endian length of a JSON
header ``{name: {dtype, shape, data_offsets}}``, the header, the tensors' bytes. The library's own
readers and writers hold a whole model beside the one being loaded or saved.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from dyntok_jax.files import atomic_path
from dyntok_jax.types import DyntokError

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


class LazyTensor(NamedTuple):
    """A tensor whose values are computed only when it is written.

    Attributes:
        shape: of the array that ``load`` returns.
        load: gives the values.
        dtype: that they are written in, by the format's name.
    """

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    dtype: str = "F32"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        name: its name in the file.
        path: file.
        dtype: the format's name of the dtype, such as ``BF16``.
        shape: sizes of the axes.
        offset: its first byte in the file.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        """The values, in memory of their own."""
        values = np.fromfile(
            self.path, DTYPES[self.dtype], math.prod(self.shape), offset=self.offset
        )
        return values.reshape(self.shape)

    def map(self) -> np.ndarray:
        """The values as a read-only memory map; only what is looked at is read."""
        raw = np.memmap(self.path, np.uint8, "r", self.offset, self.bytes)
        return raw.view(DTYPES[self.dtype]).reshape(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of ``model.safetensors``, or of the shards its index names.

    Raises:
        DyntokError: no such file, or one that is damaged.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        paths = [single]
    elif index.is_file():
        try:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            paths = [folder / Path(shard).name for shard in sorted(set(shards))]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise DyntokError(f"{index}: not an index of safetensors shards") from error
    else:
        raise DyntokError(f"{folder}: no weights (model.safetensors, or shards with their index)")
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        header = file_tensors(path)
        if repeated := tensors.keys() & header.keys():
            raise DyntokError(f"{path}: also in another shard: {', '.join(sorted(repeated))}")
        tensors |= header
    return tensors


def file_tensors(path: Path) -> dict[str, StoredTensor]:
    """All tensors of one file.

    Raises:
        DyntokError: no such file, or one that is damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            if start > size:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(start - 8))
        said = header.pop("__metadata__", None) or {}
        if not all(isinstance(text, str) for text in said.values()):
            raise ValueError("its __metadata__ holds something else than texts")
        tensors, ends = {}, [start]
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end:
                raise ValueError(f"{name} lies at {begin} to {end}")
            shape = tuple(entry["shape"])
            tensors[name] = StoredTensor(name, path, entry["dtype"], shape, start + begin)
            if entry["dtype"] in DTYPES and end - begin != tensors[name].bytes:
                raise ValueError(f"{name} {shape} has {end - begin} bytes")
            ends.append(start + end)
        if max(ends) > size:
            raise ValueError(f"it has {size} bytes of {max(ends)}")
    except OSError as error:
        raise DyntokError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DyntokError(f"{path}: not a whole safetensors file ({error})") from error
    return tensors


def file_metadata(path: Path) -> dict[str, str]:
    """What a file says of itself beside its tensors; ``file_tensors`` has to like it first."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header.get("__metadata__") or {}


def encode_header(
    tensors: Mapping[str, tuple[tuple[int, ...], str]],
    metadata: Mapping[str, str] | None = None,
    alignment: int = 8,
) -> bytes:
    """What a file begins with; the tensors follow in order, without gaps.

    Args:
        tensors: shape and dtype by name.
        metadata: what the file says of itself beside them.
        alignment: the first tensor's place in the file is a multiple of it.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, (shape, dtype) in tensors.items():
        begin, end = end, end + np.dtype(DTYPES[dtype]).itemsize * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    # Readers map the tensors, which must lie on their own size at least.
    raw += b" " * (-(8 + len(raw)) % alignment)
    return len(raw).to_bytes(8, "little") + raw


def write_tensors(
    path: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to ``path`` atomically, holding one of them at a time.

    Args:
        path: the file.
        tensors: by name.
        metadata: what the file says of itself beside them.

    Raises:
        ValueError: a tensor's values do not have its declared shape.
        DyntokError: the file cannot be written there.
    """
    shapes = {name: (shape, dtype) for name, (shape, _, dtype) in tensors.items()}
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.write(encode_header(shapes, metadata))
        for name, (shape, load, dtype) in tensors.items():
            array = np.asarray(load(), DTYPES[dtype], order="C")
            if array.shape != shape:
                raise ValueError(f"{name}: values {array.shape}, declared {shape}")
            file.write(array.reshape(-1).view(np.uint8).data)
