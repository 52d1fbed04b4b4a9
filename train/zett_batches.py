"""Batches of ZeTT's training: rows of the vocabulary, then texts by a tokenizer made for them.

Made in worker processes. The positions of a run's data go on with the queue of earlier texts as
it was: the texts since the oldest one in it are read again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.surface_forms import surface_forms
from dyntok_jax.types import Token
from train.data import DataConfig, TextBatch, batches, useful
from train.task import Loaded
from train.unigram import SamplerConfig, count_substrings, sample_tokenizer
from train.workers import in_order

NO_LABEL = -1
"""Label of a position without one, and id of a row that the model does not have."""

MASKED, AS_MASK, AS_RANDOM = 0.15, 0.8, 0.1
"""Share of tokens to be guessed; of those, shares that are masked and that are replaced."""

CACHED_COUNTS = 64
"""Batches of texts whose counts a worker keeps."""


class IdentityBatch(NamedTuple):
    """Tokens of the model's own vocabulary.

    Attributes:
        ids: (N,) their ids, each its own only piece; ``NO_LABEL`` at padding.
        language: row of the language table.
    """

    ids: Int[np.ndarray, " N"]
    language: Int[np.ndarray, ""]


class LanguageBatch(NamedTuple):
    """Sequences over a sampled vocabulary of U tokens.

    Attributes:
        forms: (U, S) surface forms of the vocabulary.
        own: (U,) id of a special token, or ``NO_LABEL``.
        shared: (U,) id of a token that the model's vocabulary has too, or ``NO_LABEL``.
        real: (U,) False at the padding of the vocabulary.
        ids: (B, T) tokens, as rows of the vocabulary.
        mask: (B, T) True at real tokens.
        labels: (B, T) what is to be guessed at a position, or ``NO_LABEL``.
        language: row of the language table.
    """

    forms: Int[np.ndarray, "U S"]
    own: Int[np.ndarray, " U"]
    shared: Int[np.ndarray, " U"]
    real: Bool[np.ndarray, " U"]
    ids: Int[np.ndarray, "B T"]
    mask: Bool[np.ndarray, "B T"]
    labels: Int[np.ndarray, "B T"]
    language: Int[np.ndarray, ""]


def identity_batch(vocab_size: int, count: int, parts: int, seed: int, step: int) -> IdentityBatch:
    """Different random ids of the vocabulary, the same for the same seed and step.

    Args:
        vocab_size: V.
        count: how many, as far as the vocabulary has them.
        parts: into which the batch with its padding can be cut.
        seed: of the run.
        step: of the run.
    """
    count = min(count, vocab_size)
    ids = np.random.default_rng((seed, step)).choice(vocab_size, count, replace=False)
    ids = np.pad(ids, (0, -count % parts), constant_values=NO_LABEL)
    return IdentityBatch(ids.astype(np.int32), np.zeros((), np.int32))


class Target(NamedTuple):
    """A tokenizer as the model is to read it.

    Attributes:
        tokens: of each row; ids of the model's special tokens first.
        encode: texts to rows.
    """

    tokens: Sequence[Token]
    encode: Callable[[Sequence[str]], list[list[int]]]

    @classmethod
    def sampled(cls, tokenizer: Tokenizer, specials: Mapping[str, int]) -> Target:
        """One from ``unigram.sample_tokenizer``, whose special tokens come first, by id."""
        count, size = len(specials), tokenizer.get_vocab_size()
        others = [tokenizer.id_to_token(i) or "" for i in range(count, size)]

        def encode(texts: Sequence[str]) -> list[list[int]]:
            found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in found]

        return cls([*sorted(specials.values()), *others], encode)


class Vocabulary(NamedTuple):
    """A tokenizer's tokens as a :class:`LanguageBatch` has them.

    Attributes:
        arrays: forms, own, shared and real.
        cut: tokens with more than S pieces, of which the first S are read.
    """

    arrays: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    cut: int


class QueuedTexts(NamedTuple):
    """Texts of a step, and those of the steps before it in the same language."""

    batch: TextBatch
    earlier: tuple[TextBatch, ...]
    position: Any


@dataclass
class LanguagePreparation:
    """Texts to a :class:`LanguageBatch`; pickled for the worker processes.

    Attributes:
        hypernet_tokenizer: tokenizer.json by which the hypernetwork reads tokens.
        specials: the model's special tokens and their ids.
        prefix, suffix: ids of special tokens around each sequence.
        separator: id of the special token between texts, or None.
        mask_id: id of the mask token; None for causal language modelling.
        vocab_size: V.
        pad_id: id that fills surface forms.
        surface_length: S.
        sequences: B.
        length: T.
        languages: names, in the order of the language table; empty without one.
        sampler: how tokenizers are sampled.
        target: the tokenizer of all batches, where none is sampled; it can be pickled.
        packed: texts stand behind each other; else each begins a sequence of its own.
    """

    hypernet_tokenizer: dict[str, Any]
    specials: dict[str, int]
    prefix: list[int]
    suffix: list[int]
    separator: int | None
    mask_id: int | None
    vocab_size: int
    pad_id: int
    surface_length: int
    sequences: int
    length: int
    languages: Sequence[str]
    sampler: SamplerConfig
    target: Target | None = None
    packed: bool = True

    def __call__(self, queued: QueuedTexts) -> tuple[LanguageBatch, int, int, int] | None:
        """As :meth:`batch`, by a tokenizer sampled from the texts and those before them."""
        batch = queued.batch
        if self.target is not None:
            return self.batch(batch, self.target, padded(len(self.target.tokens)))
        scores = [self._counts(each) for each in (batch, *queued.earlier)]
        sampled = sample_tokenizer(scores, self.specials, self.sampler, batch.seed)
        return self.batch(
            batch, Target.sampled(sampled, self.specials), padded(self.sampler.maximum)
        )

    def batch(
        self, batch: TextBatch, target: Target, room: int
    ) -> tuple[LanguageBatch, int, int, int] | None:
        """Texts by a tokenizer.

        Args:
            batch: texts, of one language where there is a table of languages.
            target: the tokenizer.
            room: U.

        Returns:
            The batch, its tokens, those of the texts without room in it, and the tokenizer's with
            more than S pieces; None where the texts hold nothing to be guessed.
        """
        tokens = target.tokens
        rank: dict[int, int] = {}
        for row, token in enumerate(tokens):
            if isinstance(token, int):
                rank.setdefault(token, row)
        ids, mask, dropped = self._pack(target.encode(batch.texts), rank)
        random = np.random.default_rng(batch.seed)
        if self.mask_id is None:
            labels = next_tokens(ids, mask)
        else:
            masking, specials = rank[self.mask_id], sum(isinstance(t, int) for t in tokens)
            ids, labels = mask_tokens(ids, mask, specials, len(tokens), masking, random)
        if not (labels != NO_LABEL).any():
            return None
        known = self.languages and batch.languages[0]
        language = np.array(self.languages.index(known) if known else 0, np.int32)
        is_fixed = target is self.target
        read = self.fixed if is_fixed else self._vocabulary(tokens, room)
        prepared = LanguageBatch(*read.arrays, ids, mask, labels, language)
        return prepared, int(mask.sum()), dropped, read.cut

    @cached_property
    def _tokenizer(self) -> BaseTokenizer:
        return BaseTokenizer(self.hypernet_tokenizer)

    @cached_property
    def fixed(self) -> Vocabulary:
        """As :meth:`_vocabulary`, of the tokenizer of all batches."""
        assert self.target is not None
        return self._vocabulary(self.target.tokens, padded(len(self.target.tokens)))

    @cached_property
    def _cache(self) -> OrderedDict[tuple[int, str], Counter[str]]:
        return OrderedDict()

    def _counts(self, batch: TextBatch) -> Counter[str]:
        key = (batch.seed, batch.texts[0])
        counts = self._cache.pop(key, None)
        self._cache[key] = count_substrings(batch.texts, self.sampler) if counts is None else counts
        while len(self._cache) > CACHED_COUNTS:
            self._cache.popitem(last=False)
        return self._cache[key]

    def _pack(
        self, texts: Sequence[Sequence[int]], rank: Mapping[int, int]
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """B sequences of all texts behind each other, and how many tokens are in none.

        Where the texts are longer than there is room, the sequences begin at equal distances, so
        that each long text has a part in them. Texts that are not packed have one sequence each.
        """
        between = [row for i, row in rank.items() if i == self.separator]
        stream = np.array([i for text in texts for i in [*text, *between]], np.int32)
        prefix = np.array([rank[i] for i in self.prefix if i in rank], np.int32)
        suffix = np.array([rank[i] for i in self.suffix if i in rank], np.int32)
        room = self.length - len(prefix) - len(suffix)
        ids = np.zeros((self.sequences, self.length), np.int32)
        mask = np.zeros((self.sequences, self.length), bool)
        if self.packed:
            distance = max(room, len(stream) // self.sequences)
            starts = range(0, len(stream), distance)[: self.sequences]
            parts = [stream[start : start + room] for start in starts]
            dropped = max(0, len(stream) - self.sequences * room)
        else:
            parts = [np.array(text[:room], np.int32) for text in texts[: self.sequences]]
            dropped = sum(map(len, texts)) - sum(map(len, parts))
        for row, part in enumerate(parts):
            sequence = np.concatenate([prefix, part, suffix])
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = True
        return ids, mask, dropped

    def _vocabulary(self, tokens: Sequence[Token], size: int) -> Vocabulary:
        forms = np.full((size, self.surface_length), self.pad_id, np.int32)
        count, tokenizer = len(tokens), self._tokenizer
        found = surface_forms(tokens, tokenizer, self.surface_length, self.pad_id)
        forms[:count] = found.ids
        own = np.full(size, NO_LABEL, np.int32)
        own[:count] = [token if isinstance(token, int) else NO_LABEL for token in tokens]
        real = np.arange(size) < count
        whole = (forms[:, 1:] == self.pad_id).all(axis=1) & (forms[:, 0] < self.vocab_size)
        is_shared = whole & real & (own == NO_LABEL) & (forms[:, 0] != self.pad_id)
        shared = np.where(is_shared, forms[:, 0], NO_LABEL).astype(np.int32)
        return Vocabulary((forms, own, shared, real), found.truncated)


def padded(size: int) -> int:
    """U: a vocabulary's size, up to a multiple of 128; the largest, so that one program does."""
    return -(-size // 128) * 128


def next_tokens(ids: Int[np.ndarray, "B T"], mask: Bool[np.ndarray, "B T"]) -> np.ndarray:
    """(B, T) labels of causal language modelling: the token that follows."""
    labels = np.full_like(ids, NO_LABEL)
    labels[:, :-1] = np.where(mask[:, 1:], ids[:, 1:], NO_LABEL)
    return labels


def mask_tokens(
    ids: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
    specials: int,
    size: int,
    masking: int,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and labels of masked language modelling (Devlin et al., 2019, section 3.1).

    Args:
        ids: tokens; those below ``specials`` are special and never chosen.
        mask: True at real tokens.
        specials: special tokens of the vocabulary, which come first.
        size: tokens of the vocabulary.
        masking: the mask token.
        random: source of the choices.
    """
    chosen = mask & (ids >= specials) & (random.random(ids.shape) < MASKED)
    fate = random.random(ids.shape)
    others = random.integers(specials, size, ids.shape)
    replaced = np.select([fate < AS_MASK, fate < AS_MASK + AS_RANDOM], [masking, others], ids)
    labels = np.where(chosen, ids, NO_LABEL)
    return np.where(chosen, replaced, ids).astype(np.int32), labels.astype(np.int32)


def language_batches(
    config: DataConfig,
    prepare: LanguagePreparation,
    *,
    seed: int,
    position: Any = None,
) -> Iterator[Loaded]:
    """Endless :class:`LanguageBatch`, the same for the same seed and position.

    Args:
        config: the texts.
        prepare: what is made of them.
        seed: of the run.
        position: of the last batch that was used.

    Raises:
        DyntokError: as ``train.data.batches``, what is wrong with a source at once.
    """
    earlier = prepare.sampler.texts if prepare.target is None else 0
    items = queued_texts(config, earlier, seed, position)
    skipped = position["skipped"] if position else 0
    return useful(in_order(prepare, items, config.workers), skipped)


def queued_texts(config: DataConfig, texts: int, seed: int, position: Any) -> Iterator[QueuedTexts]:
    """Texts with those before them in their language, from the first for which these suffice.

    A position says where the oldest texts of any queue are, and how many batches to read again.
    """
    start = position["start"] if position else None
    # Read here, where nothing is prepared: what is heavy goes to the workers as one step.
    stream = batches(replace(config, workers=0), as_they_are, seed=seed, position=start)
    return _queued(stream, config, max(0, -(-texts // config.texts) - 1), position)


def _queued(
    stream: Iterator[Loaded], config: DataConfig, length: int, position: Any
) -> Iterator[QueuedTexts]:
    before, again = (position["start"], position["again"]) if position else (None, 0)
    queues: dict[str, deque[tuple[int, Any, TextBatch]]] = {}
    for number, loaded in enumerate(stream):
        batch: TextBatch = loaded.batch
        name = batch.languages[0] if config.one_language else ""
        queue = queues.setdefault(name, deque(maxlen=length))
        earlier = tuple(entry[-1] for entry in queue)
        queue.append((number, before, batch))
        oldest = [queue[0][:2] for queue in queues.values() if queue]
        first, place = min(oldest, key=lambda entry: entry[0], default=(number + 1, None))
        before = loaded.position
        if number >= again and len(earlier) == length:
            place = place if oldest else before
            position = {"start": place, "again": number + 1 - first, "batch": before["batch"]}
            yield QueuedTexts(batch, earlier, position)


def as_they_are(batch: TextBatch) -> tuple[TextBatch, int]:
    """Texts without any preparation."""
    return batch, 0
