"""Hypernetwork checkpoints: both formats in and out, bit for bit, and what can be wrong."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax.core import meta
from safetensors.numpy import load_file, save_file
from test_hypernet import NAMES, TINY, random_params

from dyntok_jax.embed.hypernet import Hypernet
from dyntok_jax.embed.providers import identity
from dyntok_jax.embed.zett import FILES, Format, load_hypernet, read_checkpoint, save_hypernet
from dyntok_jax.types import DyntokError

WITH_MSGPACK = ["tiny_tied_lang", "mistral_like_two_heads"]


def unpacked(path: Path) -> dict[str, np.ndarray]:
    """A flax msgpack file read with msgpack alone."""
    flat: dict[str, np.ndarray] = {}

    def walk(tree: dict[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}/")
            else:
                assert value.code == 1
                shape, dtype, raw = msgpack.unpackb(value.data)
                flat[prefix + key] = np.frombuffer(raw, dtype).reshape(shape)

    walk(msgpack.unpackb(path.read_bytes()), "")
    return flat


def alone(source: Path, target: Path, format: Format) -> Path:
    """A copy of a checkpoint with the tensors of one format."""
    target.mkdir()
    for file in ("config.json", FILES[format]):
        shutil.copy(source / file, target / file)
        (target / file).chmod(0o644)
    return target


@pytest.mark.parametrize("name", WITH_MSGPACK)
def test_both_formats_hold_the_same_parameters(recorded_hypernet, tmp_path: Path, name: str):
    folder = recorded_hypernet(name).folder
    torch = read_checkpoint(folder)
    flax = read_checkpoint(alone(folder, tmp_path / "flax", "msgpack"))
    assert torch.config == flax.config
    assert jax.tree.structure(torch.params) == jax.tree.structure(flax.params)
    jax.tree.map(np.testing.assert_array_equal, torch.params, flax.params)
    facts = recorded_hypernet(name).facts
    for checkpoint, key in [(torch, "torch_only_params(not in flax)"),
                            (flax, "flax_only_params(ignored by torch)")]:  # fmt: skip
        found = [[name, list(tensor.shape)] for name, tensor in checkpoint.unread.items()]
        assert found == facts[key]


@pytest.mark.parametrize("name", WITH_MSGPACK)
def test_recorded_outputs_from_msgpack(recorded_hypernet, tmp_path: Path, name: str):
    recorded = recorded_hypernet(name)
    config, params = load_hypernet(alone(recorded.folder, tmp_path / "flax", "msgpack"))
    forms = recorded.outputs["surface_forms"]
    language = recorded.facts["lang_indexes"][-1]
    rows = jax.jit(Hypernet(config).apply)(
        {"params": params}, recorded.source, forms, forms != config.pad_id, language
    )
    wanted = recorded.outputs[f"lang{language}_flax_in"]
    np.testing.assert_allclose(rows.input, wanted, atol=1e-5, rtol=0)
    if config.separate_output:
        wanted = recorded.outputs[f"lang{language}_flax_out"]
        np.testing.assert_allclose(rows.output, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "format"),
    [(name, "safetensors") for name in NAMES] + [(name, "msgpack") for name in WITH_MSGPACK],
)
def test_a_checkpoint_comes_back_bit_for_bit(
    recorded_hypernet, tmp_path: Path, name: str, format: Format
):
    """The written file is the recorded one, byte for byte."""
    source = alone(recorded_hypernet(name).folder, tmp_path / "in", format)
    checkpoint = read_checkpoint(source)
    target = tmp_path / "out"
    save_hypernet(target, checkpoint.config, checkpoint.params, format, checkpoint.unread)
    again = read_checkpoint(target)
    assert again.config == checkpoint.config
    jax.tree.map(np.testing.assert_array_equal, again.params, checkpoint.params)
    read = load_file if format == "safetensors" else unpacked
    wanted, found = read(source / FILES[format]), read(target / FILES[format])
    assert wanted.keys() == found.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype and found[key].shape == tensor.shape
        assert found[key].tobytes() == tensor.tobytes(), key
    fields = [json.loads((folder / "config.json").read_text()) for folder in (source, target)]
    del fields[0]["transformers_version"]
    if not fields[0]["hn_embed_lang_id"]:
        fields[0]["n_langs"] = 1  # says nothing without a language table
    assert fields[0] == fields[1]
    assert sorted(p.name for p in target.iterdir()) == sorted(["config.json", FILES[format]])


@pytest.mark.parametrize("format", ["safetensors", "msgpack"])
@pytest.mark.parametrize("single_head", [False, True])
def test_parameters_go_out_and_come_back(tmp_path: Path, format: Format, single_head: bool):
    config = TINY.__class__(**{**vars(TINY), "single_head": single_head})
    params = random_params(config)
    boxed = jax.tree.map(lambda p: meta.Partitioned(p, (None,) * p.ndim), params)
    save_hypernet(tmp_path, config, boxed, format)
    loaded, back = load_hypernet(tmp_path)
    assert loaded == config
    jax.tree.map(np.testing.assert_array_equal, back, params)
    unread = read_checkpoint(tmp_path).unread
    assert [tensor.any() for tensor in unread.values()] == [False]


def test_half_precision_tensors_become_float32(tmp_path: Path):
    params = random_params(TINY)
    save_hypernet(tmp_path, TINY, params)
    path = tmp_path / FILES["safetensors"]
    halves = {name: tensor.astype(jnp.bfloat16) for name, tensor in load_file(path).items()}
    save_file(halves, path)
    _, loaded = load_hypernet(tmp_path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.01), loaded, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


def test_a_checkpoint_in_shards_is_read(tmp_path: Path):
    params = random_params(TINY)
    save_hypernet(tmp_path, TINY, params)
    path = tmp_path / FILES["safetensors"]
    tensors = sorted(load_file(path).items())
    path.unlink()
    shards = {"a.safetensors": dict(tensors[:20]), "b.safetensors": dict(tensors[20:])}
    for name, part in shards.items():
        save_file(part, tmp_path / name)
    weight_map = {tensor: name for name, part in shards.items() for tensor in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    jax.tree.map(np.testing.assert_array_equal, load_hypernet(tmp_path)[1], params)


def test_all_wrong_tensors_are_in_one_error(tmp_path: Path):
    save_hypernet(tmp_path, TINY, random_params(TINY))
    path = tmp_path / FILES["safetensors"]
    tensors = load_file(path)
    del tensors["scaler.w"], tensors["lang_embeddings.weight"]
    tensors["surplus.weight"] = np.zeros(2, np.float32)
    tensors["out_scaler.b"] = np.zeros((2, 4), np.float32)
    save_file(tensors, path)
    with pytest.raises(DyntokError) as error:
        load_hypernet(tmp_path)
    assert str(error.value) == (
        f"{path}: missing lang_embeddings.weight; missing scaler.w; "
        "out_scaler.b has shape (2, 4), not (1, 4); unexpected surplus.weight"
    )


def test_too_few_positions_are_an_error(tmp_path: Path):
    save_hypernet(tmp_path, TINY, random_params(TINY))
    path = tmp_path / FILES["safetensors"]
    tensors = load_file(path)
    name = "model.embeddings.position_embeddings.weight"
    save_file({**tensors, name: tensors[name][:2]}, path)
    with pytest.raises(DyntokError, match=r"position_embeddings.weight has shape \(2, 8\), not"):
        load_hypernet(tmp_path)


def changed(folder: Path, **fields: Any) -> Path:
    save_hypernet(folder, TINY, random_params(TINY))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hn_model_type", "t5"),
        ("hn_embed_using_source_embeddings", False),
        ("hn_embed_target_priors", True),
        ("hn_add_inter_token_attention", True),
        ("hn_concat_last_hidden_state", True),
        ("hn_language_adapter_bottleneck_dim", 8),
        ("hn_something_new", 1),
        ("hn_n_layers", "two"),
        ("hn_predict_bias", 1),
        ("hn_surface_maxlen", None),
    ],
)
def test_an_unsupported_field_is_named(tmp_path: Path, field: str, value: object):
    with pytest.raises(DyntokError, match=rf"config.json: {field} is "):
        load_hypernet(changed(tmp_path, **{field: value}))


def test_all_wrong_fields_are_in_one_error(tmp_path: Path):
    folder = changed(tmp_path, hn_concat_last_hidden_state=True, n_embd=1.5, hn_new=0)
    with pytest.raises(DyntokError) as error:
        load_hypernet(folder)
    assert str(error.value).split(": ", 1)[1] == (
        "n_embd is 1.5, not a whole number; "
        "hn_concat_last_hidden_state is True; only False is supported; hn_new is unknown"
    )


def test_heads_must_divide_the_width_and_have_a_default(tmp_path: Path, recorded_hypernet):
    with pytest.raises(DyntokError, match="8 hidden units for 3 heads"):
        load_hypernet(changed(tmp_path / "three", hn_num_attention_heads=3))
    recorded = recorded_hypernet("default_heads_hidden128")
    folder = alone(recorded.folder, tmp_path / "default", "safetensors")
    fields = json.loads((folder / "config.json").read_text())
    del fields["hn_num_attention_heads"]
    (folder / "config.json").write_text(json.dumps(fields))
    assert load_hypernet(folder)[0] == load_hypernet(recorded.folder)[0]


class Bomb:
    """Unpickling it would call ``pytest.exit``."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.exit, ("a checkpoint ran code",)


