"""How a model is computed, as frozen dataclasses read from YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import draccus
import yaml

from dyntok_jax.types import DyntokError


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1, for one axis at most, is all that are left.

    Attributes:
        data: copies of the parameters; the batch is split over them.
        fsdp: parts each parameter's width is cut into; the batch is split over them too.
        model: parts the heads and the feed-forward width are cut into.
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1


@dataclass(frozen=True)
class ComputeConfig:
    """How a model is computed; the defaults suit one machine.

    Attributes:
        dtype: of the matrix products and activations; norms, softmax and scores are float32.
        remat: recompute layers in the backward pass instead of keeping their activations.
        mesh: devices along each axis.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    mesh: MeshConfig = field(default_factory=MeshConfig)


def load_config(path: Path | None) -> ComputeConfig:
    """Read a YAML file of :class:`ComputeConfig`'s fields; None gives the defaults.

    Raises:
        DyntokError: the file cannot be read, a key is unknown or a value is of the wrong kind.
    """
    if path is None:
        return ComputeConfig()
    try:
        with path.open(encoding="utf-8") as file:
            fields = yaml.safe_load(file) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DyntokError(f"{path}: not a readable YAML file ({_line(error)})") from error
    valid = "the fields are dtype, remat, mesh.data, mesh.fsdp and mesh.model"
    if not isinstance(fields, dict):
        raise DyntokError(f"{path}: not a mapping of fields; {valid}")
    try:
        return draccus.decode(ComputeConfig, fields)
    except Exception as error:  # draccus raises many kinds; all mean a bad field
        raise DyntokError(f"{path}: {_line(error)}; {valid}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
