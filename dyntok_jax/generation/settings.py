"""How to generate, in which vocabulary, and what comes of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from dyntok_jax.large_vocabulary.index import Index
from dyntok_jax.merging.budget import Budget
from dyntok_jax.sampling import Plan, Sampling
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.types import DyntokError, Token

OnText = Callable[[int, str], None]
"""Called with a prompt's place among all, and the text that has been added to its answer."""

LEAST, MOST = 1e-6, 1e6
"""Between them float32 logits can be divided and multiplied, and stay numbers."""


@dataclass(frozen=True)
class GenerationConfig:
    """How to generate.

    Attributes:
        max_new_tokens: at most so many tokens.
        reduction: percent of the largest possible saving of the prompts' tokens; None tokenizes
            prompts by longest prefix under the output vocabulary instead.
        boundary: what merges do not cross.
        kept_words: so many words at a prompt's end stay in base tokens, see
            ``layouts.keep_last``; of no effect on longest prefixes.
        merge_together: merges every ``batch_size`` prompts in order together; otherwise each alone.
        batch_size: sequences in a batch.
        temperature: divides the logits; 0 takes the best token.
        top_k: candidates to draw from; 0 for all. Not more than the vocabulary has, and with
            ``codebook`` that many more.
        top_p, min_p, repetition_penalty, eos_bias: as in ``sampling.Sampling``. They act among the
            candidates: with an index a token that it does not find is not made one by them.
        stop: strings that end a text, which ends before them; the name of a special token is that
            token too.
        seed: of the draws; with it a prompt's place, or the number that ``generate`` is given for
            it, decides them, not its batch.
        truncate: cuts the beginnings of prompts that are too long, which is an error otherwise.
        candidates: tokens that an index is asked for, among which one is drawn, or the best taken;
            where ``best_only``, it is asked for one.
        codebook: so many merged tokens of the prompt, the most frequent ones, can be generated
            beside the model's own tokens.
        steps_together: tokens between two looks at the texts, which is when stop strings are found
            and texts given out; where the host searches, every token; with ``lookup_tokens`` up to
            as many more.
        rewrite_words: once so many words are finished, their base tokens in the cache are replaced
            by merged ones; 0 for never. Looked for every ``steps_together`` tokens, so that with
            more than 1 words stay unmerged until then.
        lookup_tokens: so many tokens are drafted from what the text and its prompt said before, and
            read together with the last one (``generation.lookup``): the same text, but for
            rounding, in fewer steps where it repeats. A batch goes on by what is right in all its
            texts, so that single ones gain most. Not with another output vocabulary, ``codebook``,
            ``rewrite_words`` and ``repetition_penalty``. 0 for none.
    """

    max_new_tokens: int = 128
    reduction: float | None = 100.0
    boundary: Boundary = Boundary.PRETOKEN
    kept_words: int = 1
    merge_together: bool = False
    batch_size: int = 8
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    eos_bias: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    truncate: bool = False
    candidates: int = 64
    codebook: int = 0
    steps_together: int = 16
    rewrite_words: int = 0
    lookup_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size", "candidates", "steps_together"):
            _require(name, getattr(self, name) >= 1, getattr(self, name), "a number from 1")
        for name in ("kept_words", "top_k", "codebook", "rewrite_words", "lookup_tokens"):
            _require(name, getattr(self, name) >= 0, getattr(self, name), "a number from 0")
        held = self.temperature == 0 or LEAST <= self.temperature <= MOST
        _require("temperature", held, self.temperature, f"0, or {LEAST:g} to {MOST:g}")
        _require("top_p", 0 < self.top_p <= 1, self.top_p, "above 0 and up to 1")
        _require("min_p", 0 <= self.min_p <= 1, self.min_p, "from 0 to 1")
        held = LEAST <= self.repetition_penalty <= MOST
        what = f"{LEAST:g} to {MOST:g}"
        _require("repetition_penalty", held, self.repetition_penalty, what)
        held = self.eos_bias == -math.inf or abs(self.eos_bias) <= 1e20
        _require("eos_bias", held, self.eos_bias, "from -1e20 to 1e20, or -inf")
        _require("seed", -(2**63) <= self.seed < 2**63, self.seed, "a number of 64 bits")
        for text in self.stop:
            what = "a string of at least one character, in UTF-8"
            # An argument's bytes that are no UTF-8 come as lone surrogates.
            _require("stop", text and not re.search("[\ud800-\udfff]", text), repr(text), what)
        for name, off in (("codebook", 0), ("rewrite_words", 0), ("repetition_penalty", 1)):
            given = getattr(self, name)
            what = f"{off} with lookup_tokens"
            _require(name, not self.lookup_tokens or given == off, given, what)
        if self.reduction is not None:
            Budget(reduction=self.reduction)

    @property
    def plan(self) -> Plan:
        """What of it is compiled."""
        penalized = self.repetition_penalty != 1
        if self.temperature == 0:
            return Plan(penalized=penalized)
        return Plan(False, self.top_k, self.top_p < 1, penalized)

    @property
    def best_only(self) -> bool:
        """Whether the best token is taken as the search finds it, which need find no other.

        An index that ranks by cosine finds the best by cosine then; asked for ``candidates``, of
        which the largest logit counts, it may give another token, however small the ``eos_bias``.
        """
        return self.plan == Plan() and not self.eos_bias

    @property
    def sampling(self) -> Sampling:
        """The numbers of the rules."""
        return Sampling(
            self.temperature, self.top_p, self.min_p, self.repetition_penalty, self.eos_bias
        )


