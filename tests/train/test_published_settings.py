"""Files that claim published settings have them, and so have the commands at their heads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from head_commands import commands

from dyntok_jax.config import read_config
from train.config import HypernetRun
from train.lora_config import LoraRun
from train.optim import OptimizerConfig, make_schedule
from train.unigram import SamplerConfig
from train.vocabulary_config import VocabularyRun

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def folders(monkeypatch):
    for name in ("UNER", "TEXT", "MODEL", "HYPERNET"):
        monkeypatch.setenv(name, "folder")


def rates(optimizer: OptimizerConfig, steps: int, at: Iterable[int]) -> dict[int, float]:
    """The learning rate after so many of a run's steps."""
    schedule = make_schedule(optimizer.phases, steps)
    return {step: np.asarray(schedule(step)).item() for step in at}


class Adapter(NamedTuple):
    """What Table 6 of the paper (arXiv 2411.18553) gives for each adapter."""

    rank: int
    alpha: float
    epochs: int
    rate: float
    reduction: float | None


# Table 6. The joint adapters of XNLI have 10 to 15 epochs. A fixed reduction is a share of the
# largest possible one; the sampled adapters draw m ~ U(0, m_max) for every batch (Eq. 4).
ADAPTERS = {
    ("xnli", "static"): Adapter(32, 64, 10, 3e-4, None),
    ("xnli", "fixed"): Adapter(128, 256, 10, 1e-4, 50),
    ("xnli", "merges"): Adapter(128, 256, 10, 1e-4, None),
    ("uner", "static"): Adapter(256, 512, 15, 3e-4, None),
    ("uner", "fixed"): Adapter(256, 512, 15, 3e-4, 75),
    ("uner", "merges"): Adapter(256, 512, 15, 3e-4, None),
}


@pytest.mark.parametrize("task", ["xnli", "uner"])
def test_adapters_of_xlmr_have_the_papers_settings(task):
    path = CONFIGS / "lora" / f"{task}_xlmr.yaml"
    runs = [read_config(LoraRun, path, each) for each in commands(path, "train.lora")]
    assert [run.tokenization.mode for run in runs] == ["static", "fixed", "merges"]
    assert len({run.training.out for run in runs}) == 3
    for run in runs:
        published = ADAPTERS[task, run.tokenization.mode]
        lora, optimizer = run.lora, run.training.optimizer
        found = (lora.rank, lora.alpha, run.epochs, optimizer.phases[0].peak)
        assert Adapter(*found, run.tokenization.reduction) == published
        # Table 6, the same for all: dropout, AdamW, a linear schedule without a warm-up.
        assert lora.dropout == 0.3
        assert (optimizer.name, optimizer.betas, optimizer.eps) == ("adamw", (0.9, 0.999), 1e-8)
        assert (optimizer.weight_decay, optimizer.accumulate) == (0, 1)
        falls = {0: published.rate, 500: published.rate / 2, 1_000: 0}
        assert rates(optimizer, 1_000, falls) == pytest.approx(falls)
        # Table 6: batch, length, precision and seed.
        assert (run.sequences, run.max_length, run.training.seed) == (32, 128, 42)
        assert run.compute.dtype == "bfloat16"
        # The original's loader draws batches at random (run_glue_dynamic.py and run_ner_dynamic.py,
        # commit 6686e72), and its merges are of whole batches.
        assert run.grouped == 1 and not run.tokenization.per_sample
        # All begin with the base model, joint ones with the hypernetwork's rows.
        assert run.start is None
        assert (run.rows == "base") == (run.tokenization.mode == "static")


class Hypernetwork(NamedTuple):
    """What ZeTT's configs/zeroshot (commit 0167758) have for each model."""

    width: int
    heads: int
    rate: float
    exponent: float
    languages: int
    language_table: bool


ZETT = {
    # v7:xlmr:multilingual_long:lw=0.5_26l.json; heads are hn_hidden_size / 64 where it names none,
    # language_sampling_alpha 0.1, hn_embed_lang_id.
    "zett_xlmr": Hypernetwork(768, 12, 4e-5, 0.1, 26, True),
    # v7:mistral7b_en+code:lw=0.5_long.json; of artifacts/en+code.txt, whose shares are taken as
    # they are (train.py:258).
    "zett_mistral": Hypernetwork(4096, 32, 6e-5, 1.0, 7, False),
}


