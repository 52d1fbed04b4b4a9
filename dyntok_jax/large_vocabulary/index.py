"""Search for the output rows with the largest inner products: one interface, several indexes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Array, Float, Int


class Candidates(NamedTuple):
    """The best tokens of each sequence, the best first.

    Attributes:
        ids: (B, K) int32 rows of the vocabulary; -1 where there are fewer than K.
        logits: (B, K) float32 inner products; -inf where ``ids`` is -1.
    """

    ids: Int[Array | np.ndarray, "B K"]
    logits: Float[Array | np.ndarray, "B K"]


class Index(Protocol):
    """Finds the rows whose inner products with hidden states are largest."""

    @property
    def size(self) -> int:
        """V, rows of the vocabulary."""
        ...

    @property
    def on_device(self) -> bool:
        """Whether ``search`` may be traced inside a compiled program.

        Otherwise it takes and gives arrays of the host.
        """
        ...

    def search(self, hidden: Float[Array | np.ndarray, "B D"], k: int) -> Candidates:
        """The ``k`` best rows of every hidden state."""
        ...
