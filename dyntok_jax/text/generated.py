"""Generated tokens to text, as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from dyntok_jax.types import DyntokError


class GeneratedText:
    """The text of one sequence that is being generated.

    Stop strings are looked for in the bytes, wherever tokens begin and end; the text ends before
    the first one. Bytes are given out as soon as they are surely text: not while they are an
    unfinished character, or might be the beginning of a stop string. Bytes that can be no character
    become U+FFFD.

    Attributes:
        text: given out so far.
        stopped: whether a stop string was found.
    """

    def __init__(self, stops: Sequence[str] = ()):
        if "" in stops:
            raise DyntokError("an empty stop string: valid are strings of at least one character")
        self._stops = [stop.encode("utf-8") for stop in stops]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = b""
        self.text = ""
        self.stopped = False

    def add(self, raw: bytes) -> str:
        """Takes the bytes of a token, and gives out the text that is now sure."""
        if self.stopped:
            return ""
        held = self._held + raw
        found = [place for place in map(held.find, self._stops) if place >= 0]
        if found:
            self._held = held[: min(found)]
            self.stopped = True
            return self.finish()
        sure = len(held) - max((_begun(held, stop) for stop in self._stops), default=0)
        self._held = held[sure:]
        return self._give(held[:sure], final=False)

    def finish(self) -> str:
        """Gives out what was held back; no more tokens come."""
        held, self._held = self._held, b""
        return self._give(held, final=True)

    def _give(self, raw: bytes, final: bool) -> str:
        text = self._decoder.decode(raw, final)
        self.text += text
        return text


def _begun(raw: bytes, stop: bytes) -> int:
    """How many bytes at the end are the beginning of a stop string."""
    sizes = range(min(len(raw), len(stop) - 1), 0, -1)
    return next((size for size in sizes if raw.endswith(stop[:size])), 0)
