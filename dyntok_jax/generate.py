"""Text after dynamically tokenized prompts, by a decoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.generation.batch import run_batch
from dyntok_jax.generation.settings import (
    Generated,
    GenerationConfig,
    OnText,
    OutputVocabulary,
    Prompt,
)
from dyntok_jax.merging.budget import Budget
from dyntok_jax.scoring import cut_left
from dyntok_jax.text.layouts import BaseTokens, keep_last, opened
from dyntok_jax.types import DyntokError, PromptError, Token

__all__ = ["Generated", "GenerationConfig", "OnText", "OutputVocabulary", "generate"]


def generate(
    model: DynamicModel,
    prompts: Sequence[BaseTokens],
    settings: GenerationConfig,
    vocabulary: OutputVocabulary | None = None,
    on_text: OnText | None = None,
    draws: Sequence[int] | None = None,
) -> list[Generated]:
    """Texts that follow prompts.

    What is generated is read by its vocabulary's own rows.

    Args:
        model: a decoder.
        prompts: as ``prompt_layout`` or ``messages_layout`` lays them out.
        settings: how to generate.
        vocabulary: to generate in; by default the model's own, each token of which is a candidate.
        on_text: gets the texts as they come.
        draws: number of each prompt from 0 to 2³¹ - 1, which with the seed decides its draws; by
            default its place.

    Raises:
        DyntokError: an encoder; settings that do not go together; see ``DynamicModel.merge``.
        PromptError: a prompt that is too long, or empty without an opening token.
    """
    if model.kind != "decoder":
        raise DyntokError(f"{model.name} is an encoder: generate needs a decoder")
    _check(model, settings, vocabulary)
    ready = _prepared(model, prompts, settings, vocabulary, draws or range(len(prompts)))
    found: dict[int, Generated] = {}
    # The longest first, so that what does not fit into memory fails at once; one by one, in order.
    alone = settings.batch_size == 1
    order = ready if alone else sorted(ready, key=lambda prompt: -len(prompt.tokens))
    for start in range(0, len(order), settings.batch_size):
        part = order[start : start + settings.batch_size]
        texts = run_batch(model, part, settings, vocabulary, on_text)
        found |= {prompt.place: text for prompt, text in zip(part, texts, strict=True)}
    return [found[place] for place in range(len(prompts))]


def _check(
    model: DynamicModel, settings: GenerationConfig, vocabulary: OutputVocabulary | None
) -> None:
    if settings.max_new_tokens >= model.max_length:
        raise DyntokError(
            f"max_new_tokens {settings.max_new_tokens}: {model.name} reads {model.max_length} "
            "tokens, prompt included"
        )
    if settings.codebook > model.max_length:
        raise DyntokError(
            f"codebook {settings.codebook}: valid is a number from 0 to {model.max_length}, the "
            f"tokens that {model.name} reads"
        )
    _check_candidates(model, settings, vocabulary)
    if vocabulary is None:
        if settings.reduction is None:
            raise DyntokError("a reduction is needed without an output vocabulary")
        return
    for name in ("codebook", "rewrite_words", "lookup_tokens"):
        if getattr(settings, name):
            raise DyntokError(f"{name}: it needs the model's own output vocabulary")
    if settings.reduction is None and vocabulary.tokenize is None:
        raise DyntokError("a reduction is needed: this vocabulary tokenizes no prompts")


def _check_candidates(
    model: DynamicModel, settings: GenerationConfig, vocabulary: OutputVocabulary | None
) -> None:
    """Refuses to choose among more tokens than there are."""
    if vocabulary is None:
        most, asked = len(model.source.input) + settings.codebook, ("top_k",)
    else:
        most = vocabulary.index.size
        asked = ("top_k",) if settings.best_only else ("candidates", "top_k")
    for name in asked:
        given = getattr(settings, name)
        if given > most:
            raise DyntokError(
                f"{name} {given}: valid is a number up to {most}, the tokens that there are to "
                "choose from"
            )


def _prepared(
    model: DynamicModel,
    prompts: Sequence[BaseTokens],
    settings: GenerationConfig,
    vocabulary: OutputVocabulary | None,
    draws: Sequence[int],
) -> list[Prompt]:
    """Prompts as they are read, cut where they are too long."""
    read = _read(model, prompts, settings, vocabulary)
    room = model.max_length - settings.max_new_tokens
    ready = []
    for place, (base, tokens) in enumerate(zip(prompts, read, strict=True)):
        in_vocabulary = settings.reduction is None
        tokens = opened(model.tokenizer, tokens, place)
        prefix, cut = _excess(model, tokens, room, settings.truncate, place)
        gone, kept = tokens[prefix : prefix + cut], tokens[:prefix] + tokens[prefix + cut :]
        if in_vocabulary and vocabulary is not None:
            gone = [vocabulary.tokens[i] for i in gone if isinstance(i, int)]
        left = len(base.tokens) - _base_length(base.tokens[prefix:], gone)
        base = cut_left(base, prefix, left)
        ready.append(Prompt(place, base, kept, in_vocabulary, cut, draws[place]))
    return ready


def _read(
    model: DynamicModel,
    prompts: Sequence[BaseTokens],
    settings: GenerationConfig,
    vocabulary: OutputVocabulary | None,
) -> list[list[Token]]:
    """The tokens the network reads."""
    if settings.reduction is None:
        assert vocabulary is not None and vocabulary.tokenize is not None  # _check has seen to it
        return [list(vocabulary.tokenize(base)) for base in prompts]
    budget = Budget(reduction=settings.reduction)
    together = settings.batch_size if settings.merge_together else max(len(prompts), 1)
    alone = not settings.merge_together
    prompts = [keep_last(base, settings.kept_words) for base in prompts]
    groups = [prompts[i : i + together] for i in range(0, len(prompts), together)]
    merged = [model.merge(part, budget, settings.boundary, per_sample=alone) for part in groups]
    return [sequence.tokens for part in merged for sequence in part.sequences]


def _excess(
    model: DynamicModel, tokens: list[Token], room: int, truncate: bool, place: int
) -> tuple[int, int]:
    """Tokens at a prompt's beginning that stay, and how many behind them are too many.

    What stays is what the tokenizer puts before every prompt.
    """
    excess = len(tokens) - room
    if excess <= 0:
        return 0, 0
    if not truncate:
        raise PromptError(
            place,
            f"{len(tokens)} tokens, and there is room for {room} before the new ones (truncate "
            "cuts its beginning)",
        )
    before = model.tokenizer.prompt_ids
    prefix = len(before) if tokens[: len(before)] == before and len(before) < room else 0
    return prefix, excess


def _base_length(base: Sequence[Token], gone: Sequence[Token]) -> int:
    """Base tokens whose text lies within that of some tokens at the same beginning."""

    def width(token: Token) -> int:
        return len(token) if isinstance(token, str) else 1

    ends = np.cumsum([width(token) for token in base])
    return int(np.searchsorted(ends, sum(map(width, gone)), side="right"))
