"""A Hugging Face ``config.json`` as this package's configurations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dyntok_jax.models.decoder import DecoderConfig
from dyntok_jax.models.encoder import EncoderConfig
from dyntok_jax.models.layers import ACTIVATIONS
from dyntok_jax.models.rotary import Llama3Scaling, RotaryConfig
from dyntok_jax.types import DyntokError

ENCODERS = {"xlm-roberta": "XLMRoberta", "roberta": "Roberta", "bert": "Bert"}
DECODERS = {"mistral": "Mistral", "llama": "Llama"}
"""Model types and the first part of their architectures' names."""

HeadKind = Literal["sequence", "token", "masked_lm", "causal_lm"]

ENCODER_HEADS: dict[str, HeadKind | None] = {
    "Model": None,
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
    "ForMaskedLM": "masked_lm",
}
DECODER_HEADS: dict[str, HeadKind | None] = {"Model": None, "ForCausalLM": "causal_lm"}


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint holds.

    Attributes:
        config: shape of the model.
        model_type: a key of ``ENCODERS`` or ``DECODERS``.
        head: what stands on the model, None for nothing.
        tied: the output rows, if any, are the input rows.
        max_length: longest sequence it was made to read, in tokens.
        labels: names of a classifier's classes.
    """

    config: EncoderConfig | DecoderConfig
    model_type: str
    head: HeadKind | None
    tied: bool
    max_length: int
    labels: tuple[str, ...] = ()


def read_architecture(folder: Path) -> Architecture:
    """Read ``config.json``, with transformers' defaults for what it leaves out.

    Raises:
        DyntokError: no such file, or a model this package does not have.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        model_type = raw.get("model_type")
    except OSError as error:
        raise DyntokError(f"{path}: {error.strerror}; a model's folder has it") from error
    except (ValueError, RecursionError, AttributeError) as error:
        raise DyntokError(f"{path}: not a JSON object") from error
    families = ENCODERS | DECODERS
    if model_type not in families:
        raise DyntokError(f"{path}: model type {model_type!r} (valid: {', '.join(families)})")
    heads = ENCODER_HEADS if model_type in ENCODERS else DECODER_HEADS
    names: dict[str, HeadKind | None]
    names = {families[model_type] + suffix: head for suffix, head in heads.items()}
    # Checkpoints of BERT's pretraining: transformers, too, reads them as masked language models.
    aliases = {"BertForPreTraining": "BertForMaskedLM"} if model_type == "bert" else {}
    name = (raw.get("architectures") or [families[model_type] + "Model"])[0]
    name = aliases.get(name, name)
    if name not in names:
        raise DyntokError(f"{path}: architecture {name!r} (valid: {', '.join(names)})")
    return _architecture(path, model_type, names[name])


def read_end_ids(folder: Path) -> tuple[int, ...]:
    """Ids of the tokens that end what the model generates, as its files say; maybe none.

    ``generation_config.json`` goes before ``config.json``.

    Raises:
        DyntokError: a file that is not a JSON object, or ids that are not numbers.
    """
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, RecursionError, AttributeError) as error:
            raise DyntokError(f"{path}: not a JSON object") from error
        ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if not all(isinstance(i, int) and i >= 0 for i in ids):
            raise DyntokError(f"{path}: eos_token_id is {ids}; valid are ids from 0")
        if ids:
            return tuple(ids)
    return ()


def _architecture(path: Path, model_type: str, head: HeadKind | None) -> Architecture:
    from transformers import AutoConfig  # here because it takes a second

    try:
        hf: Any = AutoConfig.from_pretrained(path.parent, local_files_only=True)
    except Exception as error:  # transformers raises many kinds; all mean a bad file
        raise DyntokError(f"{path}: {' '.join(str(error).split())}") from error
    if hf.hidden_act not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise DyntokError(f"{path}: activation {hf.hidden_act!r} (valid: {known})")
    _check_sizes(path, hf)
    config = _encoder(path, hf) if model_type in ENCODERS else _decoder(path, hf)
    offset = config.position_offset if isinstance(config, EncoderConfig) else 0
    labels = tuple(hf.id2label[i] for i in range(hf.num_labels))
    classifies = head in ("sequence", "token")
    return Architecture(
        config,
        model_type,
        head,
        bool(hf.tie_word_embeddings),
        hf.max_position_embeddings - offset,
        labels if classifies else (),
    )


def _check_sizes(path: Path, hf: Any) -> None:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names += ("max_position_embeddings", "vocab_size", "num_key_value_heads", "sliding_window")
    for name in names:
        size = getattr(hf, name, None)
        optional = size is None and name in ("num_key_value_heads", "sliding_window")
        if not optional and (not isinstance(size, int) or size < 1):
            raise DyntokError(f"{path}: {name} is {size!r}; valid is a number from 1")
    heads, groups = hf.num_attention_heads, getattr(hf, "num_key_value_heads", None) or 1
    if heads % groups:
        raise DyntokError(f"{path}: {heads} heads do not divide into {groups} key/value heads")
    if not getattr(hf, "head_dim", None) and hf.hidden_size % heads:
        raise DyntokError(f"{path}: a width of {hf.hidden_size} does not divide into {heads} heads")


def _encoder(path: Path, hf: Any) -> EncoderConfig:
    if getattr(hf, "position_embedding_type", "absolute") != "absolute" or hf.is_decoder:
        raise DyntokError(f"{path}: only encoders with absolute positions can be read")
    return EncoderConfig(
        width=hf.hidden_size,
        layers=hf.num_hidden_layers,
        heads=hf.num_attention_heads,
        feed_forward=hf.intermediate_size,
        max_positions=hf.max_position_embeddings,
        position_offset=0 if hf.model_type == "bert" else hf.pad_token_id + 1,
        token_types=hf.type_vocab_size,
        layer_norm_eps=hf.layer_norm_eps,
        activation=hf.hidden_act,
        vocab_size=hf.vocab_size,
    )


def _decoder(path: Path, hf: Any) -> DecoderConfig:
    return DecoderConfig(
        width=hf.hidden_size,
        layers=hf.num_hidden_layers,
        heads=hf.num_attention_heads,
        kv_heads=hf.num_key_value_heads,
        head_width=hf.head_dim or hf.hidden_size // hf.num_attention_heads,
        feed_forward=hf.intermediate_size,
        norm_eps=hf.rms_norm_eps,
        rotary=_rotary(path, hf.rope_parameters),
        sliding_window=getattr(hf, "sliding_window", None),
        activation=hf.hidden_act,
        attention_bias=getattr(hf, "attention_bias", False),
        feed_forward_bias=getattr(hf, "mlp_bias", False),
        vocab_size=hf.vocab_size,
        tied=bool(hf.tie_word_embeddings),
    )


def _rotary(path: Path, rope: dict[str, Any]) -> RotaryConfig:
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3") or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise DyntokError(
            f"{path}: rotary positions {rope} (valid: rope_type default, linear or llama3, whole "
            "heads)"
        )
    if kind == "default":
        return RotaryConfig(rope["rope_theta"])
    stretched = None
    if kind == "llama3":
        stretched = Llama3Scaling(
            rope["low_freq_factor"],
            rope["high_freq_factor"],
            rope["original_max_position_embeddings"],
        )
    return RotaryConfig(rope["rope_theta"], rope["factor"], stretched)
