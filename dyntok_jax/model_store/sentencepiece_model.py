"""A SentencePiece BPE model -> tokenizer.json, without the sentencepiece library."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dyntok_jax.model_store.layout import tokenizer_config, write_json
from dyntok_jax.types import DyntokError

_PIECES_FIELD = 1
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


class Piece(NamedTuple):
    """A vocabulary entry: its text, its score, and its kind (1 normal, 2 unk, 3 control, ...)."""

    text: str
    score: float
    kind: int


def convert_mistral(files: Sequence[Path], folder: Path) -> None:
    """Convert the Mistral-7B-v0.1 tokenizer.

    Args:
        files: the SentencePiece `.model` file.
        folder: receives tokenizer.json and tokenizer_config.json.
    """
    pieces = read_pieces(files[0].read_bytes())
    write_json(folder / "tokenizer.json", llama_tokenizer(pieces))
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "tokenizer_config.json", tokenizer_config(specials, 32768))


def read_pieces(model: bytes) -> list[Piece]:
    """The pieces of a serialized `sentencepiece.ModelProto`, in order of their ids.

    Raises:
        DyntokError: the bytes are no such message.
    """
    try:
        pieces = [
            _piece(value)
            for number, value in _messages(model)
            if number == _PIECES_FIELD and isinstance(value, bytes)
        ]
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise DyntokError(f"not a SentencePiece model: {error}") from error
    if not pieces:
        raise DyntokError("not a SentencePiece model: it has no pieces")
    return pieces


def score_ordered_merges(pieces: Sequence[Piece]) -> list[list[str]]:
    """Every way to join two pieces into a third, best first.

    SentencePiece joins whichever neighbours make the piece of highest score; a list of merges in
    order of the joined piece's score is the same rule. Ways to the same piece come longest left
    part first.
    """
    ids = {piece.text: index for index, piece in enumerate(pieces)}
    merges = []
    for piece in pieces:
        for cut in range(1, len(piece.text)):
            left, right = piece.text[:cut], piece.text[cut:]
            if left in ids and right in ids:
                merges.append((-piece.score, -len(left), -len(right), ids[left], ids[right]))
    # Stable: pieces of one score stay in order of their ids.
    merges.sort(key=lambda merge: merge[:3])
    return [[pieces[left].text, pieces[right].text] for *_, left, right in merges]


def llama_tokenizer(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Content of `tokenizer.json` for a Llama-type SentencePiece BPE with byte fallback."""
    ids = {piece.text: index for index, piece in enumerate(pieces)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    bos, text_a, bos_b, text_b = (
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "<s>", "type_id": 1}},
        {"Sequence": {"id": "B", "type_id": 1}},
    )
    meta_space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    plain_space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": ids[piece.text], "content": piece.text, **flags, "special": True}
            for piece in pieces
            if piece.kind in (_UNKNOWN, _CONTROL)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, meta_space],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text_a],
            "pair": [bos, text_a, bos_b, text_b],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [ids["<s>"]], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                plain_space,
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": any(piece.kind == _BYTE for piece in pieces),
            "ignore_merges": False,
            "vocab": ids,
            "merges": score_ordered_merges(pieces),
        },
    }


def _piece(message: bytes) -> Piece:
    fields = dict(_messages(message))
    text, score = fields[1], fields.get(2, b"\0\0\0\0")
    assert isinstance(text, bytes) and isinstance(score, bytes)
    kind = fields.get(3, _NORMAL)
    assert isinstance(kind, int)
    return Piece(text.decode(), struct.unpack("<f", score)[0], kind)


def _messages(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    # protobuf wire format: a varint key (field number, wire type), then the value.
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise IndexError(f"wire type {wire} at byte {position}")
        if position + length > len(data):
            raise IndexError(f"cut off at byte {len(data)}")
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
