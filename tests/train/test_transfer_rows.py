"""Rows of another tokenizer's tokens, as hypernetworks predict them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.core import meta
from transferred import make_model, write_tokenizer
from zett_parts import small_shape

from dyntok_jax.embed.hypernet import Hypernet, HypernetConfig, abstract_hypernet
from dyntok_jax.embed.providers import row_provider
from dyntok_jax.embed.source import SourceEmbeddings
from dyntok_jax.embed.zett import load_hypernet, save_hypernet
from dyntok_jax.models.weights import load_model
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.surface_forms import surface_forms
from train.config import HypernetRun, HypernetShape
from train.data import DataConfig
from train.hypernet import _export, hypernet_config
from train.loop import TrainingConfig
from train.text_sources import TextSource
from train.transfer import main, transfer
from train.zett_hypernet import hypernet_tokenizer

SMALL = HypernetShape(hidden=8, feed_forward=16, layers=1, heads=2, surface_length=12)
TINY = HypernetConfig(
    width=24,
    hidden=8,
    feed_forward=16,
    layers=1,
    heads=2,
    surface_length=4,
    vocab_size=480,
    extra_tokens=0,
    pad_id=2,
    max_positions=4,
    rescale=False,
    predict_bias=False,
)


@pytest.mark.parametrize("name", ["llama_tied", "mistral"])
def test_rows_of_a_hypernetwork(name, tiny_tokenizers, new_tokenizer, tmp_path):
    base = make_model(name, tmp_path / "base", tiny_tokenizers["byte_bpe"])
    write_tokenizer(tmp_path / "hypernet", tiny_tokenizers["byte_bpe"].json)
    source = SourceEmbeddings(*load_model(base).source)
    config = replace(TINY, separate_output=name == "mistral")
    shapes = meta.unbox(abstract_hypernet(config))
    rng = np.random.default_rng(1)
    params: Any = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4") / 4, shapes)
    save_hypernet(tmp_path / "hypernet", config, params)
    matched = transfer(base, str(tmp_path / "hypernet"), new_tokenizer, tmp_path / "out")
    old = BaseTokenizer.from_folder(base)
    provider = row_provider(str(tmp_path / "hypernet"), lambda _: source, old)
    found = load_model(tmp_path / "out").source
    for table, want in zip(found, provider.rows(matched.tokens), strict=True):
        assert (table is None) == (want is None)
        if table is not None and want is not None:
            np.testing.assert_array_equal(table, want)
    i = BaseTokenizer.from_folder(new_tokenizer).id_of("T")
    assert np.abs(found.input[i] - source.input[old.id_of("T")]).max() > 0.1  # predicted
    np.testing.assert_array_equal(found.input[0], source.input[2])  # special
    assert Hypernet(config).config.separate_output == (found.output is not None)


def trained(
    kind: str, base: Path, out: Path, languages: int = 0, shape: HypernetShape = SMALL
) -> Path:
    """A hypernetwork as training leaves it; a residual one as it begins."""
    model, tokenizer = load_model(base), BaseTokenizer.from_folder(base)
    data = DataConfig((TextSource("en", files="none.txt"),))
    run = HypernetRun(str(base), data, TrainingConfig(out, steps=1), hypernet=shape)
    if kind == "distill":
        config = hypernet_config(shape, model, tokenizer)
    else:
        config = small_shape(
            model, tokenizer, languages, hidden=8, feed_forward=16, surface_length=4
        )
    rng = np.random.default_rng(1)

    def values(path: Any, leaf: Any) -> np.ndarray:
        added = path[0].key in ("head", "output_head", "rescale", "rescale_output")
        begins_at_zero = kind == "distill" and added
        return rng.normal(0, 0.0 if begins_at_zero else 0.2, leaf.shape).astype(np.float32)

    shapes = meta.unbox(abstract_hypernet(config))
    _export(run, config, jax.tree_util.tree_map_with_path(values, shapes))
    return out / "hypernet"


@pytest.mark.parametrize("name", ["mistral", "bert_sequence"])
def test_rows_of_a_distilled_hypernetwork_begin_as_means(
    name, tiny_tokenizers, new_tokenizer, tmp_path
):
    base = make_model(name, tmp_path / "base", tiny_tokenizers["byte_bpe"], pad_token_id=2)
    rows = trained("distill", base, tmp_path)
    transfer(base, str(rows), new_tokenizer, tmp_path / "out")
    transfer(base, "fvt", new_tokenizer, tmp_path / "mean")
    found, means = (load_model(tmp_path / folder).source for folder in ("out", "mean"))
    for table, want in zip(found, means, strict=True):
        assert (table is None) == (want is None)
        if table is not None and want is not None:
            np.testing.assert_allclose(table, want, atol=1e-5)


def test_a_tied_model_gets_the_output_rows_it_lacks(tiny_tokenizers, new_tokenizer, tmp_path):
    """Also where ids without a token get mean rows."""
    base = make_model("llama_tied", tmp_path / "base", tiny_tokenizers["byte_bpe"], pad_token_id=2)
    content = json.loads((new_tokenizer / "tokenizer.json").read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.__getitem__)] += 1
    folder = write_tokenizer(tmp_path / "gap", content, eos_token="<end>")
    rows = trained("distill", base, tmp_path, shape=replace(SMALL, separate_output=True))
    matched = transfer(base, str(rows), folder, tmp_path / "out")
    transfer(base, "fvt", folder, tmp_path / "mean")
    assert len(matched.gaps) == 1
    found, means = (load_model(tmp_path / folder).source for folder in ("out", "mean"))
    assert means.output is None and found.output is not None
    for table in (found.input, found.output):
        np.testing.assert_allclose(table, means.input, atol=1e-5)
    config, params = load_hypernet(rows)
    rng = np.random.default_rng(0)
    drawn = {
        name: jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), params[name])
        for name in ("output_head", "rescale_output")
    }
    save_hypernet(rows, config, {**params, **drawn})
    transfer(base, str(rows), folder, tmp_path / "apart")
    apart = load_model(tmp_path / "apart").source
    np.testing.assert_allclose(apart.input, means.input, atol=1e-5)
    assert apart.output is not None and np.abs(apart.output - means.input).max() > 0.05
    kept = list(matched.kept)
    np.testing.assert_array_equal(apart.output[kept], apart.input[kept])


@pytest.mark.parametrize(
    ("name", "family"),
    [("mistral", "fallback_bpe"), ("xlm_roberta_masked_lm", "unigram")],
)
def test_rows_of_a_hypernetwork_of_zett(name, family, tiny_tokenizers, new_tokenizer, tmp_path):
    """It reads by the model's tokenizer in byte-level form, and predicts vocabulary tokens too."""
    tokenizer = tiny_tokenizers[family]
    base = make_model(name, tmp_path / "base", tokenizer, pad_token_id=1)
    rows, out = trained("zett", base, tmp_path), tmp_path / "out"
    transfer(base, str(rows), new_tokenizer, out)
    config, params = load_hypernet(rows)
    assert not config.native and config.rescale and config.residual is False
    before, after = load_model(base).source, load_model(out).source
    own, new = BaseTokenizer.from_folder(base), BaseTokenizer.from_folder(out)
    reads = BaseTokenizer(hypernet_tokenizer(own)[0])
    ids = [i for token in ("The", "Ġlazy") if (i := new.id_of(token)) is not None]
    assert len(ids) == 2
    forms = surface_forms([new.spelled()[i] for i in ids], reads, 4, config.pad_id).ids
    tables = [table for table in (before.input, before.output) if table is not None]
    source = np.concatenate(tables, axis=1).astype(np.float32)[: config.vocab_size]
    apply: Any = jax.jit(Hypernet(config).apply)
    predicted = apply({"params": params}, source, forms, forms != config.pad_id)
    for table, want in zip(after, predicted, strict=True):
        assert (table is None) == (want is None)
        if table is not None:
            np.testing.assert_allclose(table[ids], want, atol=1e-5)
    np.testing.assert_array_equal(after.input[0], before.input[2])  # the end, a special token


def test_a_hypernetwork_that_does_not_fit_is_refused_in_one_line(
    tiny_tokenizers, new_tokenizer, tmp_path
):
    base = make_model("llama_tied", tmp_path / "base", tiny_tokenizers["byte_bpe"], pad_token_id=2)
    other = make_model("llama_tied", tmp_path / "other", tiny_tokenizers["byte_bpe"], seed=7)
    cases = {
        "no language given: this hypernetwork has languages 0 to 1": (base, "zett"),
        "this hypernetwork was trained for another model": (other, "distill"),
    }
    for number, (words, (model, kind)) in enumerate(cases.items()):
        rows = trained(kind, base, tmp_path / str(number), languages=2)
        names = {"model": model, "rows": rows, "tokenizer": new_tokenizer, "out": tmp_path / "out"}
        with pytest.raises(SystemExit) as refused:
            main([part for name, value in names.items() for part in (f"--{name}", str(value))])
        said = str(refused.value)
        assert words in said and said.startswith("error: ") and "\n" not in said
        assert not (tmp_path / "out").exists()
