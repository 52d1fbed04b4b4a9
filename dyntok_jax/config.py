"""How a model is computed, as frozen dataclasses read from YAML."""

from __future__ import annotations

import contextlib
import math
import os
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import draccus
import yaml
from draccus.parsers.decoding import decode_enum
from draccus.utils import DecodingError

from dyntok_jax.types import DyntokError

T = TypeVar("T")

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_UNSEEN = re.compile(r"[\x00-\x1f\x7f]")
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What reading raises: ValueError for a date or a number that is none or has too many digits."""


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


def at_least(config: Any, **least: float) -> None:
    """Check fields of a dataclass that must not be smaller than a number.

    Raises:
        DyntokError: the first one that is smaller, or no number.
    """
    for name, bound in least.items():
        if not getattr(config, name) >= bound:
            raise DyntokError(f"{name}: {getattr(config, name)} is not at least {bound:g}")


def load_config(path: Path | None) -> ComputeConfig:
    """Read a YAML file of :class:`ComputeConfig`'s fields; None gives the defaults.

    Raises:
        DyntokError: as :func:`read_config`.
    """
    return ComputeConfig() if path is None else read_config(ComputeConfig, path)


def read_config(kind: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file of a dataclass's fields; ``${NAME}`` in a value is an environment variable.

    Args:
        kind: a frozen dataclass.
        path: the file.
        overrides: ``key=value`` each, the key dotted, the value YAML; they win over the file.

    Raises:
        DyntokError: the file cannot be read, a variable is not set, a key is unknown or a value is
            of the wrong kind.
    """
    try:
        tree = yaml.safe_load(path.read_text("utf-8")) or {}
    except (OSError, *_NOT_YAML) as error:
        raise DyntokError(f"{path}: not a readable YAML file ({_line(error)})") from error
    valid = f"the fields are {', '.join(_fields(kind))}"
    if not isinstance(tree, dict):
        raise DyntokError(f"{path}: not a mapping of fields; {valid}")
    for override in overrides:
        _override(tree, override)
    # Last, so that nothing is asked for by a field that an override replaces.
    missing: set[str] = set()
    tree = _expanded(tree, missing)
    if missing:
        raise DyntokError(f"{path}: set the environment variable {', '.join(sorted(missing))}")
    try:
        return draccus.decode(kind, _shaped(kind, tree))
    except DyntokError as error:
        raise DyntokError(f"{path}: {error}") from error
    except Exception as error:  # draccus raises many kinds; all mean a bad field
        # What is said of a wrong value names the field already.
        said, unknown = _said(error), "not valid for" in str(error)
        raise DyntokError(f"{path}: {said}" + (f"; {valid}" if unknown else "")) from error


def _fields(kind: Any, prefix: str = "") -> list[str]:
    names = []
    hints = get_type_hints(kind)
    for part in fields(kind):
        inner = _dataclass(hints[part.name])
        if inner is not None:
            names += _fields(inner, f"{prefix}{part.name}.")
        else:
            names.append(prefix + part.name)
    return names


def _dataclass(hint: Any) -> type | None:
    """The dataclass that a field is of, be it optional."""
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    return next(filter(is_dataclass, kinds), None)


