"""Indexes by name."""

from __future__ import annotations

from pathlib import Path

from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.large_vocabulary.exact import ExactIndex
from dyntok_jax.large_vocabulary.index import Index
from dyntok_jax.large_vocabulary.scann_index import load_index
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary
from dyntok_jax.types import DyntokError

EXACT = "exact"
EXACT_COSINE = "exact-cosine"


def open_index(name: str, vocabulary: LargeVocabulary, model: DynamicModel) -> Index:
    """The index of a vocabulary's output rows.

    Args:
        name: ``exact``; ``exact-cosine``, which chooses candidates by cosine; or the folder of a
            ScaNN index, which has its own numbers and says itself whether it ranks by cosine. It
            compares the model's control tokens always.
        vocabulary: whose rows are searched.
        model: the decoder it was built for, on whose devices the exact search is.

    Raises:
        DyntokError: no rows or no such index, or an index of other rows.
    """
    if name in (EXACT, EXACT_COSINE):
        return ExactIndex.of(vocabulary.rows(), model.mesh, cosine=name == EXACT_COSINE)
    folder = Path(name)
    if not folder.is_dir():
        raise DyntokError(
            f"index {name!r}: no such folder; valid: {EXACT}, {EXACT_COSINE}, "
            "a ScaNN index's folder"
        )
    rows, always = vocabulary.rows(), control_ids(model)
    return load_index(folder, rows, vocabulary.made_for, always=always)


def control_ids(model: DynamicModel) -> list[int]:
    """Ids of a model's special tokens, and of those that end a text, special or not."""
    return sorted({*model.tokenizer.special_ids.values(), *model.end_ids})