def _require(name: str, valid: object, value: object, what: str) -> None:
    if not valid:
        raise DyntokError(f"{name} {value}: valid is {what}")


@dataclass(frozen=True, eq=False)
class OutputVocabulary:
    """A vocabulary to generate in, other than the model's own.

    Attributes:
        tokens: V tokens by id, the model's own first.
        input: (V, D) rows to read what was generated by; maybe a memory map.
        index: finds the rows with the largest logits.
        tokenize: a prompt to ids by longest prefixes, where there is such a way.
    """

    tokens: Sequence[Token]
    input: Float[np.ndarray, "V D"]
    index: Index
    tokenize: Callable[[BaseTokens], list[int]] | None = None

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.input) == self.index.size:
            raise DyntokError(
                f"a vocabulary of {len(self.tokens)} tokens, {len(self.input)} input rows and an "
                f"index of {self.index.size}: they do not belong together"
            )


@dataclass(frozen=True)
class Generated:
    """What follows one prompt.

    Attributes:
        text: without special tokens and without the stop string.
        ids: of all new tokens, one that ended the text included. Ids from the vocabulary's size on
            are tokens of ``codebook``.
        finish: what ended it: a token (``end``), a stop string, or the length.
        tokens: ``prompt_static`` and ``prompt_dynamic``, length of what was read of the prompt, in
            base tokens and as it was read; ``new``, generated tokens.
        seconds: ``prefill``, from the prompt as it is read to the first token, fetching its rows
            included, merging and tokenizing by longest prefix, which come before, not included;
            and ``decode``, of the others. Where the host searches, the first token is chosen and
            read in one program, so that ``prefill`` holds the first step too. Both are of the whole
            batch, and of compiling, if need be.
        kv_cache: bytes of keys and values at the end, ``static`` as they would be with base tokens
            only, of the same text, and ``dynamic``.
        truncated: tokens, as they are read, cut off the prompt's beginning.
        codebook: merged tokens of the prompt that could be generated.
    """

    text: str
    ids: list[int]
    finish: Literal["end", "stop", "length"]
    tokens: dict[str, int]
    seconds: dict[str, float]
    kv_cache: dict[str, int]
    truncated: int
    codebook: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A prompt as it is read.

    Attributes:
        place: among all prompts.
        base: before merging, without the text that was cut off.
        tokens: as the network reads them; ids of the output vocabulary where ``in_vocabulary``.
        in_vocabulary: whether they are read by the output vocabulary's rows.
        truncated: tokens cut off its beginning.
        draw: number that decides its draws, with the seed.
    """

    place: int
    base: BaseTokens
    tokens: list[Token]
    in_vocabulary: bool
    truncated: int
    draw: int = 0
