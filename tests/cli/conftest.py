"""Folders of tiny models and tokenizers, and a way to run the command."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax.core import meta

from dyntok_jax.cli import main
from dyntok_jax.models.hf_config import read_architecture
from dyntok_jax.models.weights import LoadedModel, model_module, save_model
from dyntok_jax.types import Rows

ENCODER = {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 42,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}
DECODER = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


class Run(NamedTuple):
    """What a run of the command left behind."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def dyntok(monkeypatch, capsys) -> Callable[..., Run]:
    """Runs ``dyntok ARGUMENTS``; ``stdin`` is bytes or a list of records."""

    def run(*arguments: object, stdin: bytes | list[Any] = b"") -> Run:
        if isinstance(stdin, list):
            stdin = "".join(json.dumps(record) + "\n" for record in stdin).encode()
        monkeypatch.setattr(sys, "argv", ["dyntok", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        return Run(int(exit.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tiny_tokenizers) -> dict[str, Path]:
    """A folder with the tokenizer of each family."""
    made = {}
    for name, tokenizer in tiny_tokenizers.items():
        made[name] = tmp_path_factory.mktemp(name)
        (made[name] / "tokenizer.json").write_text(json.dumps(tokenizer.json), "utf-8")
        (made[name] / "tokenizer_config.json").write_text(json.dumps(tokenizer.config), "utf-8")
    return made


@pytest.fixture(scope="session")
def encoder(folders, tiny_tokenizers) -> Path:
    """A random XLM-R with the tiny Unigram tokenizer."""
    vocabulary = len(tiny_tokenizers["unigram"].json["model"]["vocab"])
    return _with_weights(folders["unigram"], ENCODER | {"vocab_size": vocabulary})


@pytest.fixture(scope="session")
def decoder(folders, tiny_tokenizers) -> Path:
    """A random Llama with the tiny byte-level tokenizer."""
    vocabulary = len(tiny_tokenizers["byte_bpe"].json["model"]["vocab"])
    return _with_weights(folders["byte_bpe"], DECODER | {"vocab_size": vocabulary})


def _with_weights(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    architecture = read_architecture(folder)
    module, width = model_module(architecture), config["hidden_size"]
    inputs = np.zeros((1, 4, width), np.float32), np.ones((1, 4), bool)
    params = meta.unbox(module.init(jax.random.key(0), *inputs))["params"]
    # Large enough to make vectors and scores differ.
    params = jax.tree.map(lambda x: 5 * np.asarray(x) if x.ndim > 2 else np.asarray(x), params)
    table = np.random.default_rng(0).standard_normal((config["vocab_size"], width))
    source = Rows(table.astype(np.float32))
    save_model(folder, LoadedModel(architecture, params, None, source, config))
    return folder
