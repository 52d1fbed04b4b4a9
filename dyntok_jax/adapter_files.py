"""Files of adapters, as peft has them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dyntok_jax.files import atomic_path
from dyntok_jax.lora import Adapter, headed, numbered_labels
from dyntok_jax.models.hf_config import Architecture
from dyntok_jax.models.hf_names import name_table
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.lora import LoraConfig, abstract_lora, targeted
from dyntok_jax.models.weights import head_module, model_module
from dyntok_jax.tensor_files import (
    DTYPES,
    LazyTensor,
    StoredTensor,
    file_metadata,
    file_tensors,
    stored_tensors,
    write_tensors,
)
from dyntok_jax.types import DyntokError

CONFIG, WEIGHTS, TASK = "adapter_config.json", "adapter_model.safetensors", "task.json"
"""Files of an adapter's folder; the last one is our own."""

PREFIX = "base_model.model."
"""Of every tensor in peft's files."""

HASH = "base_sha256"
"""Key of the base model's hash in the metadata of the weights."""

UNSUPPORTED = (
    "use_dora",
    "use_rslora",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "exclude_modules",
    "target_parameters",
    "lora_bias",
    "use_bdlora",
    "use_qalora",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "kasa_config",
    "monteclora_config",
    "arrow_config",
)
"""Of peft's settings, those that change what an adapter computes or where it is."""

FIRST_VALUES = (True, False, "gaussian", "orthogonal", "eva", "mica")
"""Of peft's ways to begin, those that leave the base model as it was; others take from it what A
and B begin with."""

HEADS = ("sequence", "token")
"""Kinds of heads that are trained and kept with an adapter."""

TASK_TYPES: dict[str, Literal["sequence", "token"] | None] = {
    "SEQ_CLS": "sequence",
    "TOKEN_CLS": "token",
    "CAUSAL_LM": None,
    "FEATURE_EXTRACTION": None,
}
"""peft's names of the heads; the last two are of adapters without one."""


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


SAID: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "labels": ("a list of names", lambda v: isinstance(v, list) and all(map(_is_name, v))),
    "task": ("a name", _is_name),
    "seed": ("a whole number", lambda v: type(v) is int),
    "rows": ("a name", _is_name),
    "row_provider": ("a name", _is_name),
    "tokenization": ("a mapping", lambda v: isinstance(v, dict)),
}
"""What is read of ``task.json``, where it is there."""


def write_adapter(
    folder: Path, adapter: Adapter, architecture: Architecture, name: str, dtype: str = "F32"
) -> None:
    """Write an adapter as peft writes it, with ``task.json`` beside.

    Args:
        folder: is made if needed; its files are replaced.
        adapter: what to write.
        architecture: of the base model.
        name: the base model's name or folder, for peft.
        dtype: of the file's tensors, as safetensors names it.

    Raises:
        DyntokError: the folder cannot be written.
    """
    whole = headed(architecture, adapter.kind, adapter.labels)
    flat: Any = flatten_dict({"lora": adapter.lora, "head": adapter.head or {}}, sep="/")
    tensors: dict[str, LazyTensor] = {}
    for stored, path in sorted(_stored(whole, adapter.config).items()):
        for i, part in enumerate(flat[path] if "{}" in stored else [flat[path]]):
            array = np.asarray(part).T
            tensors[stored.format(i)] = LazyTensor(array.shape, lambda array=array: array, dtype)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DyntokError(f"{folder}: cannot be written ({error.strerror})") from error
    # The weights go first and come last: without them a folder is no adapter, and those of an
    # older one do not stand beside what is said of this one.
    (folder / WEIGHTS).unlink(missing_ok=True)
    _write_json(folder / CONFIG, _peft_config(adapter, whole, name))
    _write_json(folder / TASK, {**adapter.task, "labels": list(adapter.labels)})
    write_tensors(folder / WEIGHTS, tensors, {HASH: adapter.base} if adapter.base else None)


