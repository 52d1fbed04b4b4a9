"""Indexes by name."""

from __future__ import annotations

from pathlib import Path

from jax.sharding import Mesh

from dyntok_jax.large_vocabulary.exact import ExactIndex
from dyntok_jax.large_vocabulary.index import Index
from dyntok_jax.large_vocabulary.scann_index import load_index
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary
from dyntok_jax.types import DyntokError

EXACT = "exact"


def open_index(
    name: str,
    vocabulary: LargeVocabulary,
    mesh: Mesh,
    cosine: bool = False,
    leaves_searched: int | None = None,
    reorder: int | None = None,
) -> Index:
    """The index of a vocabulary's output rows.

    Args:
        name: ``exact``, or the folder of a ScaNN index.
        vocabulary: whose rows are searched.
        mesh: devices of the exact search.
        cosine: of the exact search: choose by cosine.
        leaves_searched, reorder: of a ScaNN index: see ``ScannSettings``.

    Raises:
        DyntokError: no rows or no such index, an index of other rows, an option that is not its.
    """
    if name == EXACT:
        if leaves_searched is not None or reorder is not None:
            raise DyntokError("index exact: it looks at all rows; leaves and reorder are ScaNN's")
        return ExactIndex.of(vocabulary.rows(), mesh, cosine)
    folder = Path(name)
    if not folder.is_dir():
        raise DyntokError(f"index {name!r}: no such folder; valid: exact, a ScaNN index's folder")
    if cosine:
        raise DyntokError(f"index {name}: whether it ranks by cosine was chosen when it was built")
    rows, made_for = vocabulary.rows(), vocabulary.made_for
    return load_index(folder, rows, made_for, leaves_searched, reorder)
