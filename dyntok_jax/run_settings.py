"""Settings of a run as JSON, and in what two of them differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dyntok_jax.types import DyntokError


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back: tuples are lists, keys and paths are strings."""
    return json.loads(json.dumps(dict(settings), default=str))


def check_same(saved: Any, running: Mapping[str, Any], folder: Path) -> None:
    """Refuses to go on with a run by other settings.

    Args:
        saved: what :func:`plain_settings` gave when the run began.
        running: settings of the running task.
        folder: of the run, for the message.

    Raises:
        DyntokError: some differ; all of them are named.
    """
    old, new = _flat(saved), _flat(plain_settings(running))
    differing = [
        f"{name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if differing:
        raise DyntokError(
            f"{folder}: the run there has other settings ({'; '.join(differing)}); choose another "
            "folder or the same settings"
        )


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Leaves of nested mappings and lists as JSON, by dotted name."""
    if isinstance(value, list) and value:
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        return {name: json.dumps(value, ensure_ascii=False)}
    return {
        key: leaf
        for part, inner in value.items()
        for key, leaf in _flat(inner, f"{name}.{part}" if name else part).items()
    }
