"""What the base tokens of a text must spell, found without them."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer


def model_text(content: dict[str, Any], tokenizer: Tokenizer, text: str) -> str:
    """The text as it reaches the model of a tokenizer.json, its spaces as spaces.

    Args:
        content: the tokenizer.json.
        tokenizer: the same, loaded.
        text: without added tokens in it.
    """
    if tokenizer.normalizer:
        text = tokenizer.normalizer.normalize_str(text)
    words = [text]
    if tokenizer.pre_tokenizer and content["model"]["type"] != "BPE":
        words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    if content["model"]["type"] == "WordPiece":
        return "".join(f" {word}" for word in words)
    return "".join(words).replace("▁", " ") if content["normalizer"] else text