def read_adapter(folder: Path, architecture: Architecture, base: Path | None = None) -> Adapter:
    """Read an adapter that this package or peft wrote.

    Args:
        folder: holds ``adapter_config.json``, ``adapter_model.safetensors`` and, if it is ours,
            ``task.json``.
        architecture: of the base model.
        base: folder of the base model, whose pooler below a BERT's classifier peft leaves as it is
            by default, and does not save.

    Raises:
        DyntokError: files that are missing or damaged, kinds of adapters that are not supported,
            tensors that are missing, not known or of another shape, all of them in one line.
    """
    raw = _read_json(folder / CONFIG)
    task = _read_json(folder / TASK) if (folder / TASK).exists() else {}
    config, kind = _config(folder / CONFIG, raw)
    found = file_tensors(folder / WEIGHTS)
    for key, (valid, fits) in SAID.items():
        if key in task and not fits(task[key]):
            raise DyntokError(f"{folder / TASK}: {key} is {task[key]!r}; valid is {valid}")
    labels = tuple(task.pop("labels", []))
    if kind and not labels:
        labels = _labels_by_number(folder, found, headed(architecture, kind, ["?"]))
    whole = headed(architecture, kind, labels)
    try:
        stored = _stored(whole, config)
    except DyntokError as error:
        raise DyntokError(f"{folder / CONFIG}: {error}") from error
    if base is not None:
        found = _pooler(base, whole) | found
    _check(folder / WEIGHTS, found, stored, _shapes(whole, config))
    layers = architecture.config.layers
    flat = {}
    for name, path in stored.items():
        parts = [found[name.format(i)].read() for i in range(layers if "{}" in name else 1)]
        arrays = [np.asarray(part, np.float32).T for part in parts]
        flat[path] = np.stack(arrays) if "{}" in name else arrays[0]
    trees = unflatten_dict(flat, sep="/")
    known = file_metadata(folder / WEIGHTS).get(HASH)
    return Adapter(config, trees["lora"], trees.get("head"), kind, labels, known, task)


def _pooler(base: Path, whole: Architecture) -> dict[str, StoredTensor]:
    """A base's pooler by its names in an adapter's file, where it is part of the head."""
    table = name_table(whole)
    own = {table.plain(name): tensor for name, tensor in stored_tensors(base).items()}
    names = [name for name in table.head if name.startswith("pooler.") and name in own]
    return {PREFIX + table.full(name, True): own[name] for name in names}


def _stored(whole: Architecture, config: LoraConfig) -> dict[str, str]:
    """Name of a tensor in peft's file, ``{}`` for the layer -> path below ``lora`` or ``head``.

    All are stored transposed, as far as they are matrices.
    """
    table = name_table(whole)
    names = {
        f"{PREFIX}{module}.lora_{part}.weight": f"lora/{path}/{part}"
        for module, path in targeted(whole, config.targets).items()
        for part in "AB"
    }
    if whole.head in HEADS:
        for name, path in table.head.items():
            names[PREFIX + table.full(name, True)] = f"head/{path}"
    return names


