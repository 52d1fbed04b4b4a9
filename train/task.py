"""What a training run trains: the one interface between objectives and the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from dyntok_jax.types import DyntokError


class Loaded(NamedTuple):
    """A batch from the input side.

    Attributes:
        batch: pytree of numpy arrays of bucketed shapes; its type may choose the loss. In a run of
            several processes each has its part of the first axes (``sharding.batch_part``).
        tokens: tokens in it, padding not counted, for the reported speed, which takes other
            processes to have as many.
        position: JSON value with which the input side goes on right after this batch.
        dropped: tokens that were drawn for it and had no room in it.
        cut: tokens of a vocabulary in it of which the hypernetwork reads the first pieces only; of
            several processes each counts its own.
    """

    batch: Any
    tokens: int
    position: Any
    dropped: int = 0
    cut: int = 0


class NoBatchError(DyntokError):
    """Another process of the run has no batch; it says why, and all know of it."""


class Task(Protocol):
    """An objective with its model and its data."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON values that must be equal when a run is resumed (model, data, shapes)."""
        ...

    @property
    def evaluated(self) -> Mapping[str, Any]:
        """JSON values that say what ``evaluate`` reads.

        They must be equal when a run is resumed that keeps its best checkpoint.
        """
        ...

    @property
    def mesh(self) -> Mesh:
        """Devices of the run."""
        ...

    @property
    def frozen(self) -> Any:
        """Arrays that the loss reads and nothing changes, on the mesh."""
        ...

    @property
    def beginnings(self) -> Sequence[Any]:
        """A position where batches of each kind begin; None is the start."""
        ...

    def init(self, key: PRNGKeyArray) -> Any:
        """Trainable parameters at step 0, on the mesh."""
        ...

    def shardings(self) -> Any:
        """Sharding of every trainable parameter, a tree like theirs."""
        ...

    def loss(
        self, trainables: Any, frozen: Any, batch: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
        """Loss of a batch, and scalars to be logged; pure, called inside ``jax.jit``."""
        ...

    def batches(self, position: Any) -> Iterator[Loaded]:
        """Batches from a position on, or from the start for None; endless."""
        ...

    @property
    def agree(self) -> Callable[[Any], Any] | None:
        """Gives a batch the shapes that all processes of the run share; None where it has them.

        All call it for one batch after the other, between two steps. For None, from a process that
        has no batch because its input failed, it returns None, and the others raise
        :class:`NoBatchError`.
        """
        ...

    def evaluate(self, trainables: Any) -> dict[str, float]:
        """Figures on held-out text, by name."""
        ...
