"""A SentencePiece model becomes the tokenizer.json that segments as SentencePiece does."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from dyntok_jax.model_store.sentencepiece_model import (
    Piece,
    convert_mistral,
    llama_tokenizer,
    read_pieces,
    score_ordered_merges,
)
from dyntok_jax.types import DyntokError

CONTROL = [Piece("<unk>", 0.0, 2), Piece("<s>", 0.0, 3), Piece("</s>", 0.0, 3)]
BYTES = [Piece(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
WORDS = ["▁a", "aa", "aaa", "▁", "a", "b"]
PIECES = [*CONTROL, *BYTES, *(Piece(word, -float(rank), 1) for rank, word in enumerate(WORDS))]


def varint(value: int) -> bytes:
    raw = b""
    while value > 0x7F:
        raw += bytes([value & 0x7F | 0x80])
        value >>= 7
    return raw + bytes([value])


def field(number: int, wire: int, payload: bytes) -> bytes:
    return varint(number << 3 | wire) + payload


def serialized(pieces: list[Piece]) -> bytes:
    model = b""
    for text, score, kind in pieces:
        raw = text.encode()
        message = field(1, 2, varint(len(raw)) + raw) + field(2, 5, struct.pack("<f", score))
        if kind != 1:
            message += field(3, 0, varint(kind))
        model += field(1, 2, varint(len(message)) + message)
    trainer = b"x" * 200
    return model + field(2, 2, varint(len(trainer)) + trainer) + field(99, 1, b"8 bytes.")


def test_pieces_are_read():
    assert read_pieces(serialized(PIECES)) == PIECES


@pytest.mark.parametrize("model", [b"", b"\x0a\xff", b"\x0b\x00", b"\x80", b"plain text", b"\0\0"])
def test_other_bytes_are_refused(model: bytes):
    with pytest.raises(DyntokError, match="not a SentencePiece model"):
        read_pieces(model)


def test_merges_are_in_order_of_score_then_of_length():
    assert score_ordered_merges(PIECES) == [["▁", "a"], ["a", "a"], ["aa", "a"], ["a", "aa"]]


def test_tokenizer_falls_back_to_bytes():
    tokenizer = Tokenizer.from_str(json.dumps(llama_tokenizer(PIECES)))
    encoded = tokenizer.encode("aab é</s>")
    expected = ["<s>", "▁a", "a", "b", "▁", "<0xC3>", "<0xA9>", "</s>"]
    assert encoded.tokens == expected
    assert tokenizer.decode(encoded.ids) == "aab é"


def test_folder(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(serialized(PIECES))
    convert_mistral([tmp_path / "tokenizer.model"], tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert written == llama_tokenizer(PIECES)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<s>", "</s>")
