"""Universal NER: the spans of persons, organizations and places in tokenized sentences.

The first piece of each word carries the word's tag. A word without a first piece (one that
tokenizes to nothing, that was cut off, or, where merging crosses words, that merged into the word
before it) cannot be tagged: in training, which does not merge across words, it is left out, in
predictions it is O, and so it counts as a miss where it is a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dyntok_jax.tasks.source import Record, TaskSource, listed, opened, records
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens, words_layout
from dyntok_jax.types import DyntokError

LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
"""In the order of the dataset's own numbers."""

OUTSIDE = "O"
TO_OUTSIDE = ("B-OTH", "I-OTH", "B-O")
"""Tags of other entities and of slips, which the dataset's own reader takes as O as well."""

UNLABELLED = -1
"""In the place of a label: this token's prediction does not count."""

_NUMBERS = {tag: number for number, tag in enumerate(LABELS)}


class Sentence(NamedTuple):
    """Words and their tags.

    Attributes:
        words: W words.
        tags: W tags of ``LABELS``.
        mapped: how many of them were one of ``TO_OUTSIDE``.
    """

    words: list[str]
    tags: list[str]
    mapped: int = 0


def read(source: TaskSource) -> list[Sentence]:
    """Sentences of a local file (``.iob2``, ``.jsonl``) or of a dataset.

    An ``.iob2`` file has a word a line (its number in the sentence, word, tag, anything), a blank
    line between sentences and comments behind ``#``. Records have ``tokens`` and ``ner_tags``, as
    ``universalner/universal_ner``; tags are names, or numbers in the order of ``LABELS``.

    Raises:
        DyntokError: nothing there, not of this form, words and tags of different number, or a tag
            that is neither in ``LABELS`` nor in ``TO_OUTSIDE``; with the line or record.
    """
    if source.files and Path(source.files).suffix == ".iob2":
        return source.examples(_iob2_sentences(Path(source.files)))
    if source.files and Path(source.files).suffix != ".jsonl":
        raise DyntokError(f"{source}: not a kind that is read; valid are .iob2 and .jsonl")
    return source.examples(_sentence(record, where) for where, record in records(source))


def layout(
    tokenizer: BaseTokenizer,
    examples: Sequence[Sentence],
    boundary: Boundary = Boundary.PRETOKEN,
    max_length: int | None = None,
) -> list[BaseTokens]:
    """``<s> words </s>`` with word ids; what is cut off is counted in each."""
    return words_layout(tokenizer, [s.words for s in examples], boundary, max_length)


def first_pieces(word_ids: Int[np.ndarray, " T"]) -> Int[np.ndarray, " W"]:
    """Places of the first token of every word that has one, before or after merging."""
    begins = (np.diff(word_ids, prepend=-1) != 0) & (word_ids >= 0)
    return np.flatnonzero(begins)


def token_labels(word_ids: Int[np.ndarray, " T"], tags: Sequence[str]) -> Int[np.ndarray, " T"]:
    """(T,) int32: at the first token of each word its tag's number, elsewhere ``UNLABELLED``.

    Args:
        word_ids: of a sequence before merging (``BaseTokens``) or after it (``DynamicTokens``).
        tags: of all words of the sentence.
    """
    labels = np.full(len(word_ids), UNLABELLED, np.int32)
    places = first_pieces(word_ids)
    labels[places] = [_NUMBERS[tags[int(word)]] for word in word_ids[places]]
    return labels


def word_tags(
    word_ids: Int[np.ndarray, " T"], predicted: Int[np.ndarray, " T"], words: int
) -> list[str]:
    """Tags of all words of a sentence, from the predictions at its tokens.

    Args:
        word_ids: as in :func:`token_labels`.
        predicted: (T,) numbers of ``LABELS``.
        words: how many words the sentence has; those without a token are O.
    """
    tags = [OUTSIDE] * words
    for place in first_pieces(word_ids).tolist():
        tags[int(word_ids[place])] = LABELS[int(predicted[place])]
    return tags


def unread_words(examples: Iterable[Sentence], word_ids: Iterable[Int[np.ndarray, " T"]]) -> int:
    """How many words have no token of their own."""
    pairs = zip(examples, word_ids, strict=True)
    return sum(len(example.words) - len(first_pieces(ids)) for example, ids in pairs)


def _iob2_sentences(path: Path) -> Iterator[Sentence]:
    words: list[str] = []
    tags: list[str] = []
    mapped = 0
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.rstrip("\r\n")
            # A word may be "#" too, but its line begins with a number.
            if line.startswith("#"):
                continue
            if line.strip():
                columns, where = line.split("\t"), f"{path}, line {number}"
                if len(columns) < 3:
                    raise DyntokError(
                        f"{where}: {len(columns)} columns; valid are number, word, tag and any "
                        "others, between tabs"
                    )
                # Files of other columns, and sentences without a blank line between, fail here.
                if columns[0] != str(len(words) + 1):
                    raise DyntokError(
                        f"{where}: number {columns[0]!r}; valid is {len(words) + 1}, for words "
                        "count from 1 in each sentence, with a blank line between sentences"
                    )
                tag = _tag(columns[2], where)
                mapped += columns[2] in TO_OUTSIDE
                words.append(columns[1])
                tags.append(tag)
            elif words:
                yield Sentence(words, tags, mapped)
                words, tags, mapped = [], [], 0
    if words:
        yield Sentence(words, tags, mapped)


def _sentence(record: Record, where: str) -> Sentence:
    words, given = (listed(record, name, where) for name in ("tokens", "ner_tags"))
    if odd := [word for word in words if not isinstance(word, str)]:
        raise DyntokError(f"{where}: word {odd[0]!r}; valid are texts")
    if not words:
        raise DyntokError(f"{where}: no words; valid is one at least")
    if len(words) != len(given):
        raise DyntokError(f"{where}: {len(words)} words and {len(given)} tags")
    tags = [_tag(tag, where) for tag in given]
    return Sentence(words, tags, sum(tag in TO_OUTSIDE for tag in given))


def _tag(tag: Any, where: str) -> str:
    if isinstance(tag, str) and tag in TO_OUTSIDE:
        return OUTSIDE
    if isinstance(tag, str) and tag in _NUMBERS:
        return tag
    if type(tag) is int and 0 <= tag < len(LABELS):  # a bool is an int too
        return LABELS[tag]
    raise DyntokError(
        f"{where}: tag {tag!r}; valid are {', '.join(LABELS)} and, read as O, "
        f"{', '.join(TO_OUTSIDE)}"
    )
