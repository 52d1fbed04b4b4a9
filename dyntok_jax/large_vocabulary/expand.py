"""The new tokens of a large vocabulary: byte-pair encoding trained on texts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from dyntok_jax.large_vocabulary.vocabulary import base_tokens
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import SPLIT
from dyntok_jax.text.byte_level import BYTE_TO_CHAR
from dyntok_jax.types import DyntokError

CHECKED = 64
"""Texts at the beginning on which the trainer's reading is compared with the model's."""


def new_tokens(
    texts: Iterable[str],
    tokenizer: BaseTokenizer,
    size: int,
    min_frequency: int = 2,
    max_token_bytes: int | None = None,
) -> list[str]:
    """Tokens that the model does not have, in the order in which they are merged.

    The trainer reads the text as the model's normalizer leaves it, in pre-tokens: a new token
    crosses no boundary that merging does not cross. The same texts give the same tokens.

    Args:
        texts: what to train on.
        tokenizer: the model's own.
        size: V, of the model's tokens and the new ones together.
        min_frequency: least occurrences of a pair that is merged.
        max_token_bytes: bytes of the longest token; None: any number.

    Raises:
        DyntokError: a size below the model's own, a tokenizer whose reading the trainer cannot
            follow, or texts with too few different pieces.
    """
    own = base_tokens(tokenizer)
    if size < len(own):
        raise DyntokError(f"size {size}: the model's own vocabulary has {len(own)} tokens")
    trained = trainer_tokenizer(tokenizer)
    # All merges may be ones that the model has too.
    longest: dict[str, Any] = (
        {} if max_token_bytes is None else {"max_token_length": max_token_bytes}
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size + len(BYTE_TO_CHAR),
        min_frequency=min_frequency,
        initial_alphabet=sorted(BYTE_TO_CHAR.values()),
        show_progress=False,
        **longest,
    )
    with _one_thread():
        trained.train_from_iterator(_checked(texts, tokenizer, trained), trainer)
    vocabulary = trained.get_vocab(with_added_tokens=False)
    known = {token for token in own if isinstance(token, str)}
    # Where nothing stands for the unknown, a byte that is no token is read as nothing: a token of
    # such bytes has no row.
    unread = set(BYTE_TO_CHAR.values()) - known if tokenizer.unk_id is None else set()
    new = (token for token in vocabulary.keys() - known if unread.isdisjoint(token))
    found = sorted(new, key=vocabulary.__getitem__)
    if len(found) < size - len(own):
        raise DyntokError(
            f"size {size}: the texts give {len(found)} new tokens, {size - len(own)} are needed: "
            f"give more texts, a lower min_frequency (now {min_frequency}) or a smaller size"
        )
    return found[: size - len(own)]


def trainer_tokenizer(tokenizer: BaseTokenizer) -> Tokenizer:
    """An empty tokenizer that reads texts as the model does, and cuts them into pre-tokens.

    Raises:
        DyntokError: neither byte-level nor of the sentencepiece kind.
    """
    own = tokenizer.tokenizer_json
    stages = Tokenizer.from_str(_text_stages(own))
    reading = [stages.normalizer] if stages.normalizer else []
    for part in _parts(own.get("pre_tokenizer")):
        if part["type"] == "ByteLevel" and part["add_prefix_space"]:
            reading.append(normalizers.Prepend(" "))
        elif part["type"] == "Metaspace":
            if part.get("prepend_scheme", "always") != "never":
                reading.append(normalizers.Prepend(part["replacement"]))
            reading.append(normalizers.Replace(part["replacement"], " "))
    for part in _parts(own.get("normalizer")):
        if part["type"] == "Replace" and part["pattern"].get("String") == " ":
            reading.append(normalizers.Replace(part["content"], " "))
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence(reading)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([SPLIT, byte_level])
    return trained


def pretokens(trained: Tokenizer, text: str) -> list[str]:
    """A text's pre-tokens in byte characters, as ``trainer_tokenizer`` cuts it."""
    normalized = trained.normalizer.normalize_str(text)
    return [piece for piece, _ in trained.pre_tokenizer.pre_tokenize_str(normalized)]


def _checked(texts: Iterable[str], tokenizer: BaseTokenizer, trained: Tokenizer) -> Iterator[str]:
    """The texts, of which the first ones are read in both ways."""
    rest = iter(texts)
    first = list(islice(rest, CHECKED))
    for text, base in zip(first, tokenizer.encode(first), strict=True):
        if "".join(base.tokens) != "".join(pretokens(trained, text)):
            raise DyntokError(
                f"this model's tokenizer reads {text[:40]!r} in a way that a trainer of byte pairs "
                "cannot follow; valid: byte-level, and sentencepiece without changes to white space"
            )
    return chain(first, rest)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The tokenizers library in one thread; several wait for one another at every merge."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def _text_stages(own: dict[str, Any]) -> str:
    """The tokenizer's normalizer alone, as a tokenizer.json."""
    empty = json.loads(Tokenizer(models.BPE()).to_str())
    return json.dumps(empty | {"normalizer": own.get("normalizer")})


def _parts(stage: dict[str, Any] | None) -> list[dict[str, Any]]:
    if not stage:
        return []
    inner = stage.get("normalizers") or stage.get("pretokenizers")
    return [part for child in inner for part in _parts(child)] if inner else [stage]
