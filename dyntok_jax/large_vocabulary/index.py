"""Search for the output rows with the largest inner products: one interface, several indexes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from jaxtyping import Array, Float, Int


class Candidates(NamedTuple):
    """The best tokens of each sequence, the best first.

    Attributes:
        ids: (B, K) int32 rows of the vocabulary; -1 where there are fewer than K.
        logits: (B, K) float32 inner products; -inf where ``ids`` is -1.
    """

    ids: Int[Array, "B K"]
    logits: Float[Array, "B K"]


class Index(Protocol):
    """Finds the rows whose inner products with hidden states are largest.

    Attributes:
        size: V, rows of the vocabulary.
        on_device: whether ``search`` may be traced inside a compiled program; otherwise it takes
            and gives arrays of the host.
    """

    size: int
    on_device: bool

    def search(self, hidden: Float[Array, "B D"], k: int) -> Candidates:
        """The ``k`` best rows of every hidden state."""
        ...