def _shapes(whole: Architecture, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every array of an adapter by its path, as it is here."""
    paths = [*targeted(whole, config.targets).values()]
    trees: Any = {"lora": abstract_lora(abstract_params(model_module(whole)), paths, config.rank)}
    head = head_module(whole)
    if head is not None and whole.head in HEADS:
        trees["head"] = abstract_params(head, jnp.zeros((1, 1, whole.config.width)))
    flat: Any = flatten_dict(nn.unbox(trees), sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def _check(
    path: Path,
    found: Mapping[str, StoredTensor],
    stored: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    wanted: dict[str, tuple[int, ...]] = {}
    for name, place in stored.items():
        layers, *shape = shapes[place] if "{}" in name else (1, *shapes[place])
        wanted |= {name.format(i): tuple(shape[::-1]) for i in range(layers)}
    faults = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "mis-shaped": [
            f"{name} {found[name].shape}, not {shape}"
            for name, shape in wanted.items()
            if name in found and found[name].shape != shape
        ],
        "dtype": [f"{name} {t.dtype}" for name, t in found.items() if t.dtype not in DTYPES],
    }
    said = [f"{fault}: {_some(names)}" for fault, names in faults.items() if names]
    # Neither the adapter nor the base has it.
    if any("pooler." in name for name in faults["missing"]):
        said.append("peft saves the pooler with modules_to_save=['pooler', 'classifier']")
    if said:
        raise DyntokError(
            f"{path}: does not fit the model and adapter_config.json; {'; '.join(said)}"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _labels_by_number(
    folder: Path, found: Mapping[str, StoredTensor], whole: Architecture
) -> tuple[str, ...]:
    table = name_table(whole)
    name = next(n for n, path in table.head.items() if path == "classes/bias")
    bias = found.get(PREFIX + table.full(name, True))
    if bias is None:
        raise DyntokError(f"{folder / WEIGHTS}: missing: {PREFIX}{name}, the task's head")
    return numbered_labels(bias.shape[0])


def _config(path: Path, raw: Mapping[str, Any]) -> tuple[LoraConfig, Any]:
    """An adapter's shape and the kind of its head, from peft's configuration."""
    if raw.get("peft_type") != "LORA":
        raise DyntokError(f"{path}: peft_type {raw.get('peft_type')!r}; valid is LORA")
    odd = [f"{key} {raw[key]!r}" for key in UNSUPPORTED if raw.get(key)]
    if raw.get("bias", "none") != "none":
        odd.append(f"bias {raw['bias']!r}")
    if (begun := raw.get("init_lora_weights", True)) not in FIRST_VALUES:
        odd.append(f"init_lora_weights {begun!r}, by which the base is another model")
    kind = raw.get("task_type")
    if kind is not None and kind not in [*TASK_TYPES]:  # a list has no hash
        odd.append(f"task_type {kind!r}")
    if odd:
        raise DyntokError(f"{path}: not supported: {', '.join(odd)}")
    try:
        targets = raw["target_modules"]
        # peft matches a list against ends of names, a text against whole ones.
        names = [targets] if isinstance(targets, str) else map(re.escape, sorted(targets))
        numbers = raw["r"], raw["lora_alpha"], raw.get("lora_dropout", 0.0)
        if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
            raise TypeError(f"r, lora_alpha and lora_dropout are {numbers}, not numbers")
        config = LoraConfig(*numbers, tuple(names))
    except DyntokError as error:
        raise DyntokError(f"{path}: {error}") from error
    except (KeyError, TypeError) as error:
        raise DyntokError(f"{path}: not a configuration of LoRA ({error!r})") from error
    return config, None if kind is None else TASK_TYPES[kind]


def _task_type(adapter: Adapter, whole: Architecture) -> str:
    if whole.head == "causal_lm":
        return "CAUSAL_LM"
    return next(name for name in reversed(TASK_TYPES) if TASK_TYPES[name] == adapter.kind)


def _peft_config(adapter: Adapter, whole: Architecture, name: str) -> dict[str, Any]:
    config = adapter.config
    modules = sorted({n.removeprefix("bert.").split(".")[0] for n in name_table(whole).head})
    plain = all(re.fullmatch(r"[\w.]+", target) for target in config.targets)
    either = "|".join(config.targets)
    return {
        "peft_type": "LORA",
        "task_type": _task_type(adapter, whole),
        "base_model_name_or_path": name,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.targets) if plain else rf"(?:.*\.)?(?:{either})",
        "modules_to_save": modules if adapter.head else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DyntokError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DyntokError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise DyntokError(f"{path}: not a JSON object")
    return content


def _write_json(path: Path, content: Any) -> None:
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
