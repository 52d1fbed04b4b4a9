"""A run of the objective ``zett`` on a tiny model, as a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

TEXT = (
    "over the hills and far away seven grey geese carried letters between lighthouse keepers who "
    "never met; each winter somebody counted them twice, wrote 1887 beside their names (in pencil) "
    "and forgot about mathematics, harbours, cinnamon bread or whatever else had kept him awake."
)


def write_run(folder: Path, model: Path) -> Path:
    """The path of its YAML; the model is trained beside the hypernetwork."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(TEXT.split(), 24)) for _ in range(64)]
    source = {"language": "en", "files": str(folder / "en.txt")}
    texts = {"texts": 8, "workers": 0, "sources": [source]}
    (folder / "en.txt").write_text("\n".join(lines), "utf-8")
    run = {
        "model": str(model),
        "objective": "zett",
        "hypernet": {"hidden": 16, "feed_forward": 32, "layers": 1, "heads": 2},
        "zett": {
            "identity_steps": 2,
            "identity_rows": 64,
            "sequences": 8,
            "length": 24,
            "train_backbone": True,
            "evaluation_batches": 1,
            "sampler": {"mean": 500, "minimum": 480, "maximum": 512, "std": 10, "texts": 24},
        },
        "data": texts,
        "held_out": texts,
        "training": {
            "out": str(folder / "run"),
            "steps": 4,
            "log_every": 1,
            "evaluate_every": 4,
        },
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(run), "utf-8")
    return path