def test_hypernetworks_are_told_apart_by_their_weights(tmp_path: Path):
    """In either format, wherever they are."""
    for file in ("model.safetensors", "flax_model.msgpack"):
        for name, weights in (("a/h", b"1"), ("b/h", b"1"), ("c/h", b"2")):
            folder = tmp_path / file / name
            folder.mkdir(parents=True)
            (folder / file).write_bytes(weights)
        first, same, other = (identity(str(tmp_path / file / name / "h")) for name in "abc")
        assert first == same != other and first.startswith("h ")
    assert identity("fvt") == "fvt"


def test_a_pickle_is_refused_and_never_read(tmp_path: Path):
    changed(tmp_path)
    (tmp_path / FILES["safetensors"]).unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DyntokError, match=r"only pytorch_model.bin, a pickle"):
        load_hypernet(tmp_path)


@pytest.mark.parametrize("format", ["safetensors", "msgpack"])
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x80\x04K\x01.",
        pickle.dumps(Bomb()),
        msgpack.packb({"scaler": msgpack.ExtType(1, msgpack.packb([[1], "object", b"\0" * 8]))}),
        msgpack.packb({"scaler": {"w": "text"}}),
        msgpack.packb([1, 2]),
    ],
    ids=["empty", "bytes", "pickle", "objects", "text", "list"],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, format: Format, raw: bytes):
    changed(tmp_path)
    (tmp_path / FILES["safetensors"]).unlink()
    (tmp_path / FILES[format]).write_bytes(raw)
    with pytest.raises(DyntokError, match=FILES[format]):
        load_hypernet(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_a_damaged_config_is_an_error(tmp_path: Path, text: str | None):
    changed(tmp_path)
    (tmp_path / "config.json").unlink()
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(DyntokError, match=r"config\.json"):
        load_hypernet(tmp_path)


def test_an_empty_folder_is_an_error(tmp_path: Path):
    with pytest.raises(DyntokError, match="no hypernetwork there"):
        load_hypernet(tmp_path)


def test_a_folder_keeps_to_one_format(tmp_path: Path):
    params = random_params(TINY)
    save_hypernet(tmp_path, TINY, params)
    save_hypernet(tmp_path, TINY, params)
    with pytest.raises(DyntokError, match=r"holds another model\.safetensors"):
        save_hypernet(tmp_path, TINY, params, "msgpack")
    assert not (tmp_path / FILES["msgpack"]).exists()


@pytest.mark.parametrize("format", ["safetensors", "msgpack"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, format: Format):
    """A limit on the size of files stands for the full disk."""
    save_hypernet(tmp_path, TINY, random_params(TINY), format)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    params = jax.tree.map(lambda leaf: leaf + 1, random_params(TINY))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))
    try:
        with pytest.raises(DyntokError, match=rf"{FILES[format]}: cannot be written \(File too"):
            save_hypernet(tmp_path, TINY, params, format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_tensors_do_not_stay_without_their_config(tmp_path: Path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(DyntokError, match=r"config\.json: is no regular file"):
        save_hypernet(tmp_path, TINY, random_params(TINY))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DyntokError, match=r"file/a: cannot be written \(Not a directory\)"):
        save_hypernet(tmp_path / "file" / "a", TINY, random_params(TINY))
