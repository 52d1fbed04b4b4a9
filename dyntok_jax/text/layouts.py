"""Layouts: where special tokens stand around a text, a pair, words, a prompt or messages.

    text      <s> t </s>                       pair      <s> p </s></s> h </s>
    words     <s> w w w </s>, with word ids    prompt    what the model's own tokenizer puts before
    messages  a chat template, its special tokens as ids, the users' content as text
    ids       ids of the model, as another tokenizer of its vocabulary laid them out

``<s>`` and ``</s>`` stand for the tokenizer's own opening and closing tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from dyntok_jax.text.base_tokens import BaseTokenizer, Pieces
from dyntok_jax.text.boundaries import Boundary, unit_numbers, whole_units
from dyntok_jax.types import DyntokError, PromptError, Token


@dataclass(frozen=True)
class BaseTokens:
    """One sequence before merging.

    Attributes:
        ids: (T,) int32 ids of the model.
        tokens: T tokens, text spelled in byte characters, special tokens by id.
        units: (T,) int32; neighbours with the same number may merge.
        word_ids: (T,) int32 index of the word, -1 for special tokens; None without words.
        truncated: number of base tokens cut off.
    """

    ids: np.ndarray
    tokens: list[Token]
    units: np.ndarray
    word_ids: np.ndarray | None = None
    truncated: int = 0


@dataclass(frozen=True)
class _Segment:
    """A stretch of text within a sequence, its units numbered from 0."""

    pieces: Pieces
    units: np.ndarray
    word_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pieces.ids)


def text_layout(
    tokenizer: BaseTokenizer,
    texts: Sequence[str],
    boundary: Boundary = Boundary.PRETOKEN,
    max_length: int | None = None,
) -> list[BaseTokens]:
    """``<s> t </s>`` for each text."""
    opening, closing = _ends(tokenizer, "text")
    segments = _segments(tokenizer, texts, boundary)
    return [_assemble([opening, segment, closing], max_length, "text") for segment in segments]


def pair_layout(
    tokenizer: BaseTokenizer,
    premises: Sequence[str],
    hypotheses: Sequence[str],
    boundary: Boundary = Boundary.PRETOKEN,
    max_length: int | None = None,
) -> list[BaseTokens]:
    """``<s> p </s></s> h </s>`` for each pair; the longer side is truncated first."""
    opening, closing = _ends(tokenizer, "pair")
    sides = zip(
        _segments(tokenizer, premises, boundary),
        _segments(tokenizer, hypotheses, boundary),
        strict=True,
    )
    return [
        _assemble([opening, premise, closing, closing, hypothesis, closing], max_length, "pair")
        for premise, hypothesis in sides
    ]


def words_layout(
    tokenizer: BaseTokenizer,
    sentences: Sequence[Sequence[str]],
    boundary: Boundary = Boundary.PRETOKEN,
    max_length: int | None = None,
) -> list[BaseTokens]:
    """``<s> w w w </s>``, each word tokenized by itself; only ``sentence`` merges across words."""
    opening, closing = _ends(tokenizer, "words")
    segments = iter(_segments(tokenizer, [word for words in sentences for word in words], boundary))
    joined = [
        _join_words([next(segments) for _ in words], boundary) if words else _empty_words()
        for words in sentences
    ]
    return [_assemble([opening, words, closing], max_length, "words") for words in joined]


def prompt_layout(
    tokenizer: BaseTokenizer,
    prompts: Sequence[str],
    boundary: Boundary = Boundary.PRETOKEN,
    max_length: int | None = None,
) -> list[BaseTokens]:
    """What the tokenizer itself puts before a text, then the prompt; no closing token."""
    segments = _segments(tokenizer, prompts, boundary)
    return [_assemble([*tokenizer.prompt_ids, s], max_length, "prompt") for s in segments]


def messages_layout(
    tokenizer: BaseTokenizer,
    conversations: Sequence[Sequence[dict[str, str]]],
    boundary: Boundary = Boundary.PRETOKEN,
    max_length: int | None = None,
    add_generation_prompt: bool = True,
) -> list[BaseTokens]:
    """The model's chat template around each conversation.

    The template's special tokens become ids; the same characters in a message are text.

    Args:
        conversations: lists of ``{"role": ..., "content": ...}``.
        add_generation_prompt: ends with the opening of the assistant's turn.

    Raises:
        DyntokError: the model has no chat template, or its template refuses the messages.
    """
    return [
        _assemble(
            [
                part
                if isinstance(part, int)
                else _segments(tokenizer, [part], boundary, continuing=rank > 0)[0]
                for rank, part in enumerate(_chat_parts(tokenizer, messages, add_generation_prompt))
            ],
            max_length,
            "messages",
        )
        for messages in conversations
    ]


def ids_layout(
    tokenizer: BaseTokenizer,
    sequences: Sequence[Sequence[int]],
    boundary: Boundary = Boundary.PRETOKEN,
) -> list[BaseTokens]:
    """Sequences that are ids already; what stands between their special tokens is text.

    Raises:
        DyntokError: an id that is not in the vocabulary.
    """
    spelled = tokenizer.spelled()
    for i in (i for ids in sequences for i in ids):
        if not 0 <= i < tokenizer.vocab_size:
            raise DyntokError(f"no token {i}; valid are 0 to {tokenizer.vocab_size - 1}")

    def parts(ids: Sequence[int]) -> Iterator[int | _Segment]:
        for is_text, run in groupby(ids, key=spelled.__contains__):
            if is_text:
                of_text = list(run)
                pieces = Pieces(of_text, [spelled[i] for i in of_text])
                yield _Segment(pieces, unit_numbers(pieces.tokens, boundary))
            else:
                yield from run

    return [_assemble(list(parts(ids)), None, "ids") for ids in sequences]


def keep_last(base: BaseTokens, words: int) -> BaseTokens:
    """The sequence with the base tokens of its last words unmerged.

    What follows a prompt goes on from its last word, and is foretold best from base tokens.

    Args:
        base: one sequence.
        words: how many pre-tokens (words, but also punctuation marks and white space, and clauses
            of Chinese or Thai) of the text that the sequence ends with; of a chat that is the
            template's own.

    Raises:
        DyntokError: a negative number.
    """
    if words < 0:
        raise DyntokError(f"kept_words {words}: valid is a number from 0")
    special = [place for place, token in enumerate(base.tokens) if isinstance(token, int)]
    text = special[-1] + 1 if special else 0
    ending = [token for token in base.tokens[text:] if isinstance(token, str)]
    begins = np.flatnonzero(np.diff(unit_numbers(ending, Boundary.PRETOKEN), prepend=-1))
    if not words or not len(begins):
        return base
    return unmerged_from(base, text + int(begins[-min(words, len(begins))]))


def opened(tokenizer: BaseTokenizer, tokens: list[Token], place: int) -> list[Token]:
    """A prompt's tokens; of an empty one the opening token, since a text must follow something.

    Args:
        tokenizer: the model's own.
        tokens: merged or not.
        place: the prompt's among all, which an error names.

    Raises:
        PromptError: no tokens, and no opening token.
    """
    if tokens:
        return tokens
    if tokenizer.opening_id is None:
        raise PromptError(
            place, "an empty text, and the tokenizer has no opening token to begin with"
        )
    return [tokenizer.opening_id]


def unmerged_from(base: BaseTokens, start: int) -> BaseTokens:
    """The sequence with every base token from ``start`` on a unit of its own."""
    before = base.units[:start]
    first = before[-1] + 1 if start else 0
    own = first + np.arange(len(base.units) - start, dtype=np.int32)
    return replace(base, units=np.concatenate([before, own], dtype=np.int32))


def whole_words(
    sequences: Sequence[BaseTokens], longest: int | None, boundary: Boundary
) -> list[BaseTokens]:
    """The same, with words of more base tokens than ``longest`` cut up, so that they do not merge.

    A hypernetwork reads S pieces of a token. What has more is seldom a word, but a clause of a
    language that writes none apart, and in a row of its first pieces the rest would be lost.

    Args:
        sequences: cut at the boundary.
        longest: None leaves all as they are.
        boundary: a whole text, ``Boundary.SENTENCE``, merges in any part.
    """
    if longest is None or boundary is Boundary.SENTENCE:
        return [*sequences]
    return [replace(part, units=whole_units(part.units, longest)) for part in sequences]


def _segments(
    tokenizer: BaseTokenizer, texts: Sequence[str], boundary: Boundary, continuing: bool = False
) -> list[_Segment]:
    return [
        _Segment(pieces, unit_numbers(pieces.tokens, boundary))
        for pieces in tokenizer.encode(texts, continuing)
    ]


def _ends(tokenizer: BaseTokenizer, layout: str) -> tuple[int, int]:
    if tokenizer.opening_id is None or tokenizer.closing_id is None:
        raise DyntokError(
            f"the tokenizer has no opening or no closing token, which layout {layout!r} needs; "
            "valid here: prompt"
        )
    return tokenizer.opening_id, tokenizer.closing_id


def _join_words(words: list[_Segment], boundary: Boundary) -> _Segment:
    ids = [i for word in words for i in word.pieces.ids]
    tokens = [token for word in words for token in word.pieces.tokens]
    word_ids = np.repeat(np.arange(len(words), dtype=np.int32), [len(word) for word in words])
    if boundary is Boundary.SENTENCE:
        return _Segment(Pieces(ids, tokens), np.zeros(len(ids), np.int32), word_ids)
    return _Segment(Pieces(ids, tokens), _renumber([word.units for word in words]), word_ids)


def _empty_words() -> _Segment:
    return _Segment(Pieces([], []), np.zeros(0, np.int32), np.zeros(0, np.int32))


def _renumber(groups: list[np.ndarray]) -> np.ndarray:
    """Concatenates unit numbers so that no two groups share one."""
    following = 0
    numbered = []
    for units in groups:
        numbered.append(units + np.int32(following))
        following += int(units[-1]) + 1 if len(units) else 0
    return np.concatenate(numbered, dtype=np.int32) if numbered else np.zeros(0, np.int32)


def _assemble(parts: list[int | _Segment], max_length: int | None, layout: str) -> BaseTokens:
    """Cuts the text to what the special tokens leave, then lays the parts out."""
    specials = sum(isinstance(part, int) for part in parts)
    segments = [part for part in parts if isinstance(part, _Segment)]
    room = None if max_length is None else max_length - specials
    if room is not None and (room < 0 or max_length == 0):
        raise DyntokError(
            f"max length {max_length}: layout {layout!r} needs at least {max(specials, 1)} tokens"
        )
    keep = iter(_lengths_within([len(segment) for segment in segments], room))
    ids: list[int] = []
    tokens: list[Token] = []
    units, word_ids = [], []
    for part in parts:
        length = 1 if isinstance(part, int) else next(keep)
        ids += [part] if isinstance(part, int) else part.pieces.ids[:length]
        tokens += [part] if isinstance(part, int) else part.pieces.tokens[:length]
        units.append(np.zeros(1, np.int32) if isinstance(part, int) else part.units[:length])
        words = None if isinstance(part, int) else part.word_ids
        word_ids.append(np.full(length, -1, np.int32) if words is None else words[:length])
    return BaseTokens(
        np.asarray(ids, np.int32),
        tokens,
        _renumber(units),
        np.concatenate(word_ids) if any(s.word_ids is not None for s in segments) else None,
        specials + sum(map(len, segments)) - len(ids),
    )


def _lengths_within(lengths: list[int], room: int | None) -> list[int]:
    """Cuts the longest segment, then the next as both are equal, until all fit in the room."""
    if room is None or sum(lengths) <= room:
        return lengths
    ascending = sorted(range(len(lengths)), key=lambda i: lengths[i])
    kept = list(lengths)
    for rank, i in enumerate(ascending):
        left = len(lengths) - rank
        # The remainder of the division goes to the segments that come last in this order.
        kept[i] = min(lengths[i], room // left)
        room -= kept[i]
    return kept


def _chat_parts(
    tokenizer: BaseTokenizer, messages: Sequence[dict[str, str]], add_generation_prompt: bool
) -> list[int | str]:
    """The rendered conversation, cut at the template's special tokens."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    if tokenizer.chat_template is None:
        raise DyntokError(
            "the model has no chat template; valid layouts: text, pair, words, prompt"
        )
    names_by_length = sorted(tokenizer.special_ids, key=len, reverse=True)
    specials = "|".join(map(re.escape, names_by_length)) or "(?!)"
    escaped, restore = _escape_specials(messages, specials)
    names: dict[int | None, str] = {i: name for name, i in tokenizer.special_ids.items()}
    try:
        rendered, _ = render_jinja_template(
            [escaped],
            chat_template=tokenizer.chat_template,
            add_generation_prompt=add_generation_prompt,
            bos_token=names.get(tokenizer.opening_id, ""),
            eos_token=names.get(tokenizer.closing_id, ""),
        )
    except TemplateError as error:
        raise DyntokError(f"the chat template refuses the messages: {error}") from error
    parts = re.split(f"({specials})", rendered[0])
    parts[::2] = map(restore, parts[::2])
    _strip_texts(parts, tokenizer.tokenizer_json.get("added_tokens", []))
    return [
        tokenizer.special_ids[part] if rank % 2 else part for rank, part in enumerate(parts) if part
    ]


