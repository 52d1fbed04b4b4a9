"""A large vocabulary's folder to a vocabulary to generate in."""

from __future__ import annotations

from pathlib import Path

from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.generation.settings import OutputVocabulary
from dyntok_jax.large_vocabulary.opening import EXACT, open_index
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary
from dyntok_jax.types import DyntokError


def open_vocabulary(
    folder: str | Path, model: DynamicModel, index: str = EXACT
) -> OutputVocabulary:
    """Opens a vocabulary that ``python -m train.vocabulary`` built.

    Args:
        folder: of the vocabulary.
        model: the decoder it was built for.
        index: see ``large_vocabulary.opening.open_index``.

    Raises:
        DyntokError: as ``LargeVocabulary.load`` and ``output_vocabulary``.
    """
    return output_vocabulary(LargeVocabulary.load(folder, model.tokenizer), model, index)


def output_vocabulary(
    vocabulary: LargeVocabulary, model: DynamicModel, index: str = EXACT
) -> OutputVocabulary:
    """A large vocabulary to generate in.

    Args:
        vocabulary: with its rows.
        model: the decoder it was built for.
        index: see ``large_vocabulary.opening.open_index``.

    Raises:
        DyntokError: as ``check_width`` and ``open_index``.
    """
    check_width(vocabulary, model)
    search = open_index(index, vocabulary, model)
    return OutputVocabulary(vocabulary.tokens, vocabulary.rows().input, search, vocabulary.tokenize)


def check_width(vocabulary: LargeVocabulary, model: DynamicModel) -> None:
    """Whether a vocabulary's rows are as wide as a model; several share a tokenizer.

    Raises:
        DyntokError: they are not, or as ``LargeVocabulary.rows``.
    """
    here, there = model.source.input.shape[1], vocabulary.rows().input.shape[1]
    if here != there:
        path = vocabulary.rows_file.path
        made_for = vocabulary.rows_file.metadata().get("model")
        raise DyntokError(
            f"{path}: rows of {there} numbers, made for {made_for}; {model.name}'s have {here}"
        )
