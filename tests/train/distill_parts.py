"""Distillation of a tiny model in parts: a config, and what two processes would read in one."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import numpy as np

from dyntok_jax.sharding import BatchPart
from train.data import batches

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "In 1999 there were 24 lighthouses on this coast; today only 7 of them are lit.",
    "Der Großvater erzählte den Kindern jeden Abend Geschichten über ferne Länder.",
    "Habari ya asubuhi? Watoto wanacheza mpira nje ya nyumba ya babu yao.",
    "Two old trams still climb the hill behind the harbour every quarter of an hour.",
]


def write_run(folder, model, losses):
    """A run's config and texts; the run's folder is ``folder/run``."""
    folder.mkdir()
    texts = [f"{number} {sentence}" for number in range(8) for sentence in SENTENCES]
    (folder / "xx.txt").write_text("\n".join(texts), "utf-8")
    source = {"language": "xx", "files": str(folder / "xx.txt")}
    data = {"texts": 16, "workers": 0, "sources": [source]}
    run = {
        "model": str(model),
        "hypernet": {
            "hidden": 16,
            "feed_forward": 16,
            "layers": 1,
            "heads": 2,
            "surface_length": 6,
            "separate_output": "output" in losses,
        },
        "distill": {"sequences": 8, "max_length": 32, "scored": 1000} | losses,
        "data": data,
        "held_out": data,
        "held_out_batches": 1,
        "training": {
            "out": str(folder / "run"),
            "steps": 6,
            "evaluate_every": 3,
            "checkpoint_every": 3,
            "optimizer": {"phases": [{"peak": 0.01, "warmup": 2}]},
        },
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(run), "utf-8")
    return path


def part_streams(task, position=None):
    """The batches of each of two processes."""
    data, half = replace(task.data, texts=8), replace(task.preparation, sequences=4)
    start = {"seed": task.seed, "position": position, "process_count": 2}
    return [batches(data, half, process_index=i, **start) for i in range(2)]


def joined(task, batches, blocks=((0,), (1,))):
    """Batches put together as the devices of two processes hold them."""
    sizes = np.max([batch.sizes for batch in batches], axis=0).tolist()
    parts = [BatchPart(i, 2, held) for i, held in enumerate(blocks)]
    made = [
        task.preparation.as_part(batch, sizes, part)
        for batch, part in zip(batches, parts, strict=True)
    ]

    def together(*arrays):
        whole = np.empty((2 * len(arrays[0]), *arrays[0].shape[1:]), arrays[0].dtype)
        for part, array in zip(parts, arrays, strict=True):
            whole[part.places(len(array))] = array
        return whole

    return jax.tree.map(together, *made)
