"""Tiny checkpoints with what torch computes from them (tests/fixtures/record_models.py)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dyntok_jax.models.heads import logits
from dyntok_jax.models.weights import LoadedModel, head_module, load_model, model_module

FOLDER = Path(__file__).parents[1] / "fixtures" / "models"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


class Tiny(NamedTuple):
    folder: Path
    model: LoadedModel
    record: dict[str, np.ndarray]

    @property
    def inputs(self) -> tuple[Any, ...]:
        """Embeddings, mask and, for encoders, token types."""
        rows = np.asarray(self.model.source.input, np.float32)[self.record["ids"]]
        types = [self.record["token_type"]] if "token_type" in self.record else []
        return rows, self.record["mask"], *types

    def hidden(self, dtype: Any = jnp.float32, remat: bool = False) -> Any:
        module = model_module(self.model.architecture, dtype, remat)
        return jax.jit(module.apply)({"params": self.model.params}, *self.inputs)

    @property
    def expected(self) -> np.ndarray:
        """Torch's hidden states."""
        return self.record["final"] if "final" in self.record else self.record["layers"][-1]

    def logits(self, hidden: Any, dtype: Any = jnp.float32) -> Any:
        """What the checkpoint's head makes of hidden states."""
        source = self.model.source
        rows = source.input if source.output is None else source.output
        head = head_module(self.model.architecture, dtype)
        if head is None:
            return logits(hidden, jnp.asarray(rows))
        extra = (rows, source.bias) if self.model.architecture.head == "masked_lm" else ()
        return jax.jit(head.apply)({"params": self.model.head_params}, hidden, *extra)


@functools.cache
def load(name: str) -> Tiny:
    with np.load(FOLDER / name / "record.npz") as record:
        return Tiny(FOLDER / name, load_model(FOLDER / name), dict(record))
