"""A vocabulary's own spelling and byte characters, both ways, for each family of tokenizers.

The families differ in how a token says "a space stands before me": byte-level BPE writes ``Ġ``,
sentencepiece models ``▁``, and WordPiece marks the tokens without one by ``##``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from tokenizers import Tokenizer

from dyntok_jax.text.byte_level import spell_bytes, to_byte_chars, to_bytes
from dyntok_jax.types import DyntokError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Spelling(Protocol):
    """How one family of tokenizers spells its tokens."""

    def spell(self, piece: str) -> str:
        """A token of the vocabulary (or the text of an unknown one) in byte characters."""
        ...

    def id_of(self, token: str) -> int | None:
        """The vocabulary's token with exactly these bytes, if there is one."""
        ...

    def decompose(self, token: str) -> list[int]:
        """The model's own ids for these bytes, by its model alone, without pre-tokenization."""
        ...


class ByteLevelSpelling:
    """Byte-level BPE, and any tokenizer already converted to byte level: spelled as they are.

    Only added tokens are written as plain text.
    """

    def __init__(self, tokenizer: Tokenizer, added: Iterable[str] = ()):
        self._tokenizer = tokenizer
        self._added = {name: to_byte_chars(name) for name in added}

    def spell(self, piece: str) -> str:
        """See ``Spelling.spell``."""
        return self._added.get(piece, piece)

    def id_of(self, token: str) -> int | None:
        """See ``Spelling.id_of``."""
        return self._tokenizer.token_to_id(token)

    def decompose(self, token: str) -> list[int]:
        """See ``Spelling.decompose``."""
        return [piece.id for piece in self._tokenizer.model.tokenize(token)]


class SentencePieceSpelling:
    """Unigram and BPE in which a meta character stands for a space, with or without byte tokens."""

    def __init__(self, tokenizer: Tokenizer, meta: str, unk_id: int | None):
        self._tokenizer = tokenizer
        self._meta = meta
        self._unk_id = unk_id
        self._spelled: dict[str, str] = {}

    def spell(self, piece: str) -> str:
        """See ``Spelling.spell``."""
        if piece not in self._spelled:
            byte = _BYTE_TOKEN.fullmatch(piece)
            self._spelled[piece] = (
                spell_bytes(bytes([int(byte[1], 16)]))
                if byte
                else to_byte_chars(piece.replace(self._meta, " "))
            )
        return self._spelled[piece]

    def id_of(self, token: str) -> int | None:
        """See ``Spelling.id_of``."""
        raw = to_bytes(token)
        try:
            piece = raw.decode("utf-8").replace(" ", self._meta)
        except UnicodeDecodeError:
            piece = ""
        found = self._tokenizer.token_to_id(piece) if piece else None
        return self._byte_id(raw[0]) if found is None and len(raw) == 1 else found

    def decompose(self, token: str) -> list[int]:
        """See ``Spelling.decompose``; bytes outside UTF-8 are byte tokens, or unknown."""
        text = to_bytes(token).decode("utf-8", errors="surrogateescape").replace(" ", self._meta)
        ids: list[int] = []
        for run in re.findall("[\udc80-\udcff]|[^\udc80-\udcff]+", text):
            if "\udc80" <= run <= "\udcff":
                byte = self._byte_id(ord(run) - 0xDC00)
                ids += [i for i in (byte if byte is not None else self._unk_id,) if i is not None]
            else:
                ids += [piece.id for piece in self._tokenizer.model.tokenize(run)]
        return ids

    def _byte_id(self, byte: int) -> int | None:
        return self._tokenizer.token_to_id(f"<0x{byte:02X}>")


class WordPieceSpelling:
    """WordPiece: a token without the continuing prefix begins a word, so a space stands before it.

    The spelled text is the text as the tokenizer's own pre-tokenizer cuts it into words.
    """

    def __init__(self, tokenizer: Tokenizer, prefix: str, unk_id: int | None):
        self._tokenizer = tokenizer
        self._prefix = prefix
        self._unk_id = unk_id

    def spell(self, piece: str) -> str:
        """See ``Spelling.spell``."""
        if piece.startswith(self._prefix):
            return to_byte_chars(piece[len(self._prefix) :])
        return to_byte_chars(" " + piece)

    def id_of(self, token: str) -> int | None:
        """See ``Spelling.id_of``."""
        text = to_bytes(token).decode("utf-8", errors="replace")
        return self._tokenizer.token_to_id(text[1:] if text[:1] == " " else self._prefix + text)

    def decompose(self, token: str) -> list[int]:
        """See ``Spelling.decompose``; greedy longest match, an unmatched word is unknown."""
        words = to_bytes(token).decode("utf-8", errors="replace").split(" ")
        ids = self._match(words[0], self._prefix) if words[0] else []
        for word in words[1:]:
            ids += self._match(word, "")
        return ids

    def _match(self, word: str, prefix: str) -> list[int]:
        ids: list[int] = []
        while word:
            for length in range(len(word), 0, -1):
                found = self._tokenizer.token_to_id(prefix + word[:length])
                if found is not None:
                    break
            else:
                return [] if self._unk_id is None else [self._unk_id]
            ids.append(found)
            word, prefix = word[length:], self._prefix
        return ids


def spelling_of(tokenizer_json: dict[str, Any], tokenizer: Tokenizer) -> Spelling:
    """Chooses the spelling of a tokenizer.json.

    Raises:
        DyntokError: a tokenizer whose tokens do not tell where a space stood.
    """
    model = tokenizer_json["model"]
    parts = list(_parts(tokenizer_json, "normalizer")) + list(
        _parts(tokenizer_json, "pre_tokenizer")
    )
    unk_id = unknown_id(model, tokenizer.token_to_id)
    if any(part["type"] == "ByteLevel" for part in parts):
        added = (t["content"] for t in tokenizer_json.get("added_tokens", []) if not t["special"])
        return ByteLevelSpelling(tokenizer, added)
    if model["type"] == "WordPiece":
        return WordPieceSpelling(tokenizer, model["continuing_subword_prefix"], unk_id)
    metas = [part["replacement"] for part in parts if part["type"] == "Metaspace"]
    metas += [
        part["content"]
        for part in parts
        if part["type"] == "Replace" and part["pattern"].get("String") == " "
    ]
    if model["type"] in ("BPE", "Unigram") and metas and not model.get("end_of_word_suffix"):
        return SentencePieceSpelling(tokenizer, metas[0], unk_id)
    raise DyntokError(
        f"tokenizer of type {model['type']} does not mark spaces in its tokens; valid: byte-level "
        "BPE, Unigram or BPE with a meta character for spaces, WordPiece"
    )


def unknown_id(model: dict[str, Any], token_to_id: Callable[[str], int | None]) -> int | None:
    """The id that the model of a tokenizer.json gives to unknown text."""
    if model["type"] == "Unigram":
        return model["unk_id"]
    return token_to_id(model["unk_token"]) if model.get("unk_token") else None


def _parts(tokenizer_json: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    """The stage's parts, with sequences opened."""
    part = tokenizer_json.get(stage)
    if not part:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers")
    return [leaf for child in inner for leaf in _parts({stage: child}, stage)] if inner else [part]
