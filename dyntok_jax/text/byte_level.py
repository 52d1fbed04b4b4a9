"""Bytes spelled as printable characters, and a vocabulary spelled in them.

Every token of the pipeline is a string over 256 characters, one per byte: the table of byte-level
BPE (GPT-2, used by the original implementation), in which a space is ``Ġ`` and a line break ``Ċ``.
"""

from __future__ import annotations

from collections.abc import Iterable

from dyntok_jax.types import DyntokError

SPLIT_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The original's split pattern: each match is one pre-token (paper, section 3.1)."""


def _byte_table() -> dict[int, str]:
    """Printable Latin-1 bytes stand for themselves, the others for U+0100 onwards in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table |= {byte: chr(0x100 + rank) for rank, byte in enumerate(others)}
    return dict(sorted(table.items()))


BYTE_TO_CHAR: dict[int, str] = _byte_table()
CHAR_TO_BYTE: dict[str, int] = {char: byte for byte, char in BYTE_TO_CHAR.items()}
_BYTE_CHARS = frozenset(CHAR_TO_BYTE)
_LATIN1_TO_CHAR = {byte: char for byte, char in BYTE_TO_CHAR.items() if chr(byte) != char}
_CHAR_TO_LATIN1 = {ord(char): byte for byte, char in BYTE_TO_CHAR.items()}


def to_byte_chars(text: str) -> str:
    """Spells a text's UTF-8 bytes, one character per byte."""
    return spell_bytes(text.encode("utf-8"))


def spell_bytes(raw: bytes) -> str:
    """Spells bytes, one character per byte."""
    return raw.decode("latin-1").translate(_LATIN1_TO_CHAR)


def to_bytes(token: str) -> bytes:
    """The bytes that a byte-spelled token stands for.

    Raises:
        DyntokError: a character that stands for no byte.
    """
    if not _BYTE_CHARS.issuperset(token):
        strange = min(set(token) - _BYTE_CHARS)
        raise DyntokError(
            f"token {token!r}: {strange!r} is not one of the 256 byte characters "
            "(a space is 'Ġ', a line break 'Ċ'; text.byte_level.to_byte_chars spells any text)"
        )
    return token.translate(_CHAR_TO_LATIN1).encode("latin-1")


def to_text(tokens: Iterable[str]) -> str:
    """The text that byte-spelled tokens hold together; bytes that are not UTF-8 become U+FFFD."""
    return to_bytes("".join(tokens)).decode("utf-8", errors="replace")
