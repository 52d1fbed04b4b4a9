"""Released ZeTT hypernetworks, read and written in both of their formats.

A checkpoint is a folder with ``config.json`` and ``model.safetensors`` (torch's names and layout)
or ``flax_model.msgpack`` (flax's). Both are plain data: nothing in them is ever executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.serialization
import jax
import numpy as np
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from dyntok_jax.embed.hypernet import HypernetConfig, abstract_hypernet
from dyntok_jax.files import atomic_path
from dyntok_jax.tensor_files import stored_tensors
from dyntok_jax.types import DyntokError

Format = Literal["safetensors", "msgpack"]
FILES: dict[Format, str] = {"safetensors": "model.safetensors", "msgpack": "flax_model.msgpack"}

SIZES = {
    "n_embd": "width",
    "hn_hidden_size": "hidden",
    "hn_intermediate_size": "feed_forward",
    "hn_n_layers": "layers",
    "hn_surface_maxlen": "surface_length",
    "original_vocab_size": "vocab_size",
    "hn_n_extra_tokens": "extra_tokens",
    "pad_token_id": "pad_id",
}
FLAGS = {
    "hn_rescale_embeddings": "rescale",
    "hn_predict_bias": "predict_bias",
    "hn_single_head": "single_head",
    "separate_out_embeddings": "separate_output",
}
OWN_FLAGS = {"fvt_residual": "residual", "native_tokenizer": "native"}
OWN_SIZES = {"model_layers": "model_layers"}
FIXED = {
    "hn_model_type": "roberta",
    "hn_embed_using_source_embeddings": True,
    "hn_embed_target_priors": False,
    "hn_add_inter_token_attention": False,
    "hn_concat_last_hidden_state": False,
    "hn_language_adapter_bottleneck_dim": 0,
}
INERT = {
    "hn_model_name_or_path": "roberta-base",
    "hn_inter_token_attention_bias_by_priors": True,
    "hn_inter_token_attention_bias_scaler": 1.0,
    "hn_n_inter_token_blocks": 16,
    "use_unigram_bias": True,
}
"""Fields of config.json: sizes and flags by the names of ``HypernetConfig``, flags and sizes that
the original does not have and that are written only where they are set, the one supported value of
others, and those that change nothing here, as the original writes them."""

REQUIRED = (
    *SIZES,
    "hn_rescale_embeddings",
    "hn_predict_bias",
    "hn_embed_using_source_embeddings",
)

MODULES = {
    "extra": "fallback_embeddings/embedding",
    "rescale_source": "in_scaler",
    "read": "input_projection/layers_0",
    "read_projector": "input_projection/layers_1",
    "positions": "model/embeddings/position_embeddings/embedding",
    "token_types": "model/embeddings/token_type_embeddings/embedding",
    "languages": "model/embeddings/lang_embedding/embedding",
    "states_norm": "states_projection/layers_0",
    "states_down": "states_projection/layers_1",
    "states_up": "states_projection/layers_2",
    "embedding_norm": "model/embeddings/LayerNorm",
    "head_projector": "output_projection/layers_0",
    "head": "output_projection/layers_1",
    "output_head_projector": "output_projection_out/layers_0",
    "output_head": "output_projection_out/layers_1",
    "rescale": "scaler",
    "rescale_output": "out_scaler",
    "bias": "bias_projection",
}
LAYER_MODULES = {
    "attention/query": "attention/self/query",
    "attention/key": "attention/self/key",
    "attention/value": "attention/self/value",
    "attention/output": "attention/output/dense",
    "attention_norm": "attention/output/LayerNorm",
    "up": "intermediate/dense",
    "down": "output/dense",
    "feed_forward_norm": "output/LayerNorm",
}
LEAVES = {"norm": "ln", "factor": "w", "shift": "b"}
"""This project's names, and those of the original's flax parameters."""

STACK, LAST = "stack/layers/", "last/"
TORCH_LANGUAGES = "lang_embeddings.weight"
TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}

UNREAD: dict[Format, str] = {
    "safetensors": "model.embeddings.word_embeddings.weight",
    "msgpack": "model/encoder/layer/inter_token_blocks",
}
"""The tensor of each format that no forward reads."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        config: shape of the hypernetwork.
        params: its parameters as ``Hypernet`` takes them, numpy float32.
        unread: tensors that no forward reads, by their name in the file.
    """

    config: HypernetConfig
    params: dict[str, Any]
    unread: dict[str, np.ndarray] = field(default_factory=dict)


def load_hypernet(folder: Path) -> tuple[HypernetConfig, dict[str, Any]]:
    """Configuration and parameters of a released hypernetwork; see :func:`read_checkpoint`."""
    checkpoint = read_checkpoint(folder)
    return checkpoint.config, checkpoint.params


def table_size(folder: Path) -> int:
    """Rows of a hypernetwork's language table; 0 without one.

    Raises:
        DyntokError: no config.json of a supported hypernetwork there.
    """
    path = folder / "config.json"
    return config_fields(_read_config(path), path)["languages"]


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a released hypernetwork; safetensors where the folder has both formats.

    Raises:
        DyntokError: no checkpoint there, one of a variant that is not supported, or one with
            missing, unexpected or mis-shaped tensors (all of them in the one error).
    """
    format = _format_of(folder)
    fields = _read_config(folder / "config.json")
    path = folder / FILES[format]
    tensors = _read_tensors(folder, format)
    unread = {name: np.array(tensors.pop(name)) for name in [UNREAD[format]] if name in tensors}
    config = HypernetConfig(**config_fields(fields, folder / "config.json"))
    positions = tensors.get(_name("positions", None, format), np.zeros(config.max_positions))
    config = replace(config, max_positions=max(len(positions), config.surface_length))
    stored = _stored(config, format)
    _check(path, stored, tensors)
    params: dict[str, list[np.ndarray]] = {}
    for part in stored:
        # A mapped file's kind of array cannot be put on devices of several processes.
        tensor = np.array(tensors[part.name], np.float32)
        params.setdefault(part.path, []).append(tensor.T if part.transposed else tensor)
    flat = {
        path: np.stack(parts) if path.startswith(STACK) else parts[0]
        for path, parts in params.items()
    }
    return Checkpoint(config, unflatten_dict(flat, sep="/"), unread)


