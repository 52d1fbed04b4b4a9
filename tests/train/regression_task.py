"""A small regression as a task of the loop; run as a program it trains it."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dyntok_jax.config import MeshConfig
from dyntok_jax.models.products import product
from dyntok_jax.sharding import make_mesh
from train.loop import TrainingConfig, train
from train.optim import OptimizerConfig, Phase
from train.task import Loaded


class Regression:
    """Fits a two-layer network to a linear map with noise drawn in the loss."""

    def __init__(self, devices=1, width=8, delay=0.0, bad=(), rows=16, lengths=(4,)):
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
        self.width, self.delay, self.bad, self.rows, self.lengths = width, delay, bad, rows, lengths
        self.settings = {"model": {"width": width, "name": "regression"}}
        self.evaluated = {"texts": 8}
        self.frozen = {"noise": jnp.float32(0.01)}
        self.taken = []

    @property
    def beginnings(self):
        return (None,)

    @functools.partial(jax.jit, static_argnums=0)
    def init(self, key):
        shapes = {"first": (4, self.width), "bias": (self.width,), "second": (self.width, 1)}
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(k, shape) * 0.5
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def shardings(self):
        cut = NamedSharding(self.mesh, PartitionSpec(None, "data"))
        whole = NamedSharding(self.mesh, PartitionSpec())
        return {"first": cut, "bias": whole, "second": whole}

    def loss(self, trainables, frozen, batch, key):
        x = batch["x"] + frozen["noise"] * jax.random.normal(key, batch["x"].shape)
        inner = jnp.tanh(product(x, trainables["first"]) + trainables["bias"])
        y = product(inner, trainables["second"])
        error = jnp.mean((y[..., 0] - batch["y"]) ** 2)
        return error, {"root": jnp.sqrt(error)}

    def batches(self, position):
        number = 0 if position is None else position["next"]
        while True:
            time.sleep(self.delay)
            draw = np.random.default_rng(number)
            length = self.lengths[number % len(self.lengths)]
            x = draw.normal(size=(self.rows, length, 4)).astype(np.float32)
            y = x @ np.array([1.0, -1.0, 0.5, 0.25], np.float32)
            if number + 1 in self.bad:
                y[0] = np.nan
            number += 1
            self.taken.append(number)
            yield Loaded({"x": x, "y": y}, x[..., 0].size, {"next": number})

    @property
    def agree(self):
        return None

    def evaluate(self, trainables):
        return {"size": float(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(trainables)))}


def config(out, steps=20, **changes):
    optimizer = OptimizerConfig(phases=(Phase(peak=1e-2, warmup=3, decay="cosine", end=0.1),))
    fields = {"optimizer": optimizer, "checkpoint_every": 4, "log_every": 2} | changes
    return TrainingConfig(Path(out), steps, **fields)


if __name__ == "__main__":
    train(Regression(delay=0.05), config(sys.argv[1], int(sys.argv[2])))
