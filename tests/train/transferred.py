"""Tiny checkpoints to transfer to another tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dyntok_jax.models.weights import load_model, save_model
from dyntok_jax.text.base_tokens import BaseTokenizer

CHECKPOINTS = Path(__file__).parents[1] / "fixtures" / "models"


def write_tokenizer(folder: Path, content: dict[str, Any], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def make_model(name: str, folder: Path, tokenizer: Any, seed: int = 0, **hf_config: Any) -> Path:
    """A tiny checkpoint with random rows of a tokenizer's vocabulary."""
    write_tokenizer(folder, tokenizer.json, **tokenizer.config)
    loaded, rng = load_model(CHECKPOINTS / name), np.random.default_rng(seed)
    size = BaseTokenizer.from_folder(folder).vocab_size
    rows = jax.tree.map(lambda table: rng.normal(size=(size, *table.shape[1:])), loaded.source)
    rows = jax.tree.map(lambda table: table.astype(np.float32), rows)
    config = loaded.hf_config | {"vocab_size": size} | hf_config
    save_model(folder, loaded._replace(source=rows, hf_config=config))
    return folder
