"""The command with the objective ``zett``: what it leaves behind."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from dyntok_jax.embed.zett import load_hypernet
from dyntok_jax.models.weights import load_model
from train.hypernet import main
from train.transfer import transfer

TEXT = (
    "over the hills and far away seven grey geese carried letters between lighthouse keepers who "
    "never met; each winter somebody counted them twice, wrote 1887 beside their names (in pencil) "
    "and forgot about mathematics, harbours, cinnamon bread or whatever else had kept him awake."
)


@pytest.fixture
def config(decoder, tmp_path):
    words = TEXT.split()
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(words, 24)) for _ in range(64)]
    (tmp_path / "en.txt").write_text("\n".join(lines), "utf-8")
    sampler = {"mean": 500, "minimum": 480, "maximum": 512, "std": 10, "texts": 24}
    run = {
        "model": str(decoder),
        "objective": "zett",
        "hypernet": {"hidden": 16, "feed_forward": 32, "layers": 1, "heads": 2},
        "zett": {
            "identity_steps": 2,
            "identity_rows": 64,
            "sequences": 8,
            "length": 24,
            "train_backbone": True,
            "sampler": sampler,
        },
        "data": {
            "texts": 8,
            "workers": 0,
            "sources": [{"language": "en", "files": str(tmp_path / "en.txt")}],
        },
        "training": {"out": str(tmp_path / "run"), "steps": 4, "log_every": 1},
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(run), "utf-8")
    return path


@pytest.mark.slow
def test_a_trained_backbone_becomes_a_model_that_can_be_transferred(
    config, decoder, new_tokenizer, tmp_path
):
    main(["--config", str(config)])
    run = tmp_path / "run"
    before, after = load_model(decoder), load_model(run / "model")
    for old, new in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True):
        assert not np.array_equal(old, new)
    np.testing.assert_array_equal(before.source.input, after.source.input)
    shape, _ = load_hypernet(run / "hypernet")
    assert shape.width == before.config.width
    transfer(run / "model", str(run / "hypernet"), new_tokenizer, tmp_path / "moved")
    moved = load_model(tmp_path / "moved")
    for old, new in zip(*map(jax.tree.leaves, (after.params, moved.params)), strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(moved.source.input) == len(
        json.loads((new_tokenizer / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    )
