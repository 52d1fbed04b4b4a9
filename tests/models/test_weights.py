"""Reading and writing checkpoints: both directions bit for bit, and every fault in one line."""

from __future__ import annotations

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import FOLDER, NAMES, load

from dyntok_jax.models.hf_names import name_table
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.weights import head_module, load_model, model_module, save_model
from dyntok_jax.types import DyntokError


def copy(name, folder, change=None, config=None):
    """A checkpoint with its tensors or configuration changed."""
    shutil.copytree(FOLDER / name, folder)
    if change is not None:
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(
            {k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors"
        )
    if config is not None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_written_back_bit_for_bit(name, tmp_path):
    save_model(tmp_path / "a" / "b", load(name).model)
    written = load_file(tmp_path / "a" / "b" / "model.safetensors")
    stored = load_file(FOLDER / name / "model.safetensors")
    if name == "bert_masked_lm":  # not tied: the decoder's own bias counts, this one does nothing
        stored["cls.predictions.bias"] = stored["cls.predictions.decoder.bias"]
    assert_same(written, stored)
    theirs = json.loads((FOLDER / name / "config.json").read_text())
    assert json.loads((tmp_path / "a" / "b" / "config.json").read_text()) == theirs
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_table_names_every_parameter_once(name):
    model = load(name).model
    paths = list(name_table(model.architecture).parameters.values())
    assert len(set(paths)) == len(paths)


def test_prefix_may_be_missing_and_buffers_are_ignored(tmp_path):
    def bare(tensors):
        kept = {k.removeprefix("roberta."): v for k, v in tensors.items() if "lm_head" not in k}
        buffers = {"embeddings.position_ids": np.arange(20)[None]}
        pooler = {"pooler.dense.weight": np.ones((24, 24), np.float32)}
        return kept | buffers | pooler

    architecture = {"architectures": ["XLMRobertaModel"]}
    name = "xlm_roberta_masked_lm"
    model = load_model(copy(name, tmp_path / "bare", bare, architecture))
    assert model.head_params is None and model.kind == "encoder"
    np.testing.assert_array_equal(model.params["positions"], load(name).model.params["positions"])
    prefixed = load_model(copy(name, tmp_path / "prefixed", None, None))
    np.testing.assert_array_equal(model.source.input, prefixed.source.input)


def test_old_spellings_of_bert(tmp_path):
    def old(tensors):
        return {
            k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): v
            for k, v in tensors.items()
        }

    model = load_model(copy("bert_token", tmp_path / "old", old))
    norm = load("bert_token").model.params["embedding_norm"]
    np.testing.assert_array_equal(model.params["embedding_norm"]["scale"], norm["scale"])
    np.testing.assert_array_equal(model.params["embedding_norm"]["bias"], norm["bias"])


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_and_the_tables_stay_mapped(stored, tmp_path):
    def halve(tensors):
        return {k: v.astype(stored) for k, v in tensors.items()}

    model = load_model(copy("mistral", tmp_path / "half", halve))
    exact = load("mistral").model
    gate = model.params["layers"]["feed_forward"]["gate"]["kernel"]
    expected = exact.params["layers"]["feed_forward"]["gate"]["kernel"].astype(stored)
    assert gate.dtype == np.float32 and gate.ctypes.data % 64 == 0
    np.testing.assert_array_equal(gate, expected.astype(np.float32))
    assert model.source.input.dtype == stored and not model.source.input.flags.writeable
    assert isinstance(model.source.input, np.memmap)
    assert exact.source.output is not None
    np.testing.assert_array_equal(model.source.output, exact.source.output.astype(stored))


def test_shards_are_read_by_their_index(tmp_path):
    tensors = load_file(FOLDER / "mistral" / "model.safetensors")
    (tmp_path / "config.json").write_text((FOLDER / "mistral" / "config.json").read_text())
    names = sorted(tensors)
    where = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        save_file({k: v for k, v in tensors.items() if where[k] == shard}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    save_model(tmp_path / "out", load_model(tmp_path))
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), tensors)
    index.write_text("{}")
    with pytest.raises(DyntokError, match=r"index\.json: not an index"):
        load_model(tmp_path)


