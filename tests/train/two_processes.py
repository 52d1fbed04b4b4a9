"""One of two processes that train the regression together: arguments are index, port and folder."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from regression_task import Regression, config

from dyntok_jax.sharding import replicated
from train.data import DataConfig, TextBatch, batches
from train.loop import train
from train.text_sources import TextSource


class Part(Regression):
    """Each process gives its half of every batch."""

    def batches(self, position):
        for loaded in super().batches(position):
            halves = {name: np.split(array, 2) for name, array in loaded.batch.items()}
            own = {name: parts[jax.process_index()] for name, parts in halves.items()}
            yield loaded._replace(batch=own, tokens=loaded.tokens // 2)


def as_they_are(batch: TextBatch) -> tuple[TextBatch, int]:
    return batch, 0


def texts(folder: Path) -> list[str]:
    """What this process reads of a file in five batches."""
    data = DataConfig((TextSource("xx", files=str(folder / "xx.txt")),), texts=4, workers=0)
    part = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    drawn = islice(batches(data, as_they_are, seed=0, **part), 5)
    return [text for loaded in drawn for text in loaded.batch.texts]


def main() -> None:
    index, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    task = Part(devices=2)
    changes = {"log_every": 1, "checkpoint_every": 3, "evaluate_every": 3}
    params = train(task, config(folder / "run", 6, **changes))
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(task.mesh))(params)
    found = {name: np.asarray(leaf).tolist() for name, leaf in whole.items()}
    said = json.dumps({"texts": texts(folder), "params": found})
    (folder / f"process_{index}.json").write_text(said, "utf-8")


if __name__ == "__main__":
    main()
