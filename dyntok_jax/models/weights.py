"""Models read from and written to Hugging Face layout, strictly."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from dyntok_jax.files import atomic_path
from dyntok_jax.models.decoder import Decoder, DecoderConfig
from dyntok_jax.models.encoder import Encoder, EncoderConfig
from dyntok_jax.models.heads import MaskedLanguageModel, SequenceClassifier, TokenClassifier
from dyntok_jax.models.hf_config import Architecture, read_architecture
from dyntok_jax.models.hf_names import NameTable, name_table
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.tensor_files import (
    DTYPES,
    LazyTensor,
    StoredTensor,
    stored_tensors,
    write_tensors,
)
from dyntok_jax.types import DyntokError, Rows

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


class LoadedModel(NamedTuple):
    """A model on the host.

    Attributes:
        architecture: what the checkpoint holds.
        params: parameters of :func:`model_module`, float32 host arrays.
        head_params: parameters of :func:`head_module`, None without one.
        source: the model's own rows as read-only memory maps in their stored dtype (float32,
            float16 or bfloat16); ``output`` is None where tied, and where there is no output layer.
        hf_config: the content of ``config.json``.
    """

    architecture: Architecture
    params: dict[str, Any]
    head_params: dict[str, Any] | None
    source: Rows
    hf_config: dict[str, Any]

    @property
    def kind(self) -> Literal["encoder", "decoder"]:
        """Whether it reads both ways or left to right."""
        return "encoder" if isinstance(self.config, EncoderConfig) else "decoder"

    @property
    def config(self) -> EncoderConfig | DecoderConfig:
        """Shape of the model."""
        return self.architecture.config


def model_module(
    architecture: Architecture, dtype: DTypeLike = jnp.float32, remat: bool = False
) -> Encoder | Decoder:
    """The module that runs a model, without its head."""
    config = architecture.config
    if isinstance(config, EncoderConfig):
        return Encoder(config, dtype, remat)
    return Decoder(config, dtype, remat)


def first_layers(model: LoadedModel, count: int) -> LoadedModel:
    """A model's first layers (all, if it has no more); a decoder's last norm follows them too.

    The parameters are copies, so that the other layers need not stay in memory.
    """
    config = replace(model.config, layers=min(count, model.config.layers))
    key = "layers" if isinstance(model.config, DecoderConfig) else "stack"
    cut = jax.tree.map(lambda stacked: np.array(stacked[:count]), model.params[key])
    architecture = replace(model.architecture, config=config)
    params = {**model.params, key: cut}
    return model._replace(architecture=architecture, params=params, head_params=None)


def head_module(architecture: Architecture, dtype: DTypeLike = jnp.float32) -> nn.Module | None:
    """The module of a model's head; None without a head, and for decoders (``heads.logits``)."""
    config, classes = architecture.config, len(architecture.labels)
    if architecture.head == "sequence":
        return SequenceClassifier(classes, dtype)
    if architecture.head == "token":
        return TokenClassifier(classes, dtype)
    if architecture.head == "masked_lm" and isinstance(config, EncoderConfig):
        is_bert = architecture.model_type == "bert"  # RoBERTa's head has GELU, whatever its layers
        activation = config.activation if is_bert else "gelu"
        return MaskedLanguageModel(activation, config.layer_norm_eps, dtype)
    return None


def load_model(folder: Path) -> LoadedModel:
    """Read ``config.json`` and ``model.safetensors`` (or shards) of a folder.

    Parameters are read tensor by tensor into their final place, so that little more than the model
    itself is ever in memory; the embedding tables are mapped, not read. The arrays lie so that
    a CPU device can take them over without a copy.

    Raises:
        DyntokError: a model this package does not have; a damaged file; tensors that are missing,
            not known, or of another shape or dtype, all of them in one line.
    """
    architecture = read_architecture(folder)
    hf_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    table, shapes = name_table(architecture), _shapes(architecture)
    found = _checked(folder, table, _wanted(architecture, table, shapes))
    flat = {path: _aligned(shape) for path, shape in shapes.items()}
    for name, path in table.parameters.items():
        if path in flat:
            for tensor, part in zip(_layers(name, found), _parts(name, flat[path]), strict=True):
                np.copyto(part, _oriented(path, tensor.read()))
    params = unflatten_dict(flat, sep="/")
    source = Rows(**{field: found[name].map() for name, field in table.source.items()})
    return LoadedModel(architecture, params["model"], params.get("head"), source, hf_config)


def load_source(folder: Path) -> Rows:
    """The model's own rows alone, as in :class:`LoadedModel`; the whole checkpoint is checked.

    Raises:
        DyntokError: as :func:`load_model`.
    """
    architecture = read_architecture(folder)
    table = name_table(architecture)
    found = _checked(folder, table, _wanted(architecture, table, _shapes(architecture)))
    return Rows(**{field: found[name].map() for name, field in table.source.items()})