def save_hypernet(
    folder: Path,
    config: HypernetConfig,
    params: Mapping[str, Any],
    format: Format = "safetensors",
    unread: Mapping[str, np.ndarray] | None = None,
    dtype: DTypeLike = np.float32,
) -> None:
    """Write a hypernetwork as the original does: config.json and one file of tensors.

    Args:
        folder: made where it does not exist.
        config: shape of the hypernetwork.
        params: its parameters, boxed or not, on host or device.
        format: of the tensors.
        unread: tensors of the format that no forward reads; zeros where not given.
        dtype: of the tensors in the file.

    Raises:
        DyntokError: the folder holds tensors in the other format, which would stay as they are; it
            cannot be made or written.
    """
    other = next(file for name, file in FILES.items() if name != format)
    if (folder / other).exists():
        raise DyntokError(f"{folder}: holds another {other}; choose a new folder")
    arrays = jax.tree.map(np.asarray, meta.unbox(dict(params)))
    flat: dict[str, Any] = {**flatten_dict(arrays, sep="/")}
    tensors = {}
    for part in _stored(config, format):
        tensor = flat[part.path] if part.layer is None else flat[part.path][part.layer]
        tensors[part.name] = np.ascontiguousarray(tensor.T if part.transposed else tensor, dtype)
    rows = {"safetensors": config.pad_id + 1, "msgpack": INERT["hn_n_inter_token_blocks"]}
    name = UNREAD[format]
    zeros = np.zeros((rows[format], config.hidden), dtype)
    tensors[name] = (unread or {}).get(name, zeros)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DyntokError(f"{folder}: cannot be written ({error.strerror})") from error
    text = json.dumps(config_to_json(config, dtype), indent=2, sort_keys=True) + "\n"
    # Neither takes its place before both are written.
    with atomic_path(folder / FILES[format]) as path:
        _write_tensors(path, tensors, format)
        with atomic_path(folder / "config.json") as beside:
            beside.write_text(text, "utf-8")