def _shaped(hint: Any, value: Any, place: str = "") -> Any:
    """A value, if it is a list or mapping in the place of one and not nothing in that of a value.

    draccus would take a text's letters for a list's items, and nothing for any value.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kind = next(kind for kind in kinds if kind is not NoneType)
    is_list = get_origin(kind) in (list, tuple)
    if isinstance(value, str) and (is_list or kind is bool):
        # As a variable gives it.
        with contextlib.suppress(*_NOT_YAML):
            value = yaml.safe_load(value)
    if value == "" and NoneType in kinds:
        value = None  # as a variable says nothing
    if value is None:
        if NoneType not in kinds:
            raise DyntokError(f"{place}: is empty; give a value")
        return None
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise DyntokError(f"{place}: {value!r}; valid is a mapping of fields")
        hints = get_type_hints(kind)
        known = {
            name: _shaped(hints[name], value[name], f"{place}.{name}" if place else name)
            for name in value
            if name in hints
        }
        return value | known
    if is_list:
        if not isinstance(value, list):
            raise DyntokError(f"{place}: {value!r}; valid is a list, in square brackets")
        item = get_args(kind)[0]
        return [_shaped(item, part, f"{place}[{number}]") for number, part in enumerate(value)]
    if get_origin(kind) is dict and isinstance(value, dict):
        return {
            key: _shaped(get_args(kind)[1], part, f"{place}.{key}") for key, part in value.items()
        }
    if kind in (int, float):
        _check_number(kind, value, place)
    elif kind in (str, Path) or get_origin(kind) is Literal:
        _check_text(kind, value, place)
    return value


def _check_number(kind: type[int] | type[float], value: Any, place: str) -> None:
    """Refuses what draccus takes for a number and is none, or none that can be computed with."""
    said = reprlib.repr(value)
    spelled = isinstance(value, str) and (not value.isascii() or "_" in value)
    if spelled or isinstance(value, bool | list | dict):
        raise DyntokError(f"{place}: {said}; valid is a number")
    try:
        number = kind(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError) as error:
        valid = "a whole number" if kind is int else "a number"
        raise DyntokError(f"{place}: {said}; valid is {valid}") from error
    if kind is float and not math.isfinite(number):
        raise DyntokError(f"{place}: {said} is no finite number")
    # Devices count in 32 bits, and random keys are of 32 bits.
    least, most = (0, 2**32 - 1) if place.split(".")[-1] == "seed" else (-(2**31), 2**31 - 1)
    if kind is int and not least <= number <= most:
        raise DyntokError(f"{place}: {said}; valid is {least} to {most}")


def _check_text(kind: Any, value: Any, place: str) -> None:
    """Refuses what is no text, and characters that no path has and no text can do without."""
    if isinstance(value, bool | list | dict):
        raise DyntokError(f"{place}: {value!r}; valid is a text, in quotes")
    unseen = set(_UNSEEN.findall(value)) if isinstance(value, str) else set()
    if unseen - (set() if kind is Path else {"\t", "\n"}):
        raise DyntokError(f"{place}: {value!r} has control characters; valid is a text without")


def _expanded(value: Any, missing: set[str]) -> Any:
    """A value with its environment variables in place; those that are not set are collected."""
    if isinstance(value, dict):
        return {key: _expanded(part, missing) for key, part in value.items()}
    if isinstance(value, list):
        return [_expanded(part, missing) for part in value]
    if not isinstance(value, str):
        return value
    missing |= set(_VARIABLE.findall(value)) - set(os.environ)
    return _VARIABLE.sub(lambda found: os.environ.get(found[1], ""), value)


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise DyntokError(f"{override!r}: an override is key=value")
    *folders, name = key.split(".")
    for folder in folders:
        tree = tree.setdefault(folder, {})
        if not isinstance(tree, dict):
            raise DyntokError(f"{override!r}: {folder} has no fields")
    try:
        tree[name] = yaml.safe_load(value)
    except _NOT_YAML as error:
        raise DyntokError(
            f"{key}: {reprlib.repr(value)} is no YAML value ({_line(error)})"
        ) from error


def _enum(kind: type[StrEnum], value: Any, path: Sequence[str]) -> StrEnum:
    """As draccus does it, but what it says of a wrong value names the valid ones."""
    try:
        return decode_enum(kind, value, path)
    except (KeyError, TypeError) as error:
        said = f"Couldn't parse '{value}' into one of: {', '.join(kind)}"
        raise DecodingError(path, said) from error


draccus.decode.register(StrEnum, _enum, include_subclasses=True)


def _said(error: Exception) -> str:
    """A bad field in one line: by the words of a dataclass's own check, where that refused it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DyntokError):
        cause = cause.__cause__
    if cause is None:
        return _line(error)
    place, said = ".".join(getattr(error, "key_path", ())), _line(cause)
    return said if said.startswith(place) else f"{place}: {said}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
