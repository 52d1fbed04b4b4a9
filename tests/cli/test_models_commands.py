"""``dyntok rows``, ``encode``, ``score`` on tiny random models."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_folders import of_languages

from dyntok_jax.text.base_tokens import BaseTokenizer

TEXTS = [{"text": "the lighthouse"}, {"text": ""}, {"text": "the dog doesn't mind, at all"}]
ITEMS = [
    {"prompt": "the lighthouse and the", "choices": [" dog", " lazy dog", ""]},
    {"prompt": "", "choices": ["the"]},
]


def test_encode_writes_a_vector_a_line(dyntok, encoder, tmp_path):
    out = tmp_path / "vectors.safetensors"
    run = dyntok("encode", "--model", encoder, "--out", out, "-", stdin=TEXTS)
    assert run.code == 0, run.err
    vectors = load_file(out)["vectors"]
    assert vectors.shape == (3, 16) and np.isfinite(vectors).all()
    assert "row cache" in run.err and run.out == ""
    first = dyntok("encode", "--model", encoder, "--out", out, "--pool", "first", "-", stdin=TEXTS)
    assert first.code == 0
    assert not np.allclose(load_file(out)["vectors"], vectors)


def test_encode_with_base_rows_equals_a_reduction_of_zero(dyntok, encoder, tmp_path):
    base, fvt = tmp_path / "base.safetensors", tmp_path / "fvt.safetensors"
    arguments = ("encode", "--model", encoder, "--reduction", 0, "-")
    assert dyntok(*arguments, "--rows", "base", "--out", base, stdin=TEXTS).code == 0
    assert dyntok(*arguments, "--rows", "fvt", "--out", fvt, stdin=TEXTS).code == 0
    np.testing.assert_array_equal(load_file(base)["vectors"], load_file(fvt)["vectors"])


def test_encode_cuts_what_the_model_cannot_read(dyntok, encoder, tmp_path):
    out = tmp_path / "vectors.safetensors"
    stdin = [{"text": "lighthouse " * 100}]
    run = dyntok("encode", "--model", encoder, "--out", out, "-", stdin=stdin)
    assert run.code == 0 and "tokens truncated" in run.err


def test_score_writes_a_line_a_prompt(dyntok, decoder):
    run = dyntok("score", "--model", decoder, "-", stdin=ITEMS)
    assert run.code == 0, run.err
    first, second = run.records
    assert first["scores"][2] == 0 and all(score < 0 for score in first["scores"][:2])
    assert first["tokens"]["dynamic"] == 4 < first["tokens"]["static"]
    assert second["tokens"] == {"static": 0, "dynamic": 0} and second["scores"][0] < 0
    alone = dyntok("score", "--model", decoder, "-", stdin=ITEMS[:1]).records
    np.testing.assert_allclose(alone[0]["scores"], first["scores"], rtol=1e-5)


def test_score_of_a_long_prompt_is_cut_and_counted(dyntok, decoder):
    stdin = [{"prompt": "x" * 5000, "choices": ["the"]}]
    run = dyntok("score", "--model", decoder, "-", stdin=stdin)
    assert run.code == 0 and run.records[0]["truncated"] > 0


def test_score_names_the_line_without_room(dyntok, decoder):
    stdin = b'\n{"prompt": "a", "choices": [" a"]}\n\n{"prompt": "a", "choices": [" lighthouses"]}'
    arguments = ("--rows", "fvt", "--max-length", 5, "-")
    run = dyntok("score", "--model", decoder, *arguments, stdin=stdin)
    assert run.code == 1 and run.out == "" and run.err.count("\n") == 1
    assert "standard input, line 4: a choice of 5 tokens leaves no room" in run.err


def test_a_language_by_name_and_by_row(dyntok, encoder, tmp_path):
    rows = of_languages(tmp_path / "hypernet", encoder, ["de", "en"])
    found, tokens = {}, [{"token": "Ġlighthouse"}]
    arguments = "rows", "--model", encoder, "--hypernet", rows, "-"
    for language in ("en", "1", "de"):
        out = tmp_path / f"{language}.safetensors"
        run = dyntok(*arguments, "--language", language, "--out", out, stdin=tokens)
        assert run.code == 0, run.err
        found[language] = load_file(out)["input"]
    np.testing.assert_array_equal(found["en"], found["1"])
    assert np.abs(found["en"] - found["de"]).max() > 1e-2
    run = dyntok(*arguments, "--language", "fr", "--out", tmp_path / "no", stdin=tokens)
    assert run.code == 1 and "language 'fr': " in run.err and "its languages are de, en" in run.err


def test_rows_are_means_and_special_tokens_keep_theirs(dyntok, encoder, tmp_path):
    out = tmp_path / "rows.safetensors"
    tokens = [{"token": "Ġlighthouse"}, {"token": "<s>"}]
    run = dyntok("rows", "--model", encoder, "--hypernet", "fvt", "--out", out, "-", stdin=tokens)
    assert run.code == 0, run.err
    rows = load_file(out)["input"]
    table = load_file(encoder / "model.safetensors")["embeddings.word_embeddings.weight"]
    pieces = BaseTokenizer.from_folder(encoder).decompose("Ġlighthouse")
    assert len(pieces) > 1
    np.testing.assert_allclose(rows[0], table[pieces].mean(0), rtol=1e-5)
    np.testing.assert_array_equal(rows[1], table[0])


def test_rows_from_a_source_file(dyntok, folders, tmp_path):
    source, out = tmp_path / "source.safetensors", tmp_path / "rows.safetensors"
    table = np.arange(40_000, dtype=np.float32).reshape(-1, 4)
    save_file({"source": table}, source)
    arguments = ("rows", "--hypernet", "fvt", "--source", source, "--out", out, "-")
    tokens = [{"token": "Ġthe"}]
    run = dyntok(*arguments, "--tokenizer", folders["unigram"], stdin=tokens)
    assert run.code == 0, run.err
    own = BaseTokenizer.from_folder(folders["unigram"]).id_of("Ġthe")
    assert own is not None
    np.testing.assert_array_equal(load_file(out)["input"], table[[own]])
    refused = dyntok(*arguments, stdin=tokens)
    assert refused.code != 0 and "--tokenizer DIR or --model NAME" in refused.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encode", "--model", "E", "--rows", "base", "--out", "O", "-"], "--reduction 0"),
        (["score", "--model", "D", "--rows", "base", "-"], "--reduction 0"),
        (
            ["score", "--model", "D", "--reduction", "0", "--kept-words", "1", "-"],
            "--kept-words: nothing is merged at --reduction 0",
        ),
        (["encode", "--model", "D", "--out", "O", "-"], "is a decoder"),
        (["score", "--model", "E", "-"], "is an encoder"),
        (
            ["encode", "--model", "E", "--rows", "fvtt", "--out", "O", "-"],
            "valid: default, base, fvt",
        ),
        (["encode", "--model", "E", "--max-length", "1", "--out", "O", "-"], "at least 2"),
        (["encode", "--model", "E", "--config", "none.yaml", "--out", "O", "-"], "none.yaml"),
        (["encode", "--model", "E", "-"], "--out"),
        (["score", "--model", "D", "--max-length", "1", "-"], "no room"),
        (["rows", "--model", "E", "--hypernet", "E", "--out", "O", "-"], "config.json"),
        (
            ["rows", "--model", "E", "--hypernet", "fvt", "--language", "1", "--out", "O", "-"],
            "none",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    dyntok, encoder, decoder, tmp_path, arguments, said
):
    places = {"E": encoder, "D": decoder, "O": tmp_path / "out.safetensors"}
    record = {"text": "the dog", "token": "dog", "prompt": "the", "choices": [" dog"]}
    run = dyntok(*(places.get(word, word) for word in arguments), stdin=[record])
    assert run.code in (1, 2), run.err
    assert run.out == ""
    assert run.err.count("\n") == 1 and run.err.startswith("dyntok: ")
    assert said in run.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("encode", "--rows", "base", "--reduction", 0, "--out", "vectors"),
        ("score", "--rows", "base", "--reduction", 0),
        ("generate", "--rows", "base", "--reduction", 0),
        ("rows", "--hypernet", "base", "--out", "rows"),
    ],
)
def test_a_choice_of_base_rows_beside_them_is_refused_before_loading(dyntok, tmp_path, arguments):
    record = {"text": "the dog", "token": "dog", "prompt": "the"}
    if arguments[0] == "score":
        record |= {"choices": [" dog"]}
    nowhere = ("--model", tmp_path / "nowhere", "--base-rows", "own", "-")
    run = dyntok(*arguments, *nowhere, stdin=[record])
    assert run.code == 2 and run.err.startswith("dyntok: --base-rows own: base rows are all")
    assert run.out == "" and run.err.count("\n") == 1


def test_a_checkpoint_that_does_not_fit_names_every_tensor(dyntok, encoder, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((encoder / name).read_bytes())
    tensors = load_file(encoder / "model.safetensors")
    missing = "embeddings.LayerNorm.weight"
    shaped = "embeddings.position_embeddings.weight"
    tensors.pop(missing)
    tensors[shaped] = tensors[shaped][:3].copy()
    tensors["surplus"] = np.zeros(2, np.float32)
    save_file(tensors, folder / "model.safetensors")
    out = tmp_path / "vectors.safetensors"
    run = dyntok("encode", "--model", folder, "--out", out, "-", stdin=TEXTS)
    assert run.code == 1 and run.err.count("\n") == 1
    assert missing in run.err and shaped in run.err and "surplus" in run.err
    assert not out.exists()


def test_configuration_changes_the_computation(dyntok, encoder, tmp_path):
    config, out = tmp_path / "config.yaml", tmp_path / "vectors.safetensors"
    vectors = []
    for dtype in ("float32", "bfloat16"):
        config.write_text(json.dumps({"dtype": dtype, "mesh": {"data": 2, "model": 2}}))
        arguments = ("encode", "--model", encoder, "--config", config, "--out", out, "-")
        run = dyntok(*arguments, stdin=TEXTS)
        assert run.code == 0, run.err
        vectors.append(load_file(out)["vectors"])
    assert 0 < np.abs(vectors[0] - vectors[1]).max() < 0.2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 0),
        ("num_key_value_heads", 3),
        ("hidden_size", 15),
        ("vocab_size", 9),
    ],
)
def test_sizes_that_cannot_be_are_refused(dyntok, decoder, tmp_path, field, value):
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in decoder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((decoder / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps(config))
    run = dyntok("score", "--model", folder, "-", stdin=ITEMS)
    assert run.code == 1 and run.out == "" and run.err.count("\n") == 1
    assert str(folder) in run.err