def copy_companions(base: Path, folder: Path) -> None:
    """Copy the files of a model's folder that stand beside its weights and ``config.json``."""
    for name in COMPANIONS:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def save_model(folder: Path, model: LoadedModel) -> None:
    """Write a model in Hugging Face layout, float32, as transformers' own classes load it.

    Args:
        folder: is made if needed; its ``config.json`` and ``model.safetensors`` are replaced.
        model: as :func:`load_model` gives it; device arrays will do too.
    """
    table, headed = name_table(model.architecture), model.architecture.head is not None
    flat = flatten_dict({"model": model.params, "head": model.head_params or {}}, sep="/")
    tensors: dict[str, LazyTensor] = {}
    for name, path in table.parameters.items():
        if path in flat:
            for i, part in enumerate(_parts(name, flat[path])):
                tensors[name.format(i)] = _written(path, part)
    for name, field in table.source.items():
        tensors[name] = _written(field, getattr(model.source, field))
    if model.source.output is not None:
        tensors |= {second: tensors[first] for second, first in table.second.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(
        folder / "model.safetensors",
        {table.full(name, headed): tensor for name, tensor in sorted(tensors.items())},
    )
    dtype = "dtype" if "dtype" in model.hf_config else "torch_dtype"
    config = model.hf_config | {dtype: "float32"}
    with atomic_path(folder / "config.json") as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, by its path below ``model`` and ``head``."""
    config, head = architecture.config, head_module(architecture)
    trees = {"model": abstract_params(model_module(architecture))}
    if head is not None:
        hidden = jnp.zeros((1, 1, config.width))
        rows = [jnp.zeros((1, config.width))] if architecture.head == "masked_lm" else []
        trees["head"] = abstract_params(head, hidden, *rows)
    flat: dict[str, Any] = flatten_dict(nn.unbox(trees), sep="/")  # pyright: ignore
    return {path: leaf.shape for path, leaf in flat.items()}


def _wanted(
    architecture: Architecture, table: NameTable, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor a checkpoint must have, by plain name."""
    config = architecture.config
    wanted: dict[str, tuple[int, ...]] = {}
    for name, path in table.parameters.items():
        if path in shapes:
            stacked = "{}" in name
            shape = shapes[path][1:] if stacked else shapes[path]
            shape = shape[::-1] if path.endswith("/kernel") else shape
            wanted |= {name.format(i): shape for i in range(config.layers if stacked else 1)}
    for name, field in table.source.items():
        wanted[name] = (config.vocab_size, config.width)[: 1 if field == "bias" else 2]
    return wanted


def _checked(
    folder: Path, table: NameTable, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, StoredTensor]:
    """The stored tensors by plain name; anything that does not fit is an error."""
    found: dict[str, StoredTensor] = {}
    faults: dict[str, list[str]] = {"missing": [], "unexpected": [], "mis-shaped": [], "dtype": []}
    for name, tensor in stored_tensors(folder).items():
        plain = table.plain(name)
        if re.fullmatch(table.ignored, plain):
            continue
        if plain in found:
            faults["unexpected"].append(f"{name} (beside {found[plain].name})")
        found[plain] = tensor
    for second, first in table.second.items():
        if second in found:
            found.setdefault(first, found.pop(second))
    faults["missing"] = [name for name in wanted if name not in found]
    for plain, tensor in found.items():
        if plain not in wanted:
            faults["unexpected"].append(tensor.name)
        elif tensor.shape != wanted[plain]:
            faults["mis-shaped"].append(f"{tensor.name} {tensor.shape}, not {wanted[plain]}")
        elif tensor.dtype not in DTYPES:
            faults["dtype"].append(f"{tensor.name} {tensor.dtype}, not {' or '.join(DTYPES)}")
    said = [f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names]
    if said:
        raise DyntokError(f"{folder}: weights do not fit config.json; {'; '.join(said)}")
    return found


def _layers(name: str, found: Mapping[str, StoredTensor]) -> Iterator[StoredTensor]:
    """The tensors of a name: of every layer, or the one there is."""
    if "{}" not in name:
        yield found[name]
        return
    for layer in itertools.count():
        if name.format(layer) not in found:
            return
        yield found[name.format(layer)]


def _parts(name: str, array: Any) -> Any:
    """What each of a name's tensors holds: a layer of the array, or all of it."""
    return array if "{}" in name else [array]


def _oriented(path: str, array: np.ndarray) -> np.ndarray:
    """From the stored order of axes to ours, or back."""
    return array.T if path.endswith("/kernel") else array


def _written(path: str, array: Any) -> LazyTensor:
    shape = array.shape[::-1] if path.endswith("/kernel") else array.shape
    return LazyTensor(shape, lambda: _oriented(path, np.asarray(array, np.float32)))


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty float32 array at a multiple of 64 bytes, which XLA asks of memory it takes over."""
    size = 4 * math.prod(shape)
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)
