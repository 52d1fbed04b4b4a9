"""Models with another tokenizer's vocabulary: what stays, what is predicted, what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transferred import make_model, write_tokenizer
from transformers import AutoTokenizer, GenerationConfig

from dyntok_jax.embed.source import FvtRows, SourceEmbeddings
from dyntok_jax.models.heads import logits
from dyntok_jax.models.weights import head_module, load_model, model_module
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import DyntokError, Rows
from train.transfer import main, transfer

TEXT = "The lazy dog"


@partial(jax.jit, static_argnums=0)
def applied(module: nn.Module, params: Any, *inputs: Any) -> Any:
    return module.apply({"params": params}, *inputs)


def run(folder: Path, rows: np.ndarray | None = None, ids: Any = None) -> np.ndarray:
    """What a checkpoint makes of ids, or of rows: a head's scores, else hidden states."""
    loaded = load_model(folder)
    if ids is None:
        ids = BaseTokenizer.from_folder(folder).encode([TEXT])[0].ids
    rows = np.asarray(loaded.source.input, np.float32)[ids] if rows is None else rows
    rows, mask = rows[None], np.ones((1, len(rows)), bool)
    types = [jnp.zeros(mask.shape, jnp.int32)] if loaded.kind == "encoder" else []
    module = model_module(loaded.architecture)
    hidden = applied(module, loaded.params, rows, mask, *types)
    head = head_module(loaded.architecture)
    out = loaded.source.input if loaded.source.output is None else loaded.source.output
    if head is None:
        return np.asarray(logits(hidden, jnp.asarray(out)))
    extra = (out, loaded.source.bias) if loaded.architecture.head == "masked_lm" else ()
    return np.asarray(applied(head, loaded.head_params or {}, hidden, *extra))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("llama_tied", "byte_bpe"),
        ("mistral", "fallback_bpe"),
        ("bert_masked_lm", "wordpiece"),
        ("xlm_roberta_masked_lm", "unigram"),
    ],
)
def test_the_same_tokenizer_changes_nothing(name, family, tiny_tokenizers, tmp_path):
    padding = {"pad_token_id": 1} if family == "unigram" else {}
    base = make_model(name, tmp_path / "base", tiny_tokenizers[family], **padding)
    transfer(base, "fvt", base, tmp_path / "out")
    before, after = (load_file(f / "model.safetensors") for f in (base, tmp_path / "out"))
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    np.testing.assert_array_equal(run(tmp_path / "out"), run(base))