def _strip_texts(parts: list[str], added_tokens: list[dict]) -> None:
    """Takes from the texts, at even places, the white space that special tokens beside them eat."""
    eats_behind = {token["content"] for token in added_tokens if token.get("rstrip")}
    eats_before = {token["content"] for token in added_tokens if token.get("lstrip")}
    for rank in range(1, len(parts), 2):
        if parts[rank] in eats_behind:
            parts[rank + 1] = parts[rank + 1].lstrip()
        if parts[rank] in eats_before:
            parts[rank - 1] = parts[rank - 1].rstrip()


def _escape_specials(messages: Sequence[dict[str, str]], specials: str):
    """Messages in which a literal special token is replaced by a mark, and the way back."""
    for number, message in enumerate(messages):
        for key, value in message.items():
            if not isinstance(value, str):
                raise DyntokError(f"message {number}: {key!r} is {value!r}; valid is a text")
    held: list[str] = []
    mark = "\ue000"
    while any(mark in str(value) for message in messages for value in message.values()):
        mark += "\ue000"

    def hold(match: re.Match[str]) -> str:
        held.append(match[0])
        return f"{mark}{len(held) - 1}{mark}"

    escaped = [
        {key: re.sub(specials, hold, value) for key, value in message.items()}
        for message in messages
    ]
    return escaped, lambda text: re.sub(f"{mark}(\\d+){mark}", lambda m: held[int(m[1])], text)
