"""Tiny tokenizers and models, as folders."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_folders import decoder, encoder, folders
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transferred import write_tokenizer
from zett_parts import Maker, texts, with_mask_token

from dyntok_jax.text.base_tokens import BaseTokenizer
from train.data import DataConfig

__all__ = ["decoder", "encoder", "folders"]


@pytest.fixture(scope="session")
def new_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE unlike any other here, with padding at id 1 and a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=320,  # pyright: ignore[reportCallIssue]
        special_tokens=["<end>", "<padding>", "<begin>", "<new>"],  # pyright: ignore[reportCallIssue]
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # pyright: ignore[reportCallIssue]
        show_progress=False,  # pyright: ignore[reportCallIssue]
    )
    tokenizer.train_from_iterator(["The quick fox and the lazy dog doze"] * 3, trainer)
    content = json.loads(tokenizer.to_str())
    roles = {"bos_token": "<begin>", "eos_token": "<end>", "pad_token": {"content": "<padding>"}}
    folder = tmp_path_factory.mktemp("new")
    return write_tokenizer(folder, content, **roles, tokenizer_class="LlamaTokenizer")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    """Texts of two languages for ZeTT's training."""
    return texts(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def tokenizers(tiny_tokenizers) -> dict[str, BaseTokenizer]:
    """Those of its two tiny models."""
    return with_mask_token(tiny_tokenizers)


@pytest.fixture(scope="module")
def make_task(tokenizers, data) -> Maker:
    """Makes its tasks."""
    return Maker(tokenizers, data)


@pytest.fixture(autouse=True)
def root_log() -> Iterator[None]:
    """Commands set up logging to what is standard error at the time, for this test alone."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