def config_fields(fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Fields of ``HypernetConfig`` from those of config.json.

    Raises:
        DyntokError: missing or unknown fields, values of the wrong type, unsupported variants; all
            of them in the one error.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    problems = [f"{name} is missing" for name in REQUIRED if name not in fields]
    kinds = dict.fromkeys([*SIZES, *OWN_SIZES, "n_langs", "hn_num_attention_heads"], int)
    kinds |= dict.fromkeys([*FLAGS, *OWN_FLAGS, "hn_embed_lang_id"], bool)
    problems += [
        f"{name} is {fields[name]!r}, not {'true or false' if kind is bool else 'a whole number'}"
        for name, kind in kinds.items()
        if type(fields.get(name, kind())) is not kind
    ]
    problems += [
        f"{name} is {fields[name]!r}; only {value!r} is supported"
        for name, value in FIXED.items()
        if fields.get(name, value) != value
    ]
    known = {*FIXED, *INERT, *kinds}
    problems += [f"{n} is unknown" for n in fields if n.startswith("hn_") and n not in known]
    if problems:
        raise DyntokError(f"{path}: {'; '.join(problems)}")
    found = {own: fields[name] for name, own in SIZES.items()}
    found |= {own: fields.get(name, False) for name, own in (FLAGS | OWN_FLAGS).items()}
    found |= {own: fields.get(name, 0) for name, own in OWN_SIZES.items()}
    if found["model_layers"] < 0:
        raise DyntokError(f"{path}: model_layers is {found['model_layers']}, not 0 or more")
    if found["model_layers"] and (found["extra_tokens"] or not found["native"]):
        raise DyntokError(f"{path}: model_layers needs native_tokenizer, and no extra tokens")
    found["heads"] = fields.get("hn_num_attention_heads", max(1, found["hidden"] // 64))
    found["languages"] = fields.get("n_langs", 0) if fields.get("hn_embed_lang_id") else 0
    if found["hidden"] % found["heads"]:
        raise DyntokError(f"{path}: {found['hidden']} hidden units for {found['heads']} heads")
    return found


def config_to_json(config: HypernetConfig, dtype: DTypeLike = np.float32) -> dict[str, Any]:
    """Fields of config.json, as the original reads them."""
    return {
        "architectures": ["ZettHypernet"],
        **{name: getattr(config, own) for name, own in (SIZES | FLAGS).items()},
        **{
            name: value
            for name, own in (OWN_FLAGS | OWN_SIZES).items()
            if (value := getattr(config, own))
        },
        **FIXED,
        **INERT,
        "hn_num_attention_heads": config.heads,
        "hn_embed_lang_id": config.languages > 0,
        "n_langs": max(config.languages, 1),
        "torch_dtype": np.dtype(dtype).name,
    }


class Stored(NamedTuple):
    """Where a parameter, or one layer of it, is in a file.

    Attributes:
        path: of the parameter.
        layer: which of its stacked layers; None where it has none.
        name: of the tensor in the file.
        shape: of the tensor.
        transposed: the tensor is the transposed parameter.
    """

    path: str
    layer: int | None
    name: str
    shape: tuple[int, ...]
    transposed: bool


def _stored(config: HypernetConfig, format: Format) -> list[Stored]:
    """All tensors of a file, from the parameters the hypernetwork declares."""
    stored = []
    leaves: dict[str, Any] = {**flatten_dict(meta.unbox(abstract_hypernet(config)), sep="/")}
    for path, leaf in leaves.items():
        transposed = format == "safetensors" and path.endswith("kernel")
        stacked = path.startswith(STACK)
        shape = leaf.shape[1:] if stacked else leaf.shape
        shape = shape[::-1] if transposed else shape
        for layer in range(config.layers - 1) if stacked else [None]:
            number = config.layers - 1 if path.startswith(LAST) else layer
            stored.append(Stored(path, layer, _name(path, number, format), shape, transposed))
    return stored


def _name(path: str, layer: int | None, format: Format) -> str:
    """A parameter's name in a file."""
    if layer is not None:
        module, leaf = path.removeprefix(STACK).removeprefix(LAST).rsplit("/", 1)
        name = f"model/encoder/layer/{layer}/{LAYER_MODULES[module]}/{leaf}"
    else:
        module, *rest = path.split("/")
        name = "/".join([MODULES[module], *(LEAVES.get(part, part) for part in rest)])
    if format == "msgpack":
        return name
    if name == MODULES["languages"]:
        return TORCH_LANGUAGES
    module, leaf = re.sub(r"layers_(\d)", r"\1", name).replace("/", ".").rsplit(".", 1)
    return f"{module}.{TORCH_LEAVES.get(leaf, leaf)}"


def _check(path: Path, stored: list[Stored], tensors: Mapping[str, np.ndarray]) -> None:
    wanted = {part.name: part.shape for part in stored}
    problems = [f"missing {name}" for name in wanted.keys() - tensors.keys()]
    problems += [f"unexpected {name}" for name in tensors.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {tensors[name].shape}, not {shape}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        raise DyntokError(f"{path}: {'; '.join(sorted(problems))}")


def _format_of(folder: Path) -> Format:
    for format, file in FILES.items():
        # A large checkpoint is in shards, which an index names.
        if (folder / file).is_file() or (folder / f"{file}.index.json").is_file():
            return format
    if (folder / "pytorch_model.bin").exists():
        raise DyntokError(
            f"{folder}: only pytorch_model.bin, a pickle, which can run code when it is read; "
            "save it as model.safetensors with the library that wrote it"
        )
    raise DyntokError(f"{folder}: no hypernetwork there ({' or '.join(FILES.values())})")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DyntokError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(fields, dict):
        raise DyntokError(f"{path}: not a JSON object")
    return fields


def _read_tensors(folder: Path, format: Format) -> dict[str, np.ndarray]:
    """Tensors by their name in the file; those of safetensors are memory maps."""
    path = folder / FILES[format]
    try:
        if format == "safetensors":
            return {name: tensor.map() for name, tensor in stored_tensors(folder).items()}
        # Restores numbers, strings, containers and arrays only; never unpickles.
        tree = flax.serialization.msgpack_restore(path.read_bytes())
        flat: dict[str, Any] = {**flatten_dict(tree, sep="/")}
    except DyntokError:
        raise
    except Exception as error:  # msgpack, flax and numpy have their own errors for a damaged file
        raise DyntokError(f"{path}: damaged, or not {format} ({error})") from error
    strange = [name for name, value in flat.items() if not isinstance(value, np.ndarray)]
    if strange:
        raise DyntokError(f"{path}: not arrays: {', '.join(map(str, strange))}")
    return flat


def _write_tensors(path: Path, tensors: dict[str, np.ndarray], format: Format) -> None:
    if format == "safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        tree = unflatten_dict(tensors, sep="/")
        path.write_bytes(flax.serialization.msgpack_serialize(tree))
