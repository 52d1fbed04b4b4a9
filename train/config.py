"""The file of a hypernetwork's training, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dyntok_jax.config import ComputeConfig, at_least
from dyntok_jax.types import DyntokError
from train.data import DataConfig
from train.distill_config import DistillConfig
from train.loop import TrainingConfig
from train.zett_config import ZettConfig


@dataclass(frozen=True)
class HypernetShape:
    """What ``HypernetConfig`` does not take from the model.

    Attributes:
        hidden: width of the hypernetwork's own layers.
        feed_forward: F, their inner width.
        layers: L.
        heads: N.
        surface_length: S, most pieces a token is read by.
        residual: add the mean of the pieces' rows, and start from there.
        rescale: scale the pieces' rows to one deviation, and what is predicted to that of the
            model's rows, as ``zett`` always does; a step of the optimizer is then of the same size
            for every model.
        separate_output: predict output rows of their own also where the model's output rows are
            its input rows (``distill``).
        model_layers: first layers of the model that read the pieces too, see ``HypernetConfig``
            (``distill``).
        start: folder of a hypernetwork whose parameters are the first ones; it may be one that
            reads no layers.
    """

    hidden: int = 384
    feed_forward: int = 768
    layers: int = 2
    heads: int = 6
    surface_length: int = 8
    residual: bool = True
    rescale: bool = True
    separate_output: bool = False
    model_layers: int = 0
    start: Path | None = None

    def __post_init__(self) -> None:
        at_least(self, hidden=1, feed_forward=1, layers=1, heads=1, surface_length=1)
        at_least(self, model_layers=0)
        if self.hidden % self.heads:
            raise DyntokError(f"hidden: {self.hidden} units do not split into {self.heads} heads")


@dataclass(frozen=True)
class HypernetRun:
    """A training run of a hypernetwork.

    Attributes:
        model: name or folder of the base model.
        objective: which of the sections below counts.
        hypernet: shape.
        distill: settings of the objective ``distill``.
        zett: settings of the objective ``zett``.
        data: texts.
        held_out: texts for evaluations; prepared here, whatever its ``workers``.
        held_out_batches: batches of an evaluation of ``distill`` at each merge rate.
        training: steps, optimizer, checkpoints.
        compute: dtype and mesh.
    """

    model: str
    data: DataConfig
    training: TrainingConfig
    held_out: DataConfig | None = None
    held_out_batches: int = 8
    objective: Literal["distill", "zett"] = "distill"
    hypernet: HypernetShape = field(default_factory=HypernetShape)
    distill: DistillConfig = field(default_factory=DistillConfig)
    zett: ZettConfig = field(default_factory=ZettConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        if self.objective == "distill" and self.hypernet.surface_length < 2:
            raise DyntokError("hypernet.surface_length: tokens of one piece never merge; give 2")
        at_least(self, held_out_batches=1)
