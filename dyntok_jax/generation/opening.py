"""A large vocabulary's folder to a vocabulary to generate in."""

from __future__ import annotations

from pathlib import Path

from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.generation.settings import OutputVocabulary
from dyntok_jax.large_vocabulary.opening import EXACT, open_index
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary


def open_vocabulary(
    folder: str | Path, model: DynamicModel, index: str = EXACT
) -> OutputVocabulary:
    """Opens a vocabulary that ``python -m train.vocabulary`` built.

    Args:
        folder: of the vocabulary.
        model: the decoder it was built for.
        index: see ``large_vocabulary.opening.open_index``.

    Raises:
        DyntokError: as ``LargeVocabulary.load``, ``LargeVocabulary.rows`` and ``open_index``.
    """
    found = LargeVocabulary.load(folder, model.tokenizer)
    search = open_index(index, found, model.mesh)
    return OutputVocabulary(found.tokens, found.rows().input, search, found.tokenize)
