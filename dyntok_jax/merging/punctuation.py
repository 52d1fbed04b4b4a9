"""The rule of the ``word-hyphen`` boundary: punctuation joins only to punctuation.

A pair is refused where its right token is a punctuation token of the vocabulary and its left one
is not, but for the hyphen.
"""

from __future__ import annotations

from collections.abc import Iterable

_PUNCTUATION = frozenset(".,!?;:()-\"'\\/`$%&*+<=>@[]^_{|}~")


class PunctuationRule:
    """Which pairs may merge.

    Attributes:
        tokens: spelled tokens of the vocabulary with punctuation in them and no digit.
        longest: the longest of them, in bytes.
    """

    def __init__(self, vocabulary: Iterable[str]):
        self.tokens = frozenset(
            token
            for token in vocabulary
            if not _PUNCTUATION.isdisjoint(token) and not any(map(str.isdigit, token))
        )
        self.longest = max(map(len, self.tokens), default=1)

    def allows(self, left: str, right: str) -> bool:
        """Whether the pair may merge."""
        return left in self.tokens or self.mark(right) != 1

    def mark(self, token: str) -> int:
        """0 for a token without punctuation, 1 for one with it, 2 for the hyphen."""
        return int(token in self.tokens) * (2 if token == "-" else 1)
