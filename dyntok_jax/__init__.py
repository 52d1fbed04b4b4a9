"""Dynamic tokenization for pretrained language models, in JAX.

The pipeline, each stop a folder or a file:

    text ─► base tokens ─► merges ─► unique tokens ─► surface forms ─► rows ─► (B,T,D) ─► model
       text/             merging/    batching       text/surface_forms  embed/   gather     models/

    text/         the model's own tokens, spelled as bytes; boundaries; layouts of special tokens
    merging/      frequent neighbours merged, batch by batch, on the host or on the device
    batching      padded ids into a table of the batch's unique tokens
    embed/        rows of merged tokens: means (FVT) or a hypernetwork's, and a cache of them
    models/       XLM-R, RoBERTa, BERT; Mistral, Llama; their weights in and out
    sharding      one mesh, one table of rules, one forward for all of them
    dynamic_model a model with its tokenizer, rows and mesh, for ``encoding`` and ``scoring``
    generate      prompts to texts, by the steps of generation/ and the rules of ``sampling``
    model_store   a model's name to a folder in Hugging Face layout
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dyntok_jax.dynamic_model import DynamicModel, load
    from dyntok_jax.encoding import Encoded, encode
    from dyntok_jax.merging.batch import merge
    from dyntok_jax.merging.budget import Budget
    from dyntok_jax.model_store import resolve
    from dyntok_jax.scoring import Scored, score
    from dyntok_jax.text.base_tokens import BaseTokenizer
    from dyntok_jax.text.boundaries import Boundary
    from dyntok_jax.types import DyntokError

_HOMES = {
    "BaseTokenizer": "text.base_tokens",
    "Boundary": "text.boundaries",
    "Budget": "merging.budget",
    "DynamicModel": "dynamic_model",
    "DyntokError": "types",
    "Encoded": "encoding",
    "Scored": "scoring",
    "encode": "encoding",
    "load": "dynamic_model",
    "merge": "merging.batch",
    "resolve": "model_store",
    "score": "scoring",
}

__all__ = [
    "BaseTokenizer",
    "Boundary",
    "Budget",
    "DynamicModel",
    "DyntokError",
    "Encoded",
    "Scored",
    "encode",
    "load",
    "merge",
    "resolve",
    "score",
]


def __getattr__(name: str) -> Any:
    # Imported when asked for: whoever only tokenizes need not wait for JAX.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
