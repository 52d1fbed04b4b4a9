"""Hypernetworks and adapters that ship with the package, found by the model they are for.

Each folder of ``pretrained/`` has, beside the hypernetwork, a ``base.json`` that tells its model
by the vocabulary and a few numbers of its rows, not by a name: local folders and quantized copies
of the model have the same. That of a hypernetwork with a table of languages names them as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dyntok_jax.embed.source import SourceEmbeddings
from dyntok_jax.files import atomic_path
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import DyntokError

FOLDER = Path(__file__).parent / "pretrained"
MARK = "base.json"
ADAPTER = "adapter"
"""Folder, beside a hypernetwork that ships, of an adapter that reads by its rows."""

PROBES = 64
LEAST_CORRELATION = 0.95
"""Of the probed numbers with those of a quantized copy; of another model's they have none."""


def mark(source: SourceEmbeddings, tokenizer: BaseTokenizer) -> dict[str, Any]:
    """What tells a model from others: its vocabulary, its width and a few numbers of its rows."""
    vocabulary = "\n".join(f"{i} {token}" for i, token in sorted(tokenizer.spelled().items()))
    rows, width = source.input.shape
    ids = np.linspace(0, min(rows, tokenizer.vocab_size) - 1, PROBES).astype(int)
    probe = np.asarray(source.input[ids, np.arange(PROBES) % width], np.float32)
    return {
        "vocabulary_sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "width": width,
        "probe": [round(float(x), 6) for x in probe],
    }


def write_mark(
    folder: Path,
    name: str,
    source: SourceEmbeddings,
    tokenizer: BaseTokenizer,
    languages: Sequence[str] = (),
) -> None:
    """Say in a hypernetwork's folder which model it belongs to.

    Args:
        folder: the hypernetwork's.
        name: the model's.
        source: its rows.
        tokenizer: its own.
        languages: names of the rows of the hypernetwork's language table, in order.
    """
    said = {"model": name, **mark(source, tokenizer)}
    if languages:
        said["languages"] = list(languages)
    text = json.dumps(said, indent=1) + "\n"
    with atomic_path(folder / MARK) as partial:
        partial.write_text(text, "utf-8")


def belongs(folder: Path, source: SourceEmbeddings, tokenizer: BaseTokenizer) -> bool:
    """Whether a hypernetwork was trained for this model; True where its folder does not say.

    Raises:
        DyntokError: the folder's mark cannot be read.
    """
    if not (folder / MARK).is_file():
        return True
    try:
        said = json.loads((folder / MARK).read_text("utf-8"))
        probe = np.asarray(said["probe"], np.float32)
        names = said["vocabulary_sha256"], said["width"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise DyntokError(f"{folder / MARK}: damaged ({error})") from error
    found = mark(source, tokenizer)
    if names != (found["vocabulary_sha256"], found["width"]) or len(probe) != PROBES:
        return False
    return float(np.corrcoef(probe, found["probe"])[0, 1]) > LEAST_CORRELATION


def table_languages(folder: Path) -> list[str]:
    """Names of the rows of a hypernetwork's language table; none where its folder does not say.

    Raises:
        DyntokError: the folder's mark cannot be read.
    """
    if not (folder / MARK).is_file():
        return []
    try:
        said = json.loads((folder / MARK).read_text("utf-8"))
        return [str(name) for name in said.get("languages", [])]
    except (OSError, ValueError, RecursionError, AttributeError, TypeError) as error:
        raise DyntokError(f"{folder / MARK}: damaged ({error})") from error


def language_row(rows: str, language: str | None) -> int | None:
    """Row of a language in a hypernetwork's table.

    Args:
        rows: the hypernetwork's folder, or the name of other rows.
        language: its name, as the folder has it, or the row's number; None for none.

    Raises:
        DyntokError: a name that is not there.
    """
    if language is None or language.isdecimal():
        return None if language is None else int(language)
    names = table_languages(Path(rows))
    if language not in names:
        known = f"its languages are {', '.join(names)}" if names else "it names no languages"
        raise DyntokError(f"language {language!r}: rows {rows}: {known}")
    return names.index(language)


def shipped_hypernet(source: SourceEmbeddings, tokenizer: BaseTokenizer) -> Path | None:
    """The folder of the hypernetwork that ships for a model, None where there is none."""
    folders = sorted(path.parent for path in FOLDER.glob(f"*/{MARK}"))
    return next((folder for folder in folders if belongs(folder, source, tokenizer)), None)


def shipped_adapter(source: SourceEmbeddings, tokenizer: BaseTokenizer) -> Path | None:
    """The folder of the adapter that ships for a model, None where there is none."""
    folder = shipped_hypernet(source, tokenizer)
    return folder / ADAPTER if folder and (folder / ADAPTER).is_dir() else None
