"""Merge an adapter into its base: one model with the task's head, as other tools read it.

    python -m train.merge_adapter --model multilingual-e5-small --adapter out/uner_static/adapter \\
        --out DIR

DIR is in Hugging Face layout, with the base's tokenizer, for transformers'
``AutoModelForSequenceClassification`` or ``AutoModelForTokenClassification``. It has the base's own
rows, by which those tools read base tokens: an adapter that was trained on other rows or on merged
tokens is at home only here (``eval.xnli``, ``eval.uner``). Adapters of this package know pairs as
``<s> p </s></s> h </s>``, and token types of 0.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from dyntok_jax.adapter_files import read_adapter
from dyntok_jax.files import new_folder
from dyntok_jax.lora import Adapter, adapted_params, headed, warn_of_merged_tokens
from dyntok_jax.model_store import resolve
from dyntok_jax.models.encoder import EncoderConfig
from dyntok_jax.models.hf_config import ENCODER_HEADS, ENCODERS
from dyntok_jax.models.weights import LoadedModel, copy_companions, load_model, save_model
from dyntok_jax.types import DyntokError, Rows
from train.command import make_parser, run_command

OF_OTHER_HEADS = ("num_labels", "problem_type", "auto_map")
"""Settings of a base's own head or classes, whose place the adapter's take."""


def merge(model: Path, adapter: Path, out: Path) -> LoadedModel:
    """Write a base with an adapter merged into it and the adapter's head, in Hugging Face layout.

    Args:
        model: folder of the base, an encoder.
        adapter: folder of the adapter.
        out: folder that appears whole or not at all; new or empty.

    Returns:
        What was written.

    Raises:
        DyntokError: folders that cannot be read or do not fit each other; a decoder; an adapter
            without a head.
    """
    with new_folder(out) as folder:
        base = load_model(model)
        if not isinstance(base.config, EncoderConfig):
            raise DyntokError(f"{model}: is a decoder; valid is the encoder below the adapter")
        trained = read_adapter(adapter, base.architecture, model)
        warn_of_merged_tokens(adapter, trained)
        try:
            whole = merged_model(base, trained)
        except DyntokError as error:
            raise DyntokError(f"{adapter}: {error}") from error
        save_model(folder, whole)
        copy_companions(model, folder)
    return whole


def merged_model(base: LoadedModel, adapter: Adapter) -> LoadedModel:
    """A base with an adapter merged into it and the adapter's head in place of its own.

    Raises:
        DyntokError: an adapter of another base, or without a head.
    """
    if adapter.kind is None:
        raise DyntokError("the adapter has no head of a task; valid are adapters with one")
    params = adapted_params(base, adapter)
    suffix = next(suffix for suffix, head in ENCODER_HEADS.items() if head == adapter.kind)
    kept = {name: x for name, x in base.hf_config.items() if name not in OF_OTHER_HEADS}
    config: dict[str, Any] = kept | {
        "architectures": [ENCODERS[base.architecture.model_type] + suffix],
        "id2label": {str(number): label for number, label in enumerate(adapter.labels)},
        "label2id": {label: number for number, label in enumerate(adapter.labels)},
    }
    architecture = headed(base.architecture, adapter.kind, adapter.labels)
    rows = Rows(base.source.input)
    return LoadedModel(architecture, params["model"], params["head"], rows, config)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = make_parser("merge_adapter", __doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="the adapter's base, its name or folder")
    add("--adapter", required=True, type=Path, metavar="DIR", help="train.lora's or peft's")
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write; new or empty")
    run_command(parser, _merge, arguments, logging.WARNING)


def _merge(options: argparse.Namespace) -> None:
    whole = merge(resolve(options.model), options.adapter, options.out)
    (name,) = whole.hf_config["architectures"]
    print(f"{options.out}: {name}, labels {', '.join(whole.architecture.labels)}")


if __name__ == "__main__":
    main()