@pytest.mark.parametrize("name", ZETT)
def test_hypernetworks_have_the_settings_that_zett_publishes(name):
    run, published = read_config(HypernetRun, CONFIGS / "hypernet" / f"{name}.yaml"), ZETT[name]
    # hn_hidden_size, hn_intermediate_size, hn_n_layers (zett/model/__init__.py), hn_surface_maxlen.
    shape, width = run.hypernet, published.width
    found = (shape.hidden, shape.feed_forward, shape.layers, shape.heads, shape.surface_length)
    assert found == (width, 2 * width, 3, published.heads, 7)
    assert shape.rescale and not shape.residual and shape.start is None
    # identity_steps, identity_n_subsample; train_batch_size, block_size (train.py), packing;
    # lexical_loss_weight.
    zett = run.zett
    assert (zett.identity_steps, zett.identity_rows) == (10_000, 16_384)
    assert (zett.sequences, zett.length, zett.packed) == (128, 128, True)
    assert (zett.overlap_weight, zett.overlap_with) == (0.5, "own")
    assert zett.tokenizer is None and not zett.train_backbone
    # tokenizer_sample_mean, _std and _max; at a deviation of 0 the published minimum of 16,384
    # counts for nothing. tokenizer_batch_size, the length of the queue; substrings shorter than 16
    # at every 4th character (collator.py); tokenizer_noise_mean and _std.
    assert zett.sampler == SamplerConfig(
        mean=32_768,
        std=0,
        minimum=32_768,
        maximum=32_768,
        texts=2_048,
        longest=15,
        stride=4,
        noise=1e-5,
        noise_spread=4,
    )
    # A step's texts, cut to 16 characters a token (collator.py), of one language (mix_languages).
    assert (run.data.texts, run.data.max_chars, run.data.one_language) == (128, 16 * 128, True)
    assert run.data.exponent == published.exponent
    assert len({source.language for source in run.data.sources}) == published.languages
    assert zett.language_table == published.language_table
    # adam_beta1 and adam_epsilon (train.py), adam_beta2, weight_decay, max_grad_norm.
    optimizer = run.training.optimizer
    assert (optimizer.name, optimizer.betas, optimizer.eps) == ("adamw", (0.9, 0.95), 1e-8)
    assert (optimizer.weight_decay, optimizer.clip, optimizer.accumulate) == (0.01, 0.1, 1)
    # learning_rate, warmup_steps, steps: linear from 0 over the identity steps and over as many
    # more, then by a cosine to learning_rate_alpha, a tenth.
    assert run.training.steps == 200_000 and run.compute.dtype == "bfloat16"
    peak = published.rate
    steps = {0: 0, 5_000: 1.5e-4, 9_999: 2.9997e-4, 10_000: 0, 15_000: peak / 2, 20_000: peak}
    steps |= {110_000: 0.55 * peak, 200_000: 0.1 * peak}
    assert rates(optimizer, 200_000, steps) == pytest.approx(steps, rel=1e-5)


def test_n_shot_transfer_has_the_settings_that_zett_publishes():
    run = read_config(HypernetRun, CONFIGS / "hypernet" / "zett_mistral_gpt2.yaml")
    # configs/nshot/mistral7b_gpt2_full_ft.json (commit 0167758).
    shape = run.hypernet
    found = (shape.hidden, shape.feed_forward, shape.layers, shape.heads, shape.surface_length)
    assert found == (4096, 8192, 3, 32, 7) and shape.start is not None
    # identity_steps, backbone_training, train_batch_size, block_size, do_sequence_packing.
    zett = run.zett
    assert (zett.identity_steps, zett.train_backbone) == (0, True)
    assert (zett.sequences, zett.length, zett.packed) == (32, 512, False)
    # lexical_loss_weight, apply_lexical_loss_to_init.
    assert (zett.overlap_weight, zett.overlap_with) == (0.5, "start")
    assert (run.data.texts, run.data.max_chars) == (32, 16 * 512)
    optimizer = run.training.optimizer
    assert (optimizer.name, optimizer.betas, optimizer.eps) == ("adamw", (0.9, 0.95), 1e-8)
    assert (optimizer.weight_decay, optimizer.clip, optimizer.accumulate) == (0.01, 0.1, 1)
    # learning_rate, no warmup_steps, learning_rate_alpha 1.
    assert run.training.steps == 50_000 and run.compute.dtype == "bfloat16"
    steps = dict.fromkeys((0, 25_000, 50_000), 3e-6)
    assert rates(optimizer, 50_000, steps) == pytest.approx(steps)


def test_the_index_of_a_million_rows_has_the_papers_settings():
    run = read_config(VocabularyRun, CONFIGS / "vocabulary" / "mistral.yaml")
    assert run.index is not None and run.size == 1_000_000
    # Table 8 of arXiv 2411.18553; by inner products, of what rows there are.
    index = run.index
    assert (index.leaves, index.leaves_searched) == (2_000, 250)
    assert (index.training_sample, index.block_dims) == (1_000_000, 3)
    assert (index.anisotropic_threshold, index.reorder) == (0.2, 200)
    assert not index.cosine
