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


@pytest.fixture(autouse=True)
def root_log() -> Iterator[None]:
    """Commands set up logging to what is standard error at the time, for this test alone."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
