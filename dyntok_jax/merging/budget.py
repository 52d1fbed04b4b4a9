"""How far to merge: a number of merges, to exhaustion, a target reduction, or a sampled number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dyntok_jax.types import DyntokError

_UNLIMITED = 2**31 - 1


@dataclass(frozen=True)
class Budget:
    """When merging stops.

    Attributes:
        merges: at most so many merges; None for no limit.
        reduction: percent of the maximum possible saving of tokens: 0 leaves the base tokens, 100
            is the state after merging to exhaustion, and in between merging stops at the first
            merge whose saving reaches it. None for no limit.
    """

    merges: int | None = None
    reduction: float | None = None

    def __post_init__(self):
        if self.merges is not None and self.reduction is not None:
            raise DyntokError("give a number of merges or a reduction, not both")
        if self.merges is not None and self.merges < 0:
            raise DyntokError(f"merges {self.merges}: valid is a number from 0, or 'all'")
        if self.reduction is not None and not 0 <= self.reduction <= 100:
            raise DyntokError(f"reduction {self.reduction:g}: valid is a percentage from 0 to 100")

    @property
    def exhausts(self) -> bool:
        """Whether merging goes on until no pair is left."""
        return self.merges is None and self.reduction in (None, 100)

    def limits(self, most: int) -> tuple[int, int]:
        """The largest number of merges, and the saving in tokens at which to stop.

        Args:
            most: the largest possible saving in tokens.
        """
        merges = _UNLIMITED if self.merges is None else min(self.merges, _UNLIMITED)
        if self.reduction is None:
            return merges, _UNLIMITED
        # The rounding error of the product is not a token, a tiny reduction is.
        least = int(self.reduction > 0 and most > 0)
        return merges, max(least, math.ceil(self.reduction * most / 100 - 1e-9))


def sample_budget(rng: np.random.Generator, most: int) -> Budget:
    """A number of merges m ~ U(0, m_max) (paper, Eq. 4), both ends included.

    Args:
        rng: source of randomness; one draw is made.
        most: m_max, in merges. Draw once a batch, or once a sample for ``merge(per_sample=True)``.
    """
    return Budget(merges=int(rng.integers(0, most + 1)))