@pytest.mark.parametrize("name", ["llama_tied", "mistral", "bert_sequence", "bert_masked_lm"])
def test_a_new_tokenizer(name, tiny_tokenizers, new_tokenizer, tmp_path):
    base, out = make_model(name, tmp_path / "base", tiny_tokenizers["byte_bpe"]), tmp_path / "out"
    matched = transfer(base, "fvt", new_tokenizer, out)
    old, new = BaseTokenizer.from_folder(base), BaseTokenizer.from_folder(out)
    before, after = load_model(base).source, load_model(out).source
    assert matched.kept == {0: 2, 2: 1, 1: 2} and matched.unmatched == {"<new>": 3}
    spelled = new.spelled()
    token = max(spelled, key=lambda i: len(old.decompose(spelled[i])))
    pieces = old.decompose(spelled[token])
    assert len(pieces) > 1 and old.id_of(spelled[token]) is None
    for table, source in zip(after, before, strict=True):
        assert (table is None) == (source is None)
        if source is None or table is None:
            continue
        np.testing.assert_array_equal(table[0], source[2])
        np.testing.assert_array_equal(table[2], source[1])
        np.testing.assert_array_equal(table[new.id_of("T")], source[old.id_of("T")])
        np.testing.assert_allclose(table[token], source[pieces].mean(0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(
            table[3], source[old.decompose("<new>")].mean(0), rtol=1e-6, atol=1e-7
        )
    pieces = new.encode([TEXT])[0]
    rows = FvtRows(SourceEmbeddings(before.input), old).rows(pieces.tokens).input
    if name == "bert_sequence":  # the head stays: rows alone tell the two apart
        np.testing.assert_array_equal(run(out), run(base, rows))
    else:
        assert run(out).shape == (1, len(pieces.ids), new.vocab_size)
    config = json.loads((out / "config.json").read_text())
    ids = [config[f"{role}_token_id"] for role in ("bos", "eos", "pad")]
    assert ids == [2, 0, 1] and config["vocab_size"] == new.vocab_size


def test_transformers_reads_the_tokenizer_as_it_stands(tiny_tokenizers, new_tokenizer, tmp_path):
    base = make_model("bert_sequence", tmp_path / "base", tiny_tokenizers["byte_bpe"])
    (base / "chat_template.jinja").write_text("{{ messages }}")
    transfer(base, "fvt", new_tokenizer, tmp_path / "out")
    opened = AutoTokenizer.from_pretrained(tmp_path / "out")
    own = Tokenizer.from_file(str(new_tokenizer / "tokenizer.json"))
    assert opened(TEXT)["input_ids"] == own.encode(TEXT).ids
    assert (opened.bos_token_id, opened.eos_token_id, opened.pad_token_id) == (2, 0, 1)
    assert opened.model_max_length == 20 and opened.chat_template == "{{ messages }}"
    json_files = [f / "tokenizer.json" for f in (new_tokenizer, tmp_path / "out")]
    assert json_files[0].read_bytes() == json_files[1].read_bytes()


def test_settings_of_generation_get_the_new_ids(tiny_tokenizers, new_tokenizer, tmp_path, caplog):
    base = make_model("llama_tied", tmp_path / "base", tiny_tokenizers["byte_bpe"])
    settings = {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.5, "suppress_tokens": [7]}
    cases = {0: settings, 1: settings | {"eos_token_id": [2, 1]}}
    for case, content in cases.items():
        (base / "generation_config.json").write_text(json.dumps(content))
        transfer(base, "fvt", new_tokenizer, tmp_path / str(case))
        found = GenerationConfig.from_pretrained(tmp_path / str(case))
        assert found.temperature == 0.5 and found.bos_token_id == 2
        # The padding here has the row of an old end, so it ends a text as well.
        assert sorted(np.ravel(found.eos_token_id)) == ([0, 1, 2] if case else [0])
        assert found.suppress_tokens is None and found.pad_token_id is None
        assert "suppress_tokens, of old tokens, left out" in caplog.text
    (base / "generation_config.json").write_text("[]")
    with pytest.raises(DyntokError, match=r"generation_config\.json: not a JSON object"):
        transfer(base, "fvt", new_tokenizer, tmp_path / "none")


def test_positions_go_on_behind_another_padding(tiny_tokenizers, new_tokenizer, tmp_path):
    """Old padding 4, new 1; then new 6: the first position's row moves with it."""
    tokenizer = tiny_tokenizers["unigram"]
    base = make_model("xlm_roberta_masked_lm", tmp_path / "base", tokenizer)
    content = json.loads((new_tokenizer / "tokenizer.json").read_text("utf-8"))
    roles = {"bos_token": "<begin>", "eos_token": "<end>", "pad_token": "<padding>"}
    further = json.loads(json.dumps(content).replace("<padding>", "<other>"))
    six = next(token for token, i in content["model"]["vocab"].items() if i == 6)
    further["added_tokens"].append(content["added_tokens"][1] | {"id": 6, "content": six})
    later = write_tokenizer(tmp_path / "six", further, **roles | {"pad_token": six})
    rows = np.random.default_rng(2).normal(size=(9, 24)).astype(np.float32)
    hidden = load_model(base)
    before = np.asarray(_hidden(base, rows))
    for folder, pad in ((new_tokenizer, 1), (later, 6)):
        out = tmp_path / f"out{pad}"
        transfer(base, "fvt", folder, out)
        loaded = load_model(out)
        assert loaded.hf_config["pad_token_id"] == pad
        assert loaded.hf_config["max_position_embeddings"] == 20 + pad - 4
        assert loaded.architecture.max_length == hidden.architecture.max_length
        np.testing.assert_array_equal(_hidden(out, rows), before)
    bare = write_tokenizer(tmp_path / "bare", content, eos_token="<end>")
    with pytest.raises(DyntokError, match="new tokenizer has no padding"):
        transfer(base, "fvt", bare, tmp_path / "out")


def _hidden(folder: Path, rows: np.ndarray) -> np.ndarray:
    loaded = load_model(folder)
    module, mask = model_module(loaded.architecture), np.ones((1, len(rows)), bool)
    types = jnp.zeros(mask.shape, jnp.int32)
    return np.asarray(applied(module, loaded.params, rows[None], mask, types))


def test_a_fine_tuned_model_gets_rows_of_its_base(tiny_tokenizers, new_tokenizer, tmp_path):
    """Rows of the base, special ones too; but of tokens that only fine-tuning has, its own."""
    plain = tiny_tokenizers["byte_bpe"]
    more = json.loads(json.dumps(plain.json))
    more["added_tokens"].append(more["added_tokens"][0] | {"id": 480, "content": "<new>"})
    base = make_model("bert_masked_lm", tmp_path / "base", plain)
    tuned = make_model("bert_sequence", tmp_path / "tuned", plain._replace(json=more), seed=1)
    transfer(tuned, "fvt", new_tokenizer, tmp_path / "out", base)
    transfer(base, "fvt", new_tokenizer, tmp_path / "of base")
    rows = load_model(tmp_path / "out").source
    want = np.array(load_model(tmp_path / "of base").source.input)
    want[3] = load_model(tuned).source.input[480]
    np.testing.assert_array_equal(rows.input, want)
    assert rows.output is None and rows.bias is None
    before, after = (load_file(f / "model.safetensors") for f in (tuned, tmp_path / "out"))
    assert before.keys() == after.keys()
    for key in before.keys() - {"bert.embeddings.word_embeddings.weight"}:
        np.testing.assert_array_equal(before[key], after[key])
    with pytest.raises(DyntokError, match="have no output, which the model has"):
        transfer(base, "fvt", new_tokenizer, tmp_path / "none", tuned)


@pytest.mark.parametrize("known", [True, False])
def test_a_fine_tuned_model_ends_by_its_own_token(known, tiny_tokenizers, new_tokenizer, tmp_path):
    """A chat's end, be it a token of the base too or one that only fine-tuning has added."""
    chat = tiny_tokenizers["byte_bpe"]  # ends with <|im_end|>
    ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    base = make_model("llama_tied", tmp_path / "base", chat._replace(config=ends))
    if not known:
        more = json.loads(json.dumps(chat.json))
        more["added_tokens"].append(more["added_tokens"][0] | {"id": 480, "content": "<over>"})
        chat = chat._replace(json=more, config=chat.config | {"eos_token": "<over>"})
    end = 2 if known else 480
    tuned = make_model("llama_tied", tmp_path / "tuned", chat, seed=1, eos_token_id=[end, 0])
    matched = transfer(tuned, "fvt", new_tokenizer, tmp_path / "out", base)
    assert (matched.kept | matched.added).items() >= {(0, end), (1, end), (2, 1)}
    rows = load_model(tmp_path / "out").source.input
    of_base, of_tuned = (load_model(folder).source.input for folder in (base, tuned))
    np.testing.assert_array_equal(rows[0], of_base[2] if known else of_tuned[480])
    np.testing.assert_array_equal(rows[2], of_base[1])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert sorted(config["eos_token_id"]) == [0, 1]  # the padding stands for the end too


def test_dtypes_and_unread_weights_stay(tiny_tokenizers, new_tokenizer, tmp_path):
    base = make_model("bert_token", tmp_path / "base", tiny_tokenizers["wordpiece"])
    half = {
        name: tensor.astype(ml_dtypes.bfloat16)
        for name, tensor in load_file(base / "model.safetensors").items()
    }
    half["bert.pooler.dense.bias"] = np.arange(24, dtype=np.float32)
    half["bert.embeddings.position_ids"] = np.arange(20)[None]
    save_file(half, base / "model.safetensors")
    transfer(base, "fvt", new_tokenizer, tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == half.keys() - {"bert.embeddings.position_ids"}
    assert all(after[name].dtype == half[name].dtype for name in after)
    np.testing.assert_array_equal(after["bert.pooler.dense.bias"], np.arange(24))


def test_ids_without_a_readable_token_get_the_mean_row(tiny_tokenizers, new_tokenizer, tmp_path):
    base = make_model("llama_tied", tmp_path / "base", tiny_tokenizers["byte_bpe"])
    content = json.loads((new_tokenizer / "tokenizer.json").read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    old = json.loads((base / "tokenizer.json").read_text("utf-8"))
    lost = old["model"]["vocab"].pop("Ą")  # a byte that the base has no token for, as SmolLM2
    old["model"]["vocab"]["unused"] = lost
    write_tokenizer(base, old, eos_token="<|im_end|>")
    last = max(vocabulary, key=vocabulary.__getitem__)
    end = vocabulary[last]
    vocabulary[last] = end + 2
    folder = write_tokenizer(tmp_path / "gaps", content, eos_token="<end>")
    matched = transfer(base, "fvt", folder, tmp_path / "out")
    assert matched.gaps == sorted([vocabulary["Ą"], end, end + 1])
    rows = load_model(tmp_path / "out").source.input
    mean = np.asarray(load_model(base).source.input).mean(0)
    np.testing.assert_allclose(rows[end], mean, atol=1e-6)
    np.testing.assert_array_equal(rows[end], rows[end + 1])
    np.testing.assert_array_equal(rows[end], rows[vocabulary["Ą"]])


def test_nothing_is_left_of_a_failure(tiny_tokenizers, new_tokenizer, tmp_path):
    base, out = (
        make_model("mistral", tmp_path / "base", tiny_tokenizers["byte_bpe"]),
        tmp_path / "o",
    )
    with pytest.raises(DyntokError, match="no such folder"):
        transfer(base, "nonsense", new_tokenizer, out)
    with pytest.raises(SystemExit, match=r"error: .*no empty folder"):
        names = {"model": base, "rows": "fvt", "tokenizer": new_tokenizer, "out": base}
        main([part for name, value in names.items() for part in (f"--{name}", str(value))])
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_the_command(tiny_tokenizers, new_tokenizer, tmp_path, capsys):
    base = make_model("mistral", tmp_path / "base", tiny_tokenizers["unigram"])
    names = {"model": base, "rows": "fvt", "tokenizer": new_tokenizer, "out": tmp_path / "out"}
    main([part for name, value in names.items() for part in (f"--{name}", str(value))])
    assert "tokens, 3 of them with the rows of the base's special" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert isinstance(load_model(tmp_path / "out").source, Rows)
