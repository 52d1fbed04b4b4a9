"""What follows each prompt of a batch, token by token."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.generation.settings import GenerationConfig, OutputVocabulary, Prompt
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.byte_level import to_bytes
from dyntok_jax.text.generated import GeneratedText
from dyntok_jax.types import Token


@dataclass
class Answer:
    """What follows one prompt so far.

    Attributes:
        prompt: what it follows.
        text: of the tokens so far.
        names: of the output vocabulary's tokens.
        ends: ids of tokens that end it.
        limit: tokens at most.
        codebook: merged tokens of the prompt, whose ids follow the vocabulary's.
        ids: so far.
        tokens: the same, spelled; special tokens by id.
        finish: what ended it; None while it goes on.
    """

    prompt: Prompt
    text: GeneratedText
    names: Names
    ends: tuple[int, ...]
    limit: int
    codebook: list[str]
    ids: list[int] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish: Literal["end", "stop", "length"] | None = None

    @classmethod
    def to(
        cls,
        prompt: Prompt,
        model: DynamicModel,
        settings: GenerationConfig,
        vocabulary: OutputVocabulary | None,
    ) -> Answer:
        """The answer to a prompt before its first token."""
        names = Names(model, vocabulary)
        merged = Counter(
            token
            for token in prompt.tokens
            if isinstance(token, str) and model.tokenizer.id_of(token) is None
        )
        codebook = [token for token, _ in merged.most_common(settings.codebook)]
        text = GeneratedText(settings.stop)
        specials = model.tokenizer.special_ids
        stops = (specials[name] for name in settings.stop if name in specials)
        ends = (*model.end_ids, *stops)
        return cls(prompt, text, names, ends, settings.max_new_tokens, codebook)

    def take(self, ids: list[int]) -> str:
        """Adds tokens up to its end, and gives the text that is new."""
        added = ""
        for i in ids:
            if self.finish is not None:
                break
            token = self.name(i)
            self.ids.append(i)
            self.tokens.append(token)
            if i in self.ends:
                self.finish = "end"
            elif isinstance(token, str):
                added += self.text.add(to_bytes(token))
            if self.text.stopped:
                self.finish = "stop"
            elif self.finish is None and len(self.ids) == self.limit:
                self.finish = "length"
            if self.finish is not None:
                added += self.text.finish()
        return added

    def name(self, i: int) -> Token:
        """A token spelled, or a special one's id."""
        place = i - self.names.size
        return self.codebook[place] if place >= 0 else self.names[i]

    @property
    def base_length(self) -> int:
        """Its length in the model's own tokens."""
        own, decompose = self.names.own_size, self.names.tokenizer.decompose
        pairs = zip(self.ids, self.tokens, strict=True)
        return sum(
            len(decompose(token)) if i >= own and isinstance(token, str) else 1
            for i, token in pairs
        )


class Names:
    """Tokens of the output vocabulary by id: spelled, or the id of a special one.

    Attributes:
        size: V.
        own_size: how many, from 0, are the model's own; without another vocabulary rows of the
            model that pad its table are too.
        tokenizer: the model's own.
    """

    def __init__(self, model: DynamicModel, vocabulary: OutputVocabulary | None):
        self.tokenizer = model.tokenizer
        if vocabulary is None:
            self.own_size = self.size = len(model.source.input)
        else:
            self.own_size, self.size = model.tokenizer.vocab_size, len(vocabulary.tokens)
        self._tokens = None if vocabulary is None else vocabulary.tokens
        self._spelled = _spelled(model.tokenizer) if vocabulary is None else {}

    def __getitem__(self, i: int) -> Token:
        return self._spelled.get(i, i) if self._tokens is None else self._tokens[i]


@lru_cache(maxsize=4)
def _spelled(tokenizer: BaseTokenizer) -> dict[int, str]:
    return tokenizer.spelled()
