"""The command with the objective ``zett``: what it leaves behind."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from zett_run import write_run

from dyntok_jax.embed.zett import load_hypernet
from dyntok_jax.models.weights import load_model
from train.hypernet import main
from train.transfer import transfer


@pytest.mark.slow
def test_a_trained_backbone_becomes_a_model_that_can_be_transferred(
    decoder, new_tokenizer, tmp_path
):
    main(["--config", str(write_run(tmp_path, decoder))])
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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("zett.targets=[nothing]", "unknown model 'nothing'"),
        ("held_out.sources=[{language: en, files: missing.txt}]", "missing.txt .*no such file"),
        ("data.sources=[{language: en, files: missing.txt}]", "missing.txt .*no such file"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_cannot_be_had_is_missed_before_the_first_step(
    decoder, tmp_path, override, message, dry
):
    with pytest.raises(SystemExit, match=message):
        main(["--config", str(write_run(tmp_path, decoder)), override, *dry])
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
