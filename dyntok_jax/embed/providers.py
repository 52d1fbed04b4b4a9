"""Row providers by name: the model's own rows, those made of them, or a hypernetwork's folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from dyntok_jax.embed.baselines import RidgeRows, WeightedRows
from dyntok_jax.embed.hypernet_rows import HypernetRows
from dyntok_jax.embed.shipped import belongs, shipped_hypernet, table_languages
from dyntok_jax.embed.source import (
    BaseRows,
    BaseRowsRule,
    FvtRows,
    RowProvider,
    SourceEmbeddings,
    map_tensor,
)
from dyntok_jax.embed.zett import FILES, load_hypernet
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.zett_conversion import convert_to_byte_level, is_converted
from dyntok_jax.types import DyntokError

logger = logging.getLogger(__name__)

OF_PIECES = {"fvt": FvtRows, "weighted": WeightedRows, "ridge": RidgeRows}
"""Providers that make a merged token's row of its pieces' rows, without training."""


def identity(name: str) -> str:
    """A provider's name; a hypernetwork's folder by its own name and a hash of its weights."""
    weights = next((path for file in FILES.values() if (path := Path(name) / file).is_file()), None)
    if weights is None:
        return name
    with weights.open("rb") as file:
        return f"{Path(name).name} {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def same_rows(there: str, here: str) -> bool:
    """Whether two identities are of one provider; a folder's name may differ, its hash is told."""
    return there.split()[-1:] == here.split()[-1:]


def check_base_rows(name: str, base_rows: BaseRowsRule | None, where: str = "") -> None:
    """Refuses a choice where there is none.

    Args:
        name: of rows.
        base_rows: as for ``row_provider``.
        where: begins the message.

    Raises:
        DyntokError: base rows, which are all the model's own, and a rule beside them.
    """
    if name == "base" and base_rows:
        raise DyntokError(
            f"{where}base_rows: {base_rows} is nothing to base rows, which are all the model's "
            "own; leave it out"
        )


def row_provider(
    name: str,
    source: Callable[[bool], SourceEmbeddings],
    tokenizer: BaseTokenizer | None,
    language: int | None = None,
    base_rows: BaseRowsRule | None = None,
    mesh: Mesh | None = None,
) -> RowProvider:
    """The provider of that name.

    Args:
        name: ``base``, ``fvt``, ``weighted``, ``ridge``, the folder of a hypernetwork, or
            ``default``: the hypernetwork that ships for the model, FVT rows where none does.
        source: the model's rows, given whether output rows are wanted apart from input rows.
        tokenizer: the model's own; a hypernetwork's folder may hold one instead.
        language: row of the hypernetwork's language table.
        base_rows: whether unmerged tokens keep the model's own rows; by default they do but
            with a ZeTT hypernetwork they are predicted (paper, Eq. 3).
        mesh: devices of the hypernetwork; all by default.

    Raises:
        DyntokError: an unknown name, a folder without a hypernetwork, no tokenizer, base rows with
            a choice of ``base_rows``.
    """
    check_base_rows(name, base_rows)
    if name == "default":
        name = default_rows(source, tokenizer)
    if name in OF_PIECES or name == "base":
        if language is not None:
            raise DyntokError(f"language {language}: {name} rows have none; hypernetworks do")
        if tokenizer is None:
            raise DyntokError(f"{name} rows need a tokenizer: give --tokenizer DIR or --model NAME")
        rows = source(False)
        if name == "base":
            return BaseRows(rows, tokenizer)
        return OF_PIECES[name](rows, tokenizer, base_rows or "own")
    folder = Path(name)
    if not folder.is_dir():
        raise DyntokError(
            f"rows {name!r}: no such folder; valid: default, base, {', '.join(OF_PIECES)}, "
            "a hypernetwork's folder"
        )
    if tokenizer is not None and not belongs(folder, source(False), tokenizer):
        raise DyntokError(f"{folder}: this hypernetwork was trained for another model")
    config, params = load_hypernet(folder)
    return HypernetRows(
        config,
        params,
        source(config.separate_output),
        _hypernet_tokenizer(folder, tokenizer, config.native),
        language,
        base_rows or ("own" if config.native else "predicted"),
        mesh,
        table_languages(folder),
    )


def default_rows(
    source: Callable[[bool], SourceEmbeddings], tokenizer: BaseTokenizer | None
) -> str:
    """What ``default`` stands for: the folder of a shipped hypernetwork, or ``fvt``."""
    folder = None if tokenizer is None else shipped_hypernet(source(False), tokenizer)
    if folder is None:
        logger.warning("no hypernetwork ships for this model: FVT rows")
        return "fvt"
    return str(folder)


def concatenated_source(path: Path) -> Callable[[bool], SourceEmbeddings]:
    """Rows from the tensor ``source`` of a safetensors file, as ZeTT lays them out."""
    if not path.is_file():
        raise DyntokError(f"{path}: no such file (a safetensors file with a tensor 'source')")
    table = map_tensor(path, "source")
    return lambda separate: SourceEmbeddings.from_concatenated(table, separate)


def _hypernet_tokenizer(
    folder: Path, tokenizer: BaseTokenizer | None, native: bool
) -> BaseTokenizer:
    """The tokenizer a hypernetwork reads by: its own, the model's, or one made of the model's."""
    if (folder / "tokenizer.json").is_file():
        return BaseTokenizer.from_folder(folder)
    if tokenizer is None:
        raise DyntokError(
            f"{folder}: no tokenizer.json there: give --tokenizer DIR or --model NAME"
        )
    if native or is_converted(tokenizer.tokenizer_json):
        return tokenizer
    return BaseTokenizer(convert_to_byte_level(tokenizer.tokenizer_json)[0])
