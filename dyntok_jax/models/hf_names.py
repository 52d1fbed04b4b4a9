"""Names of tensors in Hugging Face checkpoints, and where each belongs here.

One table serves loading and saving. ``{}`` in a name is the layer's number, and the parameter it
belongs to has a leading axis L; a ``kernel`` is stored transposed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dyntok_jax.models.hf_config import ENCODERS, Architecture


@dataclass(frozen=True)
class NameTable:
    """Names of one architecture.

    Attributes:
        prefix: stands before the model's own names where there is a head, and may be missing.
        model: name without prefix -> path of a parameter of the model.
        head: name -> path of a parameter of the head.
        source: name, without prefix -> field of ``types.Rows``.
        second: name that stands for another where that is missing, and is written beside it where
            the output rows are not tied -> that other name.
        ignored: pattern of names that hold nothing of the model, or something twice.
    """

    prefix: str
    model: dict[str, str]
    head: dict[str, str]
    source: dict[str, str]
    second: dict[str, str]
    ignored: str

    @property
    def parameters(self) -> dict[str, str]:
        """Name -> path of a parameter below ``model`` or ``head``."""
        model = {name: f"model/{path}" for name, path in self.model.items()}
        return model | {name: f"head/{path}" for name, path in self.head.items()}

    def plain(self, name: str) -> str:
        """The name without prefix, and in today's spelling (old BERTs have gamma and beta)."""
        name = name.removeprefix(self.prefix)
        return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))

    def full(self, name: str, headed: bool) -> str:
        """The name as transformers writes it for a model with or without a head."""
        outside = re.match(r"(classifier|lm_head|cls)\.", name)
        return name if outside or not headed else self.prefix + name


def _dense(name: str, path: str) -> dict[str, str]:
    return {f"{name}.weight": f"{path}/kernel", f"{name}.bias": f"{path}/bias"}


def _norm(name: str, path: str) -> dict[str, str]:
    return {f"{name}.weight": f"{path}/scale", f"{name}.bias": f"{path}/bias"}


_LAYER = "encoder.layer.{}"
_STACK = "stack/layers"
ENCODER = {
    "embeddings.position_embeddings.weight": "positions",
    "embeddings.token_type_embeddings.weight": "token_types",
    **_norm("embeddings.LayerNorm", "embedding_norm"),
    **_dense(f"{_LAYER}.attention.self.query", f"{_STACK}/attention/query"),
    **_dense(f"{_LAYER}.attention.self.key", f"{_STACK}/attention/key"),
    **_dense(f"{_LAYER}.attention.self.value", f"{_STACK}/attention/value"),
    **_dense(f"{_LAYER}.attention.output.dense", f"{_STACK}/attention/output"),
    **_norm(f"{_LAYER}.attention.output.LayerNorm", f"{_STACK}/attention_norm"),
    **_dense(f"{_LAYER}.intermediate.dense", f"{_STACK}/up"),
    **_dense(f"{_LAYER}.output.dense", f"{_STACK}/down"),
    **_norm(f"{_LAYER}.output.LayerNorm", f"{_STACK}/feed_forward_norm"),
}
DECODER = {
    **_dense("layers.{}.self_attn.q_proj", "layers/attention/query"),
    **_dense("layers.{}.self_attn.k_proj", "layers/attention/key"),
    **_dense("layers.{}.self_attn.v_proj", "layers/attention/value"),
    **_dense("layers.{}.self_attn.o_proj", "layers/attention/output"),
    **_dense("layers.{}.mlp.gate_proj", "layers/feed_forward/gate"),
    **_dense("layers.{}.mlp.up_proj", "layers/feed_forward/up"),
    **_dense("layers.{}.mlp.down_proj", "layers/feed_forward/down"),
    "layers.{}.input_layernorm.weight": "layers/attention_norm/scale",
    "layers.{}.post_attention_layernorm.weight": "layers/feed_forward_norm/scale",
    "norm.weight": "final_norm/scale",
}


def name_table(architecture: Architecture) -> NameTable:
    """The names of an architecture's tensors."""
    if architecture.model_type in ENCODERS:
        return _encoder_table(architecture)
    source = {"embed_tokens.weight": "input"}
    ignored = [r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"]
    if architecture.tied:
        ignored.append(r"lm_head\.weight")
    elif architecture.head:
        source["lm_head.weight"] = "output"
    return NameTable("model.", DECODER, {}, source, {}, "|".join(ignored))


def _encoder_table(architecture: Architecture) -> NameTable:
    is_bert = architecture.model_type == "bert"
    source = {"embeddings.word_embeddings.weight": "input"}
    second: dict[str, str] = {}
    ignored = [r"embeddings\.(position_ids|token_type_ids)"]
    head: dict[str, str] = {}
    if architecture.head == "token":
        head = _dense("classifier", "classes")
    elif architecture.head == "sequence" and is_bert:
        head = {**_dense("pooler.dense", "dense"), **_dense("classifier", "classes")}
    elif architecture.head == "sequence":
        head = {**_dense("classifier.dense", "dense"), **_dense("classifier.out_proj", "classes")}
    elif architecture.head == "masked_lm":
        scores, dense, norm = ("lm_head", "dense", "layer_norm")
        if is_bert:
            scores, dense, norm = ("cls.predictions", "transform.dense", "transform.LayerNorm")
            ignored.append(r"cls\.seq_relationship\.(weight|bias)")
        head = {**_dense(f"{scores}.{dense}", "dense"), **_norm(f"{scores}.{norm}", "norm")}
        bias, decoder = f"{scores}.bias", f"{scores}.decoder"
        if architecture.tied:
            source[bias], second[f"{decoder}.bias"] = "bias", bias
            ignored.append(re.escape(f"{decoder}.weight"))
        else:
            source[f"{decoder}.bias"], second[bias] = "bias", f"{decoder}.bias"
            source[f"{decoder}.weight"] = "output"
    if "pooler.dense.weight" not in head:
        ignored.append(r"pooler\.dense\.(weight|bias)")
    prefix = "bert." if is_bert else "roberta."
    return NameTable(prefix, ENCODER, head, source, second, "|".join(ignored))
