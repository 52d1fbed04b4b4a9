"""Batches of a task's examples merge only words that the run's rows can be made of."""

from __future__ import annotations

import pytest
from tiny_folders import of_languages

from dyntok_jax.models.lora import LoraConfig
from dyntok_jax.tasks.source import TaskSource
from train.loop import TrainingConfig
from train.lora import make_task
from train.lora_config import LoraRun, TokenizationConfig

PAIRS = "The old lighthousekeepers walk home\tA dog barks at night\tneutral\n"


@pytest.mark.parametrize(("rows", "least", "most"), [("fvt", 5, 24), ("hypernetwork", 2, 4)])
def test_words_that_rows_are_not_made_of_stay_in_base_tokens(encoder, tmp_path, rows, least, most):
    (tmp_path / "xx.tsv").write_text(PAIRS * 8, "utf-8")
    if rows != "fvt":
        rows = str(of_languages(tmp_path / "rows", encoder, []))  # of at most 4 pieces
    run = LoraRun(
        str(encoder),
        "xnli",
        data=(TaskSource(files=str(tmp_path / "xx.tsv"), language="xx"),),
        training=TrainingConfig(tmp_path / "run", steps=1),
        rows=rows,
        lora=LoraConfig(rank=2, alpha=4),
        sequences=8,
        max_length=64,
        tokenization=TokenizationConfig("fixed", 100.0),
    )
    batcher = make_task(run).batcher
    merged = batcher.merged(range(8), 0)
    assert least <= max(sequence.counts.max() for sequence in merged) <= most
