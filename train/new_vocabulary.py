"""A new tokenizer's vocabulary in terms of a model's: which tokens stand for which."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.byte_level import to_byte_chars
from dyntok_jax.types import DyntokError, Token

logger = logging.getLogger(__name__)

ROLES = {
    "eos": ("eos", "sep"),
    "bos": ("bos", "cls"),
    "sep": ("sep", "eos"),
    "cls": ("cls", "bos"),
    "mask": ("mask",),
    "unk": ("unk",),
    "pad": ("pad", "eos", "sep"),
}
"""Role of a special token, and the roles of the base's that stand for it, best first.

A token of several roles is matched by the first of them in this order.
"""


@dataclass(frozen=True)
class TokenizerFolder:
    """A tokenizer with what its folder says of it.

    Attributes:
        tokenizer: the tokenizer.
        config: the content of ``tokenizer_config.json``, with the roles of an older
            ``special_tokens_map.json``.
        roles: role -> id.
    """

    tokenizer: BaseTokenizer
    config: dict[str, Any]
    roles: dict[str, int]

    @classmethod
    def read(cls, folder: Path) -> TokenizerFolder:
        """Reads a folder with a ``tokenizer.json``.

        Raises:
            DyntokError: no tokenizer there, or one that cannot be read.
        """
        tokenizer = BaseTokenizer.from_folder(folder)
        older = read_json(folder / "special_tokens_map.json")
        named = {key: older[key] for role in ROLES if (key := f"{role}_token") in older}
        config = named | read_json(folder / "tokenizer_config.json")
        return cls(tokenizer, config, roles_of(tokenizer, config))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file.

    Raises:
        DyntokError: anything else in it.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DyntokError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise DyntokError(f"{path}: not a JSON object")
    return content


def roles_of(tokenizer: BaseTokenizer, config: Mapping[str, Any]) -> dict[str, int]:
    """Roles as configured; where a tokenizer is silent, the ends and the unknown token it uses."""
    roles: dict[str, int] = {}
    for role in ROLES:
        name = config.get(f"{role}_token")
        name = name.get("content") if isinstance(name, dict) else name
        if name in tokenizer.special_ids:
            roles[role] = tokenizer.special_ids[name]
    silent = {
        "bos": None if "cls" in roles else tokenizer.opening_id,
        "eos": None if "sep" in roles else tokenizer.closing_id,
        "unk": tokenizer.unk_id,
        "mask": _usual(tokenizer, "<mask>", "[MASK]"),
        "pad": _usual(tokenizer, "<pad>", "[PAD]"),
    }
    return {role: i for role, i in silent.items() if i is not None} | roles


def _usual(tokenizer: BaseTokenizer, *names: str) -> int | None:
    ids = tokenizer.special_ids
    return next((ids[name] for name in names if name in ids), None)


@dataclass(frozen=True)
class Matched:
    """What each id of a new vocabulary is to a base model.

    Attributes:
        tokens: for each id a token in byte characters, or the base's id whose row it keeps.
        kept: the latter: special tokens, and byte tokens beside others of the same bytes.
        added: special token's id -> its id in the fine-tuned model, where only that has it.
        unmatched: special token without a counterpart -> id; it is read by its spelling.
        gaps: ids without a token, or with one of bytes that the base has no token for; any row of
            the base stands there.
    """

    tokens: list[Token]
    kept: dict[int, int]
    added: dict[int, int]
    unmatched: dict[str, int]
    gaps: list[int]


def match(
    new: TokenizerFolder, base: TokenizerFolder, tuned: TokenizerFolder | None = None
) -> Matched:
    """Match special tokens by role, then by content; all else is read by its bytes.

    Args:
        new: the new tokenizer.
        base: the tokenizer of the model whose rows are read.
        tuned: that of a model fine-tuned from it, whose roles come first: a chat may end otherwise
            than a text.
    """
    kept, added = _special(new, base), {}
    if tuned is not None:
        names = {i: name for name, i in tuned.tokenizer.special_ids.items()}
        theirs = {i: own for i, own in _special(new, tuned).items() if own in names}
        ids = base.tokenizer.special_ids
        added = {i: own for i, own in theirs.items() if names[own] not in ids}
        kept |= {i: ids[names[own]] for i, own in theirs.items() if i not in added}
        kept = {i: own for i, own in kept.items() if i not in added}
    spelled = {name: i for name, i in new.tokenizer.special_ids.items() if i not in kept}
    unmatched = {name: i for name, i in spelled.items() if i not in added}
    if unmatched:
        logger.warning(
            "the base has no special tokens like %s: their rows are those of their spelling",
            ", ".join(unmatched),
        )
    texts = new.tokenizer.spelled()
    kept = _second_spellings(texts, base.tokenizer) | kept
    tokens: dict[int, Token] = {**texts}
    tokens |= {i: to_byte_chars(name) for name, i in spelled.items()} | kept
    size = max(tokens) + 1
    tokens = {i: token for i, token in tokens.items() if _readable(token, base.tokenizer)}
    gaps = [i for i in range(size) if i not in tokens]
    return Matched([tokens.get(i, 0) for i in range(size)], kept, added, unmatched, gaps)


def _special(new: TokenizerFolder, old: TokenizerFolder) -> dict[int, int]:
    """New ids of special tokens -> the old ids, by role and then by content."""
    found: dict[int, int] = {}
    for role, counterparts in ROLES.items():
        ids = [old.roles[name] for name in counterparts if name in old.roles]
        if role in new.roles and ids:
            found.setdefault(new.roles[role], ids[0])
    theirs = old.tokenizer.special_ids
    by_name = {i: theirs[name] for name, i in new.tokenizer.special_ids.items() if name in theirs}
    return by_name | found


def _readable(token: Token, base: BaseTokenizer) -> bool:
    return isinstance(token, int) or base.unk_id is not None or bool(base.decompose(token))


def _second_spellings(spelled: Mapping[int, str], base: BaseTokenizer) -> dict[int, int]:
    """Byte tokens whose byte is another token too, as in the base (``<0x41>`` beside ``A``)."""
    new_ids, base_ids = _ids_of_repeated(spelled), _ids_of_repeated(base.spelled())
    return {
        i: own
        for token in new_ids.keys() & base_ids.keys()
        if len(new_ids[token]) == len(base_ids[token])
        for i, own in zip(new_ids[token], base_ids[token], strict=True)
        if own != base.id_of(token)
    }


def _ids_of_repeated(spelled: Mapping[int, str]) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = {}
    for i in sorted(spelled):
        ids.setdefault(spelled[i], []).append(i)
    return {token: found for token, found in ids.items() if len(found) > 1}
