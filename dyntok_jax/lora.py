"""Adapters: low-rank additions and a task's head, checked against a model and merged into it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from dyntok_jax.models.decoder import DecoderConfig
from dyntok_jax.models.hf_config import Architecture
from dyntok_jax.models.lora import LoraConfig, merged
from dyntok_jax.models.weights import LoadedModel
from dyntok_jax.types import DyntokError

logger = logging.getLogger(__name__)

HASHED_ROWS = 4096


class Adapter(NamedTuple):
    """An adapter on the host.

    Attributes:
        config: shape.
        lora: A and B by the path of their kernel in the model's parameters.
        head: parameters of the task's head, None without one.
        kind: what the head scores.
        labels: names of its classes.
        base: hash of the model it was trained on; None where that is not known.
        task: whatever else ``task.json`` says.
    """

    config: LoraConfig
    lora: dict[str, Any]
    head: dict[str, Any] | None = None
    kind: Literal["sequence", "token"] | None = None
    labels: tuple[str, ...] = ()
    base: str | None = None
    task: Mapping[str, Any] = {}


class Base(Protocol):
    """What an adapter stands on: ``LoadedModel`` and ``DynamicModel`` are such."""

    @property
    def params(self) -> Any:
        """Parameters of the model without a head."""
        ...

    @property
    def source(self) -> Any:
        """Its own rows."""
        ...


def warn_of_merged_tokens(folder: Path, adapter: Adapter) -> None:
    """Warns where base tokens by the model's own rows are not what an adapter learnt to read."""
    rows = adapter.task.get("rows", "base")
    mode = (adapter.task.get("tokenization") or {}).get("mode", "static")
    if (rows, mode) != ("base", "static"):
        logger.warning(
            "%s: trained on rows of %s, tokenization %s; here it reads base tokens by the model's "
            "own rows",
            *(folder, rows, mode),
        )


def params_digest(params: Any) -> hashlib._Hash:
    """SHA-256 of nested parameters as float32, to which more can be added."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        digest.update(path.encode())
        digest.update(np.asarray(leaf, np.float32, order="C").tobytes())
    return digest


def headed(architecture: Architecture, kind: Any, labels: Sequence[str]) -> Architecture:
    """The architecture with a task's head in place of whatever head it has.

    Without one it is the architecture that peft knows: an encoder by itself, and a decoder as it
    is, whose head gives its modules their names.
    """
    if kind is None and isinstance(architecture.config, DecoderConfig):
        return architecture
    return replace(architecture, head=kind, labels=tuple(labels))


def numbered_labels(count: int) -> tuple[str, ...]:
    """Names as transformers gives to classes without any."""
    return tuple(f"LABEL_{i}" for i in range(count))


def base_hash(model: Base) -> str:
    """SHA-256 of a model's parameters and of some of its rows, as float32."""
    return _with_rows(params_digest(model.params), [model.source.input])


def frozen_hash(model: LoadedModel) -> str:
    """As :func:`base_hash`, of the head, output rows and their bias as well."""
    digest = params_digest({"model": model.params, "head": model.head_params or {}})
    return _with_rows(digest, [table for table in model.source if table is not None])


def _with_rows(digest: hashlib._Hash, tables: Sequence[np.ndarray]) -> str:
    for rows in tables:
        places = np.unique(np.linspace(0, len(rows) - 1, HASHED_ROWS).astype(int))
        digest.update(np.asarray(rows[places], np.float32).tobytes())
    return digest.hexdigest()


def check_base(model: Base, adapter: Adapter) -> None:
    """Refuses an adapter of another model.

    Raises:
        DyntokError: the adapter was trained on another model; of peft's own, which do not say on
            which, it is not known, with a warning.
    """
    if adapter.base is None:
        logger.warning("the adapter says no hash of its base: whether this is it, is not checked")
    elif adapter.base != (found := base_hash(model)):
        raise DyntokError(
            f"the adapter was trained on another model: its base has hash {adapter.base[:12]}, "
            f"this model {found[:12]}"
        )


def adapted_params(model: Base, adapter: Adapter) -> dict[str, Any]:
    """The model's parameters with an adapter merged into them, host arrays.

    Returns:
        ``model`` and, where the adapter has a head, ``head``: what ``models.classifier`` takes.

    Raises:
        DyntokError: as :func:`check_base`.
    """
    check_base(model, adapter)
    params = jax.tree.map(np.asarray, model.params)
    whole = {"model": merged(params, jax.tree.map(np.asarray, adapter.lora), adapter.config)}
    return whole if adapter.head is None else whole | {"head": adapter.head}
