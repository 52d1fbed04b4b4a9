"""Tokens in colour, for terminals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rich.text import Text

from dyntok_jax.text.byte_level import to_bytes
from dyntok_jax.types import Token

_STYLES = ("black on bright_cyan", "black on bright_yellow", "black on bright_green")
_SPECIAL = "dim italic"


def boundaries(tokens: Sequence[Token], name: Callable[[Token], str]) -> Text:
    """The tokens side by side, each in the next colour, a thin bar between them."""
    text = Text()
    for rank, token in enumerate(tokens):
        if rank:
            text.append("│", style="dim")
        if isinstance(token, int):
            text.append(name(token), style=_SPECIAL)
        else:
            text.append(readable(token), style=_STYLES[rank % len(_STYLES)])
    return text


def readable(token: str) -> str:
    """A token's text; bytes that are no whole character as ``<E4>``, line breaks as ``⏎``."""
    text = to_bytes(token).decode("utf-8", errors="surrogateescape")
    text = re.sub("[\udc80-\udcff]", lambda match: f"<{ord(match[0]) - 0xDC00:02X}>", text)
    text = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
