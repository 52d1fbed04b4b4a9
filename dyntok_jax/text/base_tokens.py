"""Text to base tokens: the model's own ids, spelled as byte characters.

Special tokens are ids only: where they stand is said by ``layouts``, and a literal ``<s>`` inside
a user's text is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Encoding, Tokenizer

from dyntok_jax.text.byte_level import CHAR_TO_BYTE
from dyntok_jax.text.spelling import ByteLevelSpelling, spelling_of, unknown_id
from dyntok_jax.types import DyntokError

# Where neither the configuration nor the tokenizer's own template names them.
_USUAL_OPENING = ("<s>", "[CLS]", "<bos>", "<|begin_of_text|>", "<|endoftext|>")
_USUAL_CLOSING = ("</s>", "[SEP]", "<eos>", "<|end_of_text|>", "<|endoftext|>")
_STAGES = ("normalizer", "pre_tokenizer")  # where a tokenizer may put a space before a text
_USUAL_OTHERS = ("<pad>", "[PAD]", "<unk>", "[UNK]", "<mask>", "[MASK]")


class Pieces(NamedTuple):
    """The base tokens of one text: (T,) ids and their spelling in byte characters."""

    ids: list[int]
    tokens: list[str]


class BaseTokenizer:
    """A Hugging Face fast tokenizer whose tokens are spelled as byte characters.

    Attributes:
        special_ids: special token -> id.
        opening_id, closing_id: the tokenizer's own first and last token of a sequence, if any.
        prompt_ids: what the tokenizer itself puts before a text (nothing for some decoders).
        pad_id: padding; the closing token where the tokenizer has none of its own.
        unk_id: unknown text, if the tokenizer has such a token.
        vocab_size: V, counting added tokens.
        chat_template: the Jinja template of a conversation, or None.
        tokenizer_json: the tokenizer as it was given.
    """

    def __init__(self, tokenizer_json: dict[str, Any], config: dict[str, Any] | None = None):
        config = config or {}
        self.tokenizer_json = tokenizer_json
        text_only = _text_only(tokenizer_json)
        continuing = text_only | {"pre_tokenizer": _never_prepend(text_only["pre_tokenizer"])}
        self._first = _Engine.of(text_only)
        self._continuing = self._first if continuing == text_only else _Engine.of(continuing)
        self._tokenizer = self._first.tokenizer
        self._spelling = spelling_of(tokenizer_json, self._tokenizer)
        added = {token["content"]: token["id"] for token in text_only["added_tokens"]}
        # Without the special tokens before them, added tokens move up into their ids.
        self._moved_ids = {self._tokenizer.token_to_id(name): i for name, i in added.items()}
        self._added_ids = {self._spelling.spell(name): i for name, i in added.items()}
        self.unk_id = unknown_id(tokenizer_json["model"], self._tokenizer.token_to_id)
        self.chat_template: str | None = config.get("chat_template")
        self.special_ids = _special_ids(tokenizer_json, self._tokenizer)
        prefix, suffix = self._own_ends()
        self.prompt_ids = prefix
        self.opening_id = self._named(config, ("cls_token", "bos_token"), prefix, _USUAL_OPENING)
        self.closing_id = self._named(config, ("sep_token", "eos_token"), suffix, _USUAL_CLOSING)
        pad = self._named(config, ("pad_token",), [], ("<pad>", "[PAD]"))
        self.pad_id = pad if pad is not None else self.closing_id
        ids = [*self.special_ids.values(), *added.values()]
        self.vocab_size = max([*(i + 1 for i in ids), self._tokenizer.get_vocab_size(False)])

    @classmethod
    def from_folder(cls, folder: Path) -> BaseTokenizer:
        """Reads ``tokenizer.json`` and, where present, ``tokenizer_config.json``.

        Raises:
            DyntokError: no tokenizer.json, or files that cannot be read.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise DyntokError(f"{folder}: no tokenizer.json there (a fast tokenizer is needed)")
        config_path = path.with_name("tokenizer_config.json")
        template_path = path.with_name("chat_template.jinja")
        try:
            config = json.loads(config_path.read_text("utf-8")) if config_path.is_file() else {}
            if not isinstance(config, dict):
                raise ValueError("no JSON object")
        except (OSError, ValueError, RecursionError) as error:
            raise DyntokError(f"{config_path}: not a tokenizer's config ({error})") from error
        try:
            if template_path.is_file():
                config["chat_template"] = template_path.read_text("utf-8")
            return cls(json.loads(path.read_text("utf-8")), config)
        except DyntokError as error:
            raise DyntokError(f"{path}: {error}") from error
        except Exception as error:  # the tokenizers library raises bare Exception
            raise DyntokError(
                f"{path}: not a tokenizer of the tokenizers library ({error})"
            ) from error

    def encode(self, texts: Sequence[str], continuing: bool = False) -> list[Pieces]:
        """Base tokens of each text, without special tokens.

        Lone surrogates, which UTF-8 cannot hold, are read as U+FFFD.

        Args:
            texts: the texts.
            continuing: whether they stand behind a special token; some tokenizers put a space
                before the first text only.
        """
        return self._encode(self._continuing if continuing else self._first, texts)

    def _encode(self, engine: _Engine, texts: Sequence[str]) -> list[Pieces]:
        texts = [re.sub("[\ud800-\udfff]", "\ufffd", text) for text in texts]
        encodings = engine.tokenizer.encode_batch(texts, add_special_tokens=False)
        spell = self._spelling.spell
        pieces = []
        for text, encoding in zip(texts, encodings, strict=True):
            ids, tokens = encoding.ids, [spell(token) for token in encoding.tokens]
            if engine.words and self.unk_id in ids:
                self._spell_unknown(engine.words.encode(text), encoding, tokens)
            if self._moved_ids:
                ids = [self._moved_ids.get(i, i) for i in ids]
            pieces.append(Pieces(ids, tokens))
        return pieces

    def encode_continuations(self, texts: Sequence[str]) -> list[Pieces]:
        """Base tokens of texts that go on in the middle of another: no space is put before them."""
        return self._encode(self._joined, texts)

    @cached_property
    def _joined(self) -> _Engine:
        text_only = _text_only(self.tokenizer_json)
        return _Engine.of(text_only | {stage: _joined(text_only[stage]) for stage in _STAGES})

    def id_of(self, token: str) -> int | None:
        """The id of the vocabulary's token with exactly these bytes; None for special tokens."""
        if token in self._added_ids:
            return self._added_ids[token]
        found = self._spelling.id_of(token)
        return None if found in self.special_ids.values() else found

    def decompose(self, token: str) -> list[int]:
        """The model's own ids for a byte-spelled string, without pre-tokenization."""
        return self._spelling.decompose(token) if token else []

    def vocabulary(self) -> list[str]:
        """All tokens of the vocabulary in byte characters, special ones left out."""
        return [*self.spelled().values()]

    def spelled(self) -> dict[int, str]:
        """Id -> token in byte characters, of all but special tokens."""
        special = set(self.special_ids.values()) - self._moved_ids.keys()
        pieces = self._tokenizer.get_vocab().items()
        return {
            self._moved_ids.get(i, i): self._spelling.spell(piece)
            for piece, i in pieces
            if i not in special
        }

    def _spell_unknown(self, words: Encoding, encoding: Encoding, tokens: list[str]) -> None:
        """Puts the text of unknown tokens in their place, going along the words they are of."""
        texts: dict[int | None, str] = {}
        for word, piece in zip(words.word_ids, words.tokens, strict=True):
            texts[word] = texts.get(word, "") + piece
        spelled = {word: self._spelling.spell(text) for word, text in texts.items()}
        done = dict.fromkeys(spelled, 0)
        for i, (index, word) in enumerate(zip(encoding.ids, encoding.word_ids, strict=True)):
            if index == self.unk_id:
                tokens[i] = spelled[word][done[word] : self._unknown_end(spelled[word], done[word])]
            done[word] += len(tokens[i])

    def _unknown_end(self, word: str, start: int) -> int:
        """Where the unknown token ends that starts there in a spelled word."""
        model = self.tokenizer_json["model"]
        if model["type"] == "WordPiece":
            return len(word)
        end = self._character_end(word, start)
        while model.get("fuse_unk") and end < len(word):
            following = self._character_end(word, end)
            if self._spelling.id_of(word[end:following]) is not None:
                break
            end = following
        return end

    def _character_end(self, word: str, start: int) -> int:
        """Where the character ends that is one for the model: of byte-level BPE, one byte."""
        end = start + 1
        if not isinstance(self._spelling, ByteLevelSpelling):
            while end < len(word) and 0x80 <= CHAR_TO_BYTE[word[end]] < 0xC0:
                end += 1
        return end

    def _own_ends(self) -> tuple[list[int], list[int]]:
        """What the tokenizer's own template puts before and after a text."""
        encoding = self._tokenizer.encode("a", add_special_tokens=True)
        mask = encoding.special_tokens_mask
        first = mask.index(0) if 0 in mask else len(mask)
        last = len(mask) - mask[::-1].index(0) if 0 in mask else len(mask)
        return encoding.ids[:first], encoding.ids[last:]

    def _named(
        self, config: dict[str, Any], keys: tuple[str, ...], own: list[int], usual: tuple[str, ...]
    ) -> int | None:
        """Id of the first of: a configured token, the template's own, a usual name."""
        for key in keys:
            name = config.get(key)
            name = name.get("content") if isinstance(name, dict) else name
            if name in self.special_ids:
                return self.special_ids[name]
        if own:
            return own[0]
        return next((self.special_ids[name] for name in usual if name in self.special_ids), None)


