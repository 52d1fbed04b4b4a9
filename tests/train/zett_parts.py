"""Tiny random models, their tokenizers and texts for ZeTT's training."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyntok_jax.config import ComputeConfig, MeshConfig
from dyntok_jax.embed.hypernet import HypernetConfig
from dyntok_jax.models.decoder import DecoderConfig
from dyntok_jax.models.encoder import EncoderConfig
from dyntok_jax.models.hf_config import Architecture
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.weights import LoadedModel, head_module, model_module
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import Rows
from train.config import HypernetShape
from train.data import DataConfig
from train.hypernet import zett_hypernet_config
from train.text_sources import TextSource
from train.unigram import SamplerConfig
from train.zett import ZettTask
from train.zett_config import ZettConfig

WIDTH = 16
SIZE = 512
SAMPLER = SamplerConfig(mean=500, minimum=480, maximum=SIZE, std=10, texts=24)
CONFIG = ZettConfig(3, 64, sequences=8, length=24, sampler=SAMPLER, evaluation_batches=1)
ONE = ComputeConfig(mesh=MeshConfig(1))
TEXT = (
    "the quick brown fox jumps over the lazy dog and the children walked along the river while "
    "der alte Mann erzählte heute Abend Geschichten über ferne Länder und seine Brüder in 1999 "
    "watoto wanacheza mpira nje ya nyumba ya babu yao asubuhi, (not here); über allem steht."
)


def random_params(module: nn.Module, *inputs):
    """Without a compilation for each of the module's operations, as its own ``init`` would have."""
    random = np.random.default_rng(1)

    def value(path, leaf):
        is_scale = path[-1].key == "scale"
        drawn = random.normal(float(is_scale), 0.06, leaf.shape)
        return drawn.astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, nn.unbox(abstract_params(module, *inputs)))


def tiny_llama(tokenizer: BaseTokenizer) -> LoadedModel:
    rows = tokenizer.vocab_size
    config = DecoderConfig(WIDTH, 2, 2, 1, 8, 32, vocab_size=rows, sliding_window=None)
    architecture = Architecture(config, "llama", None, False, 64)
    random = np.random.default_rng(0)
    source = Rows(*random.normal(0, 0.05, (2, rows, WIDTH)).astype(np.float32))
    params = random_params(model_module(architecture))
    return LoadedModel(architecture, params, None, source, {"model_type": "llama"})


def tiny_xlm_r(tokenizer: BaseTokenizer) -> LoadedModel:
    rows = tokenizer.vocab_size
    config = EncoderConfig(WIDTH, 2, 2, 32, 66, vocab_size=rows)
    architecture = Architecture(config, "xlm-roberta", "masked_lm", True, 64)
    random = np.random.default_rng(0)
    table = random.normal(0, 0.1, (rows, WIDTH)).astype(np.float32)
    bias = random.normal(0, 0.1, rows).astype(np.float32)
    params = random_params(model_module(architecture))
    hidden = jnp.zeros((1, 1, WIDTH))
    module = head_module(architecture)
    assert module is not None
    head = random_params(module, hidden, hidden[0])
    return LoadedModel(architecture, params, head, Rows(table, None, bias), {"model_type": "x"})


def texts(folder: Path) -> DataConfig:
    """Files of two languages in a folder, as a run reads them."""
    random = np.random.default_rng(0)
    sources = []
    for language in ("de", "en"):
        path = folder / f"{language}.txt"
        lines = [" ".join(random.choice(TEXT.split(), 24)) for _ in range(64)]
        path.write_text("\n".join(lines) + "\n", "utf-8")
        sources.append(TextSource(language, files=str(path)))
    return DataConfig(tuple(sources), one_language=True, texts=8, workers=0)


def with_mask_token(tiny: dict[str, Any]) -> dict[str, BaseTokenizer]:
    """The tokenizers of both models; XLM-R's needs a mask token."""
    unigram = copy.deepcopy(tiny["unigram"].json)
    number = len(unigram["model"]["vocab"])
    unigram["model"]["vocab"].append(["<mask>", 0.0])
    unigram["added_tokens"].append(unigram["added_tokens"][0] | {"id": number, "content": "<mask>"})
    llama = tiny["fallback_bpe"]
    return {
        "llama": BaseTokenizer(llama.json, llama.config),
        "xlm_r": BaseTokenizer(unigram, tiny["unigram"].config),
    }


def small_shape(
    model: LoadedModel, tokenizer: BaseTokenizer, languages: int = 0, **sizes: Any
) -> HypernetConfig:
    """Shape of a small hypernetwork for other tokenizers."""
    shape = HypernetShape(32, 64, layers=1, heads=2, surface_length=7, residual=False)
    return zett_hypernet_config(replace(shape, **sizes), model, tokenizer, languages)


class Maker:
    """Makes tasks of both models."""

    def __init__(self, tokenizers: dict[str, BaseTokenizer], data: DataConfig):
        self.tokenizers, self.data = tokenizers, data

    def __call__(
        self, name: str, config: ZettConfig = CONFIG, compute=ONE, held_out=None, data=None, **shape
    ) -> ZettTask:
        data = data or self.data
        tokenizer = self.tokenizers[name]
        model = {"llama": tiny_llama, "xlm_r": tiny_xlm_r}[name](tokenizer)
        hypernet = small_shape(model, tokenizer, len(data.sources), **shape)
        return ZettTask(model, tokenizer, hypernet, config, data, compute, 0, held_out)