def test_all_faults_are_in_one_line(tmp_path):
    def spoil(tensors):
        del tensors["roberta.encoder.layer.1.output.dense.bias"]
        del tensors["lm_head.layer_norm.weight"]
        tensors["roberta.encoder.layer.3.output.dense.bias"] = np.zeros(24, np.float32)
        tensors["encoder.layer.0.output.dense.bias"] = np.zeros(24, np.float32)
        tensors["roberta.embeddings.word_embeddings.weight"] = np.zeros((39, 24), np.float32)
        name = "roberta.encoder.layer.2.intermediate.dense.weight"
        tensors[name] = tensors[name].T
        tensors["roberta.embeddings.LayerNorm.bias"] = np.zeros(24, np.int64)
        return tensors

    folder = copy("xlm_roberta_masked_lm", tmp_path / "spoilt", spoil)
    with pytest.raises(DyntokError) as error:
        load_model(folder)
    assert str(error.value) == (
        f"{folder}: weights do not fit config.json; "
        "missing: encoder.layer.1.output.dense.bias, lm_head.layer_norm.weight; "
        "unexpected: roberta.encoder.layer.0.output.dense.bias "
        "(beside encoder.layer.0.output.dense.bias), "
        "roberta.encoder.layer.3.output.dense.bias; "
        "mis-shaped: roberta.embeddings.word_embeddings.weight (39, 24), not (40, 24), "
        "roberta.encoder.layer.2.intermediate.dense.weight (24, 40), not (40, 24); "
        "dtype: roberta.embeddings.LayerNorm.bias I64, not F32 or F16 or BF16"
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gpt2"}, "model type 'gpt2' (valid: xlm-roberta, roberta, bert, mistral"),
        ({"architectures": ["MistralForTokenClassification"]}, "(valid: MistralModel, MistralFor"),
        ({"hidden_act": "mish"}, "activation 'mish' (valid: gelu,"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10.0, "factor": 2.0}},
            "(valid: rope_type default, linear or llama3",
        ),
    ],
)
def test_unknown_models_are_refused_with_the_valid_ones(config, said, tmp_path):
    folder = copy("mistral", tmp_path / "model", config=config)
    with pytest.raises(DyntokError) as error:
        load_model(folder)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(DyntokError, match=r"config\.json: No such file"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(DyntokError, match=r"config\.json: not a JSON object"):
        load_model(tmp_path)
    folder = copy("bert_token", tmp_path / "model")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-1], whole[:500], whole[:3], b"", b"\xff" * 16, whole[:8] + b"x" * 5000):
        weights.write_bytes(damaged)
        with pytest.raises(DyntokError, match=r"model\.safetensors: not a whole safetensors file"):
            load_model(folder)
    weights.unlink()
    with pytest.raises(DyntokError, match="no weights"):
        load_model(folder)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_what_is_written(name, tmp_path):
    torch = pytest.importorskip("torch", reason="the live comparison needs torch")
    import transformers

    tiny = load(name)
    save_model(tmp_path, tiny.model)
    class_name = tiny.model.hf_config["architectures"][0]
    theirs, info = getattr(transformers, class_name).from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    given = {
        "input_ids": torch.tensor(tiny.record["ids"]).long(),
        "attention_mask": torch.tensor(tiny.record["mask"]).long(),
    }
    if "token_type" in tiny.record:
        given["token_type_ids"] = torch.tensor(tiny.record["token_type"])
    else:
        positions = np.maximum(np.cumsum(tiny.record["mask"], -1) - 1, 0)
        given["position_ids"] = torch.tensor(positions)
    with torch.no_grad():
        scores = theirs.eval()(**given).logits.numpy()
    where = tiny.record["mask"] if scores.ndim == 3 else slice(None)
    ours = np.asarray(tiny.logits(tiny.hidden()))
    np.testing.assert_allclose(ours[where], scores[where], atol=1e-4, rtol=1e-4)


def test_modules_take_the_parameters_as_they_are_loaded():
    model = load("bert_sequence").model
    head = head_module(model.architecture)
    assert head is not None and model.head_params is not None
    assert model.architecture.labels == ("LABEL_0", "LABEL_1")
    assert set(abstract_params(model_module(model.architecture))) == set(model.params)
