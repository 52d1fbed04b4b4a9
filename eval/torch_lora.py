"""The training step of an adapter in torch, with transformers and peft, to be measured against.

Only for where these are installed; ``eval.bench_lora`` imports it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from jaxtyping import Int
from peft import PeftModel  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from train.optim import OptimizerConfig

AUTO = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}
IGNORED = -100
"""Label of what does not count, in torch."""


class TorchLora:
    """A base model with an adapter, and the optimizer of what is trained.

    The base model's own dropout is off: the encoder here has none.
    """

    def __init__(
        self,
        folder: Path,
        adapter: Path,
        kind: Literal["sequence", "token"],
        classes: int,
        config: OptimizerConfig,
        dtype: str = "float32",
    ):
        """Loads model and adapter.

        Args:
            folder: base model.
            adapter: first values, as peft keeps them.
            kind: of the head.
            classes: of it.
            config: AdamW's settings.
            dtype: of all parameters and products, float32 or float64.
        """
        base = AUTO[kind].from_pretrained(
            folder,
            num_labels=classes,
            dtype=getattr(torch, dtype),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.model = PeftModel.from_pretrained(base, adapter, is_trainable=True).to(base.dtype)
        self.trained = [part for part in self.model.parameters() if part.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
        self.clip = config.clip

    def step(
        self,
        ids: Sequence[Int[np.ndarray, " T"]],
        labels: Int[np.ndarray, "B ..."],
        rate: float,
    ) -> float:
        """One step on sequences, padded to the longest; its loss.

        Args:
            ids: of B sequences.
            labels: (B,) or (B, T), negative where there is none.
            rate: learning rate.
        """
        self.optimizer.param_groups[0]["lr"] = rate
        inputs = self._inputs(ids)
        counted = torch.from_numpy(np.where(labels < 0, IGNORED, labels).astype(np.int64))
        self.model.train()
        loss = self.model(**inputs, labels=counted).loss
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip > 0:
            # Not by ``clip_grad_norm_``, which adds 1e-6 to the norm, as optax does not.
            gradients = [part.grad for part in self.trained if part.grad is not None]
            factor = self.clip / torch.nn.utils.get_total_norm(gradients)
            for gradient in gradients:
                gradient.mul_(factor.clamp(max=1))
        self.optimizer.step()
        return loss.item()

    def predict(self, ids: Sequence[Int[np.ndarray, " T"]]) -> list[Any]:
        """Class with the highest score: of each sequence, or of each of its tokens."""
        self.model.eval()
        with torch.inference_mode():
            best = self.model(**self._inputs(ids)).logits.argmax(-1).numpy()
        if best.ndim == 1:
            return list(best)
        return [row[: len(one)] for row, one in zip(best, ids, strict=True)]

    def _inputs(self, ids: Sequence[Int[np.ndarray, " T"]]) -> dict[str, Any]:
        longest = max(map(len, ids))
        padding = self.model.config.pad_token_id or 0
        padded = np.full((len(ids), longest), padding, np.int64)
        mask = np.zeros((len(ids), longest), np.int64)
        for row, one in enumerate(ids):
            padded[row, : len(one)], mask[row, : len(one)] = one, 1
        return {"input_ids": torch.from_numpy(padded), "attention_mask": torch.from_numpy(mask)}
