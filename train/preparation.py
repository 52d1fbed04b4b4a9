"""Texts to batches of base and dynamic tokens side by side, in numpy, for worker processes.

Encoders read texts between their special tokens, short ones of a language joined; decoders read
stretches of one length out of all the texts of a batch, each behind what the tokenizer puts before
a text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from dyntok_jax.batching import TOKEN_BUCKETS, bucket
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary
from dyntok_jax.merging.batch import DynamicTokens, merge
from dyntok_jax.merging.budget import Budget
from dyntok_jax.sharding import BatchPart
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary, capped_units
from dyntok_jax.text.layouts import BaseTokens, prompt_layout, text_layout, unmerged_from
from dyntok_jax.text.surface_forms import surface_forms
from dyntok_jax.types import Token
from train.data import TextBatch
from train.distill_config import DistillConfig

MARGIN = 6
"""Base tokens left for the prefix and the special tokens when texts are joined."""

ROW_BUCKETS = (16, *(64 * 2**k for k in range(20)))
"""Rows of a batch: 16, for long forms, of which there are few, 64, 128, 256, and so on."""


class DistillBatch(NamedTuple):
    """A batch as the model reads it before and after merging, padded right.

    Attributes:
        base_ids: (B, T) ids of the model; padding is 0.
        base_mask: True at real base tokens.
        owner: (B, T) dynamic position of each base token; T' at padding.
        ids: (B, T') rows: below O into ``own``, from O on into ``short``, then ``long``.
        mask: True at real dynamic tokens.
        last: (B, T') position of the last base token of each dynamic token.
        prompt_length: (B,) dynamic tokens of the part that may merge; what follows stays in base
            tokens.
        own: (O,) ids of the vocabulary tokens in use.
        short: (M, S / 2) surface forms of the merged tokens in use that have few pieces; padding
            rows have none.
        long: (N, S) those of the others; their rows come after the short ones'.
        short_shift, long_shift: (M,) and (N,) float32 added to the scores of ``short`` and ``long``
            as next tokens: 0 for the batch's own tokens, the logarithm of how many tokens a drawn
            one stands for, and minus infinity at padding.
        maker, short_maker, long_maker: (B,), (M,) and (N,) number of the part that the sequence or
            row is of; in a run of several processes each makes a part.
    """

    base_ids: Int[np.ndarray, "B T"]
    base_mask: Bool[np.ndarray, "B T"]
    owner: Int[np.ndarray, "B T"]
    ids: Int[np.ndarray, "B t"]
    mask: Bool[np.ndarray, "B t"]
    last: Int[np.ndarray, "B t"]
    prompt_length: Int[np.ndarray, " B"]
    own: Int[np.ndarray, " O"]
    short: Int[np.ndarray, "M s"]
    long: Int[np.ndarray, "N S"]
    short_shift: Float[np.ndarray, " M"]
    long_shift: Float[np.ndarray, " N"]
    maker: Int[np.ndarray, " B"]
    short_maker: Int[np.ndarray, " M"]
    long_maker: Int[np.ndarray, " N"]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """T', M and N, which differ from batch to batch."""
        return self.ids.shape[1], len(self.short), len(self.long)


@dataclass(frozen=True)
class Preparation:
    """Tokenizes and merges; the tokenizer is read when the first batch comes.

    Attributes:
        tokenizer: folder of the model.
        is_encoder: whether opening and closing tokens stand around each text.
        sequences: B.
        max_length: T at most.
        prefix: put before every text.
        merge_rates: smallest and largest percentage of merges, drawn per batch.
        prompt_share: smallest and largest share of a sequence, from its start, that may merge,
            drawn for each.
        repeated_words: chance that a sequence is replaced by its first half and the words of that
            again, in another order.
        surface_length: S, also the most base tokens in one dynamic token.
        pad_id: fills surface forms.
        vocabulary: folder of a large vocabulary to draw from, or None.
        drawn: tokens drawn from it for each batch.
        part: number of the process, which makes its own draws for sequences.
    """

    tokenizer: Path
    is_encoder: bool
    sequences: int
    max_length: int
    prefix: str
    merge_rates: tuple[float, float]
    prompt_share: tuple[float, float]
    repeated_words: float
    surface_length: int
    pad_id: int
    vocabulary: Path | None = None
    drawn: int = 0
    part: int = 0

    @classmethod
    def of_run(
        cls, model: Path, is_encoder: bool, config: DistillConfig, surface_length: int, pad_id: int
    ) -> Preparation:
        """As the settings of a run have it; the other arguments are attributes."""
        return cls(
            model,
            is_encoder,
            config.sequences,
            config.max_length,
            config.prefix,
            config.merge_rates,
            config.prompt_share,
            config.repeated_words,
            surface_length,
            pad_id,
            config.vocabulary,
            config.drawn if config.output else 0,
        )

    @cached_property
    def _tokenizer(self) -> BaseTokenizer:
        return BaseTokenizer.from_folder(self.tokenizer)

    @cached_property
    def _further(self) -> Sequence[Token]:
        """What the large vocabulary adds to the model's own."""
        if self.vocabulary is None:
            return []
        vocabulary = LargeVocabulary.load(self.vocabulary, self._tokenizer)
        return vocabulary.tokens[vocabulary.base_size :]

    def __call__(self, texts: TextBatch) -> tuple[DistillBatch, int, int, int] | str | None:
        """A batch, and numbers: its base tokens, those without room in it, drawn ones that are cut.

        None where nothing merges, and why where there is nothing to merge.
        """
        base, dropped = self._base(texts)
        if not base:
            return (
                f"its {len(texts.texts)} texts have {dropped} tokens, too few for a sequence of "
                f"distill.max_length={self.max_length}: more texts a batch (data.texts, "
                "held_out.texts) or a smaller max_length is needed"
            )
        rng = np.random.default_rng(texts.seed)
        budget = Budget(reduction=float(rng.uniform(*self.merge_rates)))
        drawn = self._draw(rng)
        # What is drawn for each sequence: all parts have the same seed.
        rng = np.random.default_rng((texts.seed, self.part))
        base = [_with_its_words(b, rng) if rng.random() < self.repeated_words else b for b in base]
        shares = rng.uniform(*self.prompt_share, len(base))
        ends = [
            _end(b, round(share * len(b.tokens))) for share, b in zip(shares, base, strict=True)
        ]
        base = [unmerged_from(b, end) for b, end in zip(base, ends, strict=True)]
        merged = merge(base, budget).sequences
        if sum(len(m.tokens) for m in merged) == sum(len(b.tokens) for b in base):
            return None
        batch, cut = self.arrays(base, merged, drawn, ends)
        return batch, sum(len(b.tokens) for b in base), dropped, cut

    def _draw(self, rng: np.random.Generator) -> list[Token]:
        count = min(self.drawn, len(self._further))
        places = rng.choice(len(self._further), count, replace=False) if count else []
        return [self._further[place] for place in places]

    def _base(self, texts: TextBatch) -> tuple[list[BaseTokens], int]:
        if self.is_encoder:
            # Those that were first to be full come first; what is too much for a batch is dropped.
            joined = self._joined(texts)
            whole = [self.prefix + text for text, _ in joined]
            base = text_layout(self._tokenizer, whole, Boundary.PRETOKEN, self.max_length)
            dropped = sum(count for _, count in joined[self.sequences :])
            dropped += sum(sequence.truncated for sequence in base[: self.sequences])
        else:
            whole = prompt_layout(self._tokenizer, ["\n".join(texts.texts)], Boundary.PRETOKEN)[0]
            opening = len(self._tokenizer.prompt_ids)
            base = list(_windows(whole, opening, self.max_length))
            read = sum(len(sequence.tokens) - opening for sequence in base[: self.sequences])
            dropped = len(whole.tokens) - opening - read
        # Longer words are read in parts, which later stay in base tokens: more is learned from.
        base = [
            replace(sequence, units=capped_units(sequence.units, self.surface_length))
            for sequence in base[: self.sequences]
        ]
        return base, dropped

    def _joined(self, texts: TextBatch) -> list[tuple[str, int]]:
        """Texts of a language joined as long as they fit: little of the batch is padding then.

        Each stands with its number of tokens.
        """
        counts = [len(pieces.ids) for pieces in self._tokenizer.encode(texts.texts)]
        full: list[tuple[str, int]] = []
        growing: dict[str, tuple[str, int]] = {}
        for text, language, count in zip(texts.texts, texts.languages, counts, strict=True):
            before, used = growing.get(language, ("", 0))
            if before and used + count > self.max_length - MARGIN:
                full.append((before, used))
                before, used = "", 0
            growing[language] = (f"{before} {text}".lstrip(), used + count)
        return full + list(growing.values())

    def arrays(
        self,
        base: Sequence[BaseTokens],
        merged: Sequence[DynamicTokens],
        drawn: Sequence[Token] = (),
        ends: Sequence[int] | None = None,
    ) -> tuple[DistillBatch, int]:
        """Pads everything to buckets, and counts the tokens with more than S pieces.

        Args:
            base, merged: sequences before and after merging.
            drawn: tokens of the large vocabulary, read and scored beside the batch's own.
            ends: base tokens of each sequence's part that may merge; by default all.
        """
        # Long batches are the rule, and every further length would compile all over again.
        length = bucket(self.max_length, TOKEN_BUCKETS)
        width = bucket(max(len(m.tokens) for m in merged), TOKEN_BUCKETS)
        own, new = self._unique(merged)
        # Of what is drawn, tokens of the batch stand for themselves. That makes the others' chance
        # of being drawn, and so the share of all that each stands for, no other.
        share = math.log(len(self._further) / len(drawn)) if drawn else 0.0
        drawn = [token for token in drawn if token not in new]
        rows = {token: i for i, token in enumerate(own)}
        # Own rows cost next to nothing: one size for all batches.
        own_count = bucket(self.sequences * length, ROW_BUCKETS)
        forms, cut = surface_forms(
            [*new, *drawn], self._tokenizer, self.surface_length, self.pad_id
        )
        half = self.surface_length // 2
        is_short = (forms != self.pad_id).sum(1) <= half
        short = self._padded(forms[is_short, :half])
        starts = np.where(is_short, np.cumsum(is_short), len(short) + np.cumsum(~is_short)) - 1
        long = self._padded(forms[~is_short])
        rows |= dict(zip(new, (own_count + starts).tolist(), strict=False))
        shift = np.full(len(short) + len(long), -np.inf, np.float32)
        shift[starts[: len(new)]] = 0
        shift[starts[len(new) :]] = share
        batch = DistillBatch(
            np.zeros((self.sequences, length), np.int32),
            np.zeros((self.sequences, length), bool),
            np.full((self.sequences, length), width, np.int32),
            np.zeros((self.sequences, width), np.int32),
            np.zeros((self.sequences, width), bool),
            np.zeros((self.sequences, width), np.int32),
            np.zeros(self.sequences, np.int32),
            np.zeros(own_count, np.int32),
            short,
            long,
            shift[: len(short)],
            shift[len(short) :],
            np.zeros(self.sequences, np.int32),
            np.zeros(len(short), np.int32),
            np.zeros(len(long), np.int32),
        )
        for i, (before, after) in enumerate(zip(base, merged, strict=True)):
            count, now = len(before.tokens), len(after.tokens)
            batch.base_ids[i, :count], batch.base_mask[i, :count] = before.ids, True
            batch.owner[i, :count] = np.repeat(np.arange(now), after.counts)
            batch.ids[i, :now] = [rows[token] for token in after.tokens]
            batch.mask[i, :now], batch.last[i, :now] = True, after.starts + after.counts - 1
            batch.prompt_length[i] = now if ends is None else (after.starts < ends[i]).sum()
        batch.own[: len(own)] = [t if isinstance(t, int) else self._own_id(t) for t in own]
        return batch, cut

    def as_part(self, batch: DistillBatch, sizes: Sequence[int], part: BatchPart) -> DistillBatch:
        """A batch as one part of that of all processes.

        Args:
            batch: from ``arrays``.
            sizes: T', M and N of every part, at least the batch's own.
            part: where in the first axes of all arrays this one's rows are.
        """
        width, short, long = sizes
        count, own = part.count, len(batch.own)
        places = [
            part.places(own),
            part.places(short)[: len(batch.short)] + count * own,
            part.places(long)[: len(batch.long)] + count * (own + short),
        ]
        ids = np.concatenate(places).astype(np.int32)[batch.ids]

        def padded(array: np.ndarray, size: int, axis: int, value: float = 0) -> np.ndarray:
            lacking = [(0, size - array.shape[i] if i == axis else 0) for i in range(array.ndim)]
            return np.pad(array, lacking, constant_values=value)

        return batch._replace(
            owner=np.where(batch.owner == batch.ids.shape[1], width, batch.owner),
            ids=padded(ids, width, 1),
            mask=padded(batch.mask, width, 1),
            last=padded(batch.last, width, 1),
            short=padded(batch.short, short, 0, self.pad_id),
            long=padded(batch.long, long, 0, self.pad_id),
            short_shift=padded(batch.short_shift, short, 0, -np.inf),
            long_shift=padded(batch.long_shift, long, 0, -np.inf),
            maker=np.full_like(batch.maker, part.index),
            short_maker=np.full(short, part.index, np.int32),
            long_maker=np.full(long, part.index, np.int32),
        )

    def _padded(self, forms: Int[np.ndarray, "n S"]) -> Int[np.ndarray, "M S"]:
        padded = np.full((bucket(len(forms), ROW_BUCKETS), forms.shape[1]), self.pad_id, np.int32)
        padded[: len(forms)] = forms
        return padded

    def _unique(self, merged: Sequence[DynamicTokens]) -> tuple[list[Token], list[Token]]:
        """Tokens with rows of the model's own, and tokens without."""
        unique = dict.fromkeys(token for sequence in merged for token in sequence.tokens)
        own = [t for t in unique if isinstance(t, int) or self._own_id(t) is not None]
        known = set(own)
        return own, [token for token in unique if token not in known]

    def _own_id(self, token: str) -> int | None:
        return self._tokenizer.id_of(token)


def _with_its_words(sequence: BaseTokens, rng: np.random.Generator) -> BaseTokens:
    """The first half of a sequence, and its words again, as far as it has more than three.

    An opening token comes once. The words come in another order, in runs of two on average: the
    same half once more is easy, since after a few tokens of it the place is known, and a text
    seldom says more than a word again. The first and the last, which may be parts of words, stay
    where they are; parts of words that are longer than a dynamic token go alone. What is repeated
    is cut into units of one token.
    """
    half = len(sequence.tokens) // 2
    opening = next((i for i, t in enumerate(sequence.tokens) if isinstance(t, str)), half)
    starts = np.flatnonzero(np.diff(sequence.units[opening:half])) + 1
    if len(starts) < 3:
        return sequence  # there is no other order
    breaks = rng.random(len(starts)) < 0.5
    breaks[[0, -1]] = True
    first, *runs, last = np.split(np.arange(opening, half), starts[breaks])
    rng.shuffle(runs)
    places = np.concatenate([np.arange(half), first, *runs, last])
    behind = sequence.units[half - 1] + 1 + np.arange(len(places) - half, dtype=np.int32)
    units = np.concatenate([sequence.units[:half], behind])
    return BaseTokens(sequence.ids[places], [sequence.tokens[i] for i in places], units)


def _end(sequence: BaseTokens, place: int) -> int:
    """Where the whole words before a place end."""
    if place == len(sequence.tokens):
        return place
    return int(np.searchsorted(sequence.units, sequence.units[place]))


def _windows(whole: BaseTokens, opening: int, length: int):
    """Consecutive stretches of a text, each behind its first ``opening`` tokens.

    All are of one length; what is left over at the end is dropped.
    """
    room = length - opening
    for start in range(opening, len(whole.tokens) - room + 1, room):
        places = [*range(opening), *range(start, start + room)]
        tokens = [whole.tokens[i] for i in places]
        yield BaseTokens(whole.ids[places], tokens, whole.units[places])