def _text_only(tokenizer_json: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer without its special tokens, so that nothing in a text can spell one."""
    specials = {
        token["content"] for token in tokenizer_json.get("added_tokens", []) if token["special"]
    }
    model = dict(tokenizer_json["model"])
    if model["type"] == "Unigram":
        # Left in the vocabulary they would win any search, with their score of 0. No text reaches
        # a Unigram model with a plain space in it.
        model["vocab"] = [
            [" " + piece if piece in specials else piece, score] for piece, score in model["vocab"]
        ]
    elif model["type"] == "WordPiece":
        # A whole word that spells one would be it.
        specials.discard(model["unk_token"])
        model["vocab"] = {
            " " + piece if piece in specials else piece: i for piece, i in model["vocab"].items()
        }
    return tokenizer_json | {
        "added_tokens": [t for t in tokenizer_json.get("added_tokens", []) if not t["special"]],
        "model": model,
        "normalizer": tokenizer_json.get("normalizer"),
        "pre_tokenizer": tokenizer_json.get("pre_tokenizer"),
        "truncation": None,
        "padding": None,
    }


class _Engine(NamedTuple):
    """A tokenizer, and one whose tokens are the texts of whole words.

    Unigram reports an unknown stretch by its text, the other models as ``<unk>``: these need the
    second, a Unigram to which all is unknown.
    """

    tokenizer: Tokenizer
    words: Tokenizer | None

    @classmethod
    def of(cls, text_only: dict[str, Any]) -> _Engine:
        tokenizer = Tokenizer.from_str(json.dumps(text_only))
        if text_only["model"]["type"] == "Unigram":
            return cls(tokenizer, None)
        model = {"type": "Unigram", "unk_id": 0, "vocab": [[" ", 0.0]], "byte_fallback": False}
        words = text_only | {"model": model, "post_processor": None}
        return cls(tokenizer, Tokenizer.from_str(json.dumps(words)))


def _never_prepend(part: Any) -> Any:
    """A pre-tokenizer as it works on a text that is not the first."""
    if isinstance(part, list):
        return [_never_prepend(child) for child in part]
    if not isinstance(part, dict):
        return part
    part = {key: _never_prepend(value) for key, value in part.items()}
    return part | {"prepend_scheme": "never"} if part.get("prepend_scheme") == "first" else part


def _joined(part: Any) -> Any:
    """A normalizer or pre-tokenizer that puts no space before a text."""
    if isinstance(part, list):
        return [_joined(child) for child in part if child.get("type") != "Prepend"]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return None
    part = {
        key: _joined(value) if isinstance(value, list) else value for key, value in part.items()
    }
    never = {"prepend_scheme": "never", "add_prefix_space": False}
    return part | {key: value for key, value in never.items() if key in part}


def _special_ids(tokenizer_json: dict[str, Any], tokenizer: Tokenizer) -> dict[str, int]:
    """The declared special tokens; a byte-level conversion drops them, so there the usual names."""
    declared = {
        t["content"]: t["id"] for t in tokenizer_json.get("added_tokens", []) if t["special"]
    }
    if declared:
        return declared
    usual = (*_USUAL_OPENING, *_USUAL_CLOSING, *_USUAL_OTHERS)
    found = {name: tokenizer.token_to_id(name) for name in usual}
    return {name: index for name, index in found.items() if index is not None}
