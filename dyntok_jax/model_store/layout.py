"""Write the files of a model folder in Hugging Face layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write `content` as indented UTF-8 JSON."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def tokenizer_config(
    specials: Mapping[str, object], max_length: int, chat_template: str | None = None
) -> dict[str, object]:
    """Content of `tokenizer_config.json` for a `tokenizer.json` that is to be used as it stands.

    The class is the generic one on purpose: the model-specific classes of transformers rebuild
    normalizer and pre-tokenizer and would undo what the file says.

    Args:
        specials: `bos_token`, `pad_token` and so on.
        max_length: tokens the model has positions for.
        chat_template: Jinja template, where the model has one.
    """
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **specials,
    }
    return config | ({"chat_template": chat_template} if chat_template else {})
