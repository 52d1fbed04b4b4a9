"""The file of a reading adapter's training, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field

from dyntok_jax.config import ComputeConfig, at_least
from dyntok_jax.models.lora import LoraConfig
from dyntok_jax.types import DyntokError
from train.data import DataConfig
from train.distill_config import DistillConfig
from train.loop import TrainingConfig


@dataclass(frozen=True)
class ReadingRun:
    """A training run of an adapter by which a model reads dynamic tokens.

    Attributes:
        model: name or folder of the base model.
        data: texts.
        training: steps, optimizer, checkpoints.
        lora: shape of the adapter.
        rows: ``default``, or the folder of a hypernetwork for this model and its tokenizer; it
            stays as it is.
        distill: the loss, through all layers.
        held_out: texts for evaluations; prepared here, whatever its ``workers``.
        held_out_batches: batches of an evaluation at each merge rate.
        compute: dtype and mesh.
    """

    model: str
    data: DataConfig
    training: TrainingConfig
    lora: LoraConfig
    rows: str = "default"
    distill: DistillConfig = field(default_factory=DistillConfig)
    held_out: DataConfig | None = None
    held_out_batches: int = 8
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        at_least(self, held_out_batches=1)
        if self.distill.layers is not None:
            raise DyntokError("distill.layers: an adapter is of all layers; leave it out")
        if self.lora.dropout:
            raise DyntokError("lora.dropout: distillation has none; leave it out")
        if self.training.evaluate_every and self.held_out is None:
            raise DyntokError("training.evaluate_every needs held_out texts")
