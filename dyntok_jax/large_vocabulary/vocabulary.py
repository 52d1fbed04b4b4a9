"""A large vocabulary on disk: its tokens, what made them, and their rows.

DIR/vocabulary.json     the tokens by id, in byte characters; special tokens are their ids
DIR/manifest.json       sizes, hashes, base model, corpus and settings
DIR/rows.safetensors    input, and output and bias where the provider gives them (``rows.py``)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dyntok_jax.files import new_folder
from dyntok_jax.large_vocabulary.rows import RowsFile
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.text.longest_prefix import LongestPrefix
from dyntok_jax.types import DyntokError, Rows, Token

TOKENS, MANIFEST = "vocabulary.json", "manifest.json"


@dataclass(frozen=True)
class LargeVocabulary:
    """The model's own tokens, ids unchanged, and many more; ``load`` reads one.

    Attributes:
        folder: where it is.
        tokens: V tokens by id; the model's special tokens, and its ids without a token, are ints.
        base_size: how many of them, from 0, are the model's own.
        hash: SHA-256 over the tokens.
        manifest: what made it.
        tokenizer: the model's own.
    """

    folder: Path
    tokens: Sequence[Token]
    base_size: int
    hash: str
    manifest: Mapping[str, Any]
    tokenizer: BaseTokenizer

    @classmethod
    def load(cls, folder: str | Path, model_tokenizer: BaseTokenizer) -> LargeVocabulary:
        """Reads and checks a vocabulary that ``python -m train.vocabulary`` built.

        Raises:
            DyntokError: no vocabulary there, a file that was edited or is damaged, or one that was
                built for another model.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise DyntokError(f"{folder}: no large vocabulary there (train.vocabulary builds one)")
        try:
            manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
            tokens = json.loads((folder / TOKENS).read_text("utf-8"))
            said, base_size = manifest["hash"], int(manifest["base_size"])
            base_hash = manifest["base"]["vocabulary_sha256"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            said = f"{type(error).__name__}: {error}"
            raise DyntokError(f"{folder}: a damaged vocabulary ({said})") from error
        if not isinstance(tokens, list) or said != hash_of(tokens):
            raise DyntokError(f"{folder / TOKENS}: edited since it was built; build it again")
        base = base_tokens(model_tokenizer)
        if base_hash != hash_of(base) or tokens[:base_size] != base:
            raise DyntokError(
                f"{folder}: built for {manifest['base'].get('name')}, and this model's own "
                "vocabulary is another"
            )
        return cls(folder, tokens, base_size, said, manifest, model_tokenizer)

    def tokenize(self, base: BaseTokens) -> list[int]:
        """Ids of a sequence by longest prefixes; see ``LongestPrefix.tokenize``."""
        return self._longest_prefix.tokenize(base)

    @cached_property
    def _longest_prefix(self) -> LongestPrefix:
        return LongestPrefix(ids_by_spelling(self.tokens, self.tokenizer))

    @property
    def row_tokens(self) -> list[Token]:
        """What a row provider is asked for: the model's second tokens of the same bytes by id."""
        first = self.tokenizer.id_of
        own = [
            token if isinstance(token, int) or first(token) == i else i
            for i, token in enumerate(self.tokens[: self.base_size])
        ]
        return [*own, *self.tokens[self.base_size :]]

    @property
    def rows_file(self) -> RowsFile:
        """Where the rows of all tokens are, or will be."""
        return RowsFile(self.folder, self.hash, len(self.tokens))

    def rows(self) -> Rows:
        """(V, D) tables as read-only memory maps, in the dtype they were stored in.

        Raises:
            DyntokError: not computed yet, or made for another vocabulary.
        """
        return self.rows_file.read()

    @property
    def made_for(self) -> dict[str, str]:
        """What an index of these rows says that it is for: hashes of tokens and rows."""
        return {"vocabulary": self.hash, "rows": self.rows_file.metadata()["hash"]}


def ids_by_spelling(tokens: Sequence[Token], tokenizer: BaseTokenizer) -> dict[str, int]:
    """Ids of a vocabulary's spelled tokens, of those with the same bytes the first.

    Of the model's own, which come first, it is the one that its tokenizer gives.
    """
    ids: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if isinstance(token, str):
            ids.setdefault(token, i)
    for token in tokens[: tokenizer.vocab_size]:
        if isinstance(token, str) and (own := tokenizer.id_of(token)) is not None:
            ids[token] = own
    return ids


def base_tokens(tokenizer: BaseTokenizer) -> list[Token]:
    """The model's own tokens by id; a special token, or an id without a token, is its id."""
    spelled = tokenizer.spelled()
    return [spelled.get(i, i) for i in range(tokenizer.vocab_size)]


def hash_of(tokens: Sequence[Token]) -> str:
    """SHA-256 of the tokens as the file spells them."""
    return hashlib.sha256(_spelled(tokens).encode()).hexdigest()


def write_vocabulary(
    folder: Path,
    tokenizer: BaseTokenizer,
    new: Sequence[str],
    name: str,
    made_by: Mapping[str, Any],
) -> None:
    """Write a vocabulary into a new folder, whole or not at all.

    Args:
        folder: new or empty.
        tokenizer: the model's own; its tokens come first.
        new: tokens in byte characters that follow, none of them the model's.
        name: of the model.
        made_by: settings and corpus, JSON values; the manifest holds them.

    Raises:
        DyntokError: the folder cannot be written.
    """
    base = base_tokens(tokenizer)
    tokens = [*base, *new]
    manifest = {
        "size": len(tokens),
        "base_size": len(base),
        "hash": hash_of(tokens),
        "base": {"name": name, "vocabulary_sha256": hash_of(base)},
        **made_by,
    }
    with new_folder(folder) as partial:
        (partial / TOKENS).write_text(_spelled(tokens), "utf-8")
        text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
        (partial / MANIFEST).write_text(text, "utf-8")


def _spelled(tokens: Sequence[Token]) -> str:
    return json.dumps(tokens, ensure_ascii=False, separators=(",", ":"))
