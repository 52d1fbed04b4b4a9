"""Evaluations and n-shot training by tokenizers that stay the same."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from zett_parts import CONFIG, SAMPLER

from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.byte_level import to_bytes
from dyntok_jax.types import DyntokError
from train.zett_batches import (
    NO_LABEL,
    LanguagePreparation,
    language_batches,
)
from train.zett_hypernet import hypernet_tokenizer
from train.zett_targets import named, short_names, target_batches


@pytest.fixture
def other(folders, tmp_path) -> Path:
    """The folder of another model's tokenizer, with a mask token."""
    content = json.loads((folders["byte_bpe"] / "tokenizer.json").read_text("utf-8"))
    count = len(content["model"]["vocab"])
    content["added_tokens"].append(content["added_tokens"][0] | {"id": count, "content": "<mask>"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    return tmp_path / "other"


@pytest.mark.parametrize("name", ["llama", "xlm_r"])
def test_fixed_tokenizers_give_the_same_batches_each_time(name, tokenizers, data, other):
    own, read = tokenizers[name], BaseTokenizer.from_folder(other)
    prefix = [own.opening_id]
    mask_id = own.special_ids.get("<mask>")
    prepare = LanguagePreparation(
        *(hypernet_tokenizer(own)[0], own.special_ids, prefix, [], own.closing_id, mask_id),
        *(own.vocab_size, own.pad_id or 0, 4, 8, 24, ["de", "en"], SAMPLER),
    )
    names = ["500", str(other)]
    found, again = (target_batches(names, own, prepare, data, 2, seed=3) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, found, again)
    assert list(found) == names and all(len(batches) == 2 for batches in found.values())
    sampled, named = (found[name][0] for name in names)
    np.testing.assert_array_equal(sampled.forms, found["500"][1].forms)
    assert sampled.real.sum() == 500 and named.real.sum() == read.vocab_size
    for batch in (sampled, named):
        specials = batch.own != NO_LABEL
        assert set(batch.own[specials]) <= set(own.special_ids.values())
        assert not specials[np.argmin(specials) :].any()  # they come first
        assert own.closing_id in batch.own[batch.ids[batch.mask]]
        assert (batch.labels != NO_LABEL).sum() > 10
    shared = np.flatnonzero(named.shared != NO_LABEL)
    spelled = own.spelled()
    theirs = set(read.spelled().values())
    assert len(shared) > 100 and all(spelled[int(named.shared[i])] in theirs for i in shared)
    if mask_id is not None:
        with pytest.raises(DyntokError, match=r"fallback_bpe.* has no mask token"):
            bare = other.parent / "fallback_bpe"
            write_json(bare / "tokenizer.json", tokenizers["llama"].tokenizer_json)
            target_batches([str(bare)], own, prepare, data, 1, seed=3)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps(content), "utf-8")


def test_targets_are_named_by_what_tells_them_apart():
    assert short_names(["500", "a/roberta"]) == {"500": "500", "a/roberta": "roberta"}
    alike = ["500", "/out/en/tokenizer", "/out/de/tokenizer"]
    assert list(short_names(alike).values()) == ["500", "en/tokenizer", "de/tokenizer"]
    with pytest.raises(DyntokError, match="named twice"):
        short_names(["out/en", "out/en/"])


def test_evaluations_read_by_fixed_tokenizers(make_task, data, other):
    copied = shutil.copytree(other, other.parent / "copied" / "other")
    config = replace(CONFIG, targets=("500", str(other), str(copied)))
    task = make_task("llama", config, held_out=data)
    figures = task.evaluate(task.init(jax.random.key(0)))
    for target in ("500", f"{other.parent.name}/other", "copied/other"):
        assert abs(figures[f"language_loss_{target}"] - np.log(490)) < 1
    with pytest.raises(DyntokError, match="targets are for held-out texts"):
        make_task("llama", config)


def test_one_tokenizer_may_read_all_texts(make_task, data, other):
    config = replace(CONFIG, tokenizer=str(other), identity_steps=0)
    own = replace(data, sources=data.sources[:1])
    task = make_task("llama", config, data=own)
    # No earlier texts are waited for.
    assert next(task.batches(None)).position["language"]["batch"] == 1
    first, second = (item.batch for item in itertools.islice(task.batches(None), 2))
    read = BaseTokenizer.from_folder(other)
    for name in ("forms", "own", "shared", "real"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.real.sum() == read.vocab_size
    tokens = named(str(other), task._tokenizer, None).tokens
    spelled = "".join(str(tokens[i]) for i in first.ids[0] if not isinstance(tokens[i], int))
    text = Path(data.sources[0].files or "").read_text("utf-8")
    assert len(spelled) > 24 and to_bytes(spelled).decode("utf-8", "ignore").strip() in text
    in_worker = language_batches(replace(own, workers=1), task._preparation, seed=0)
    (again,) = itertools.islice(in_worker, 1)
    jax.tree.map(np.testing.assert_array_equal, again.batch, first)
    with pytest.raises(DyntokError, match="tokenizer reads texts"):
        make_task("llama", replace(config, identity_only=True))


def test_rows_of_one_tokenizer_may_be_kept_near_those_of_the_start(make_task, data, other):
    own = replace(data, sources=data.sources[:1])
    config = replace(CONFIG, tokenizer=str(other), identity_steps=0, overlap_with="start")
    task = make_task("llama", config, data=own, held_out=own)
    params = task.init(jax.random.key(0))
    first = task.evaluate(params)
    assert first["overlap_loss"] == 0
    moved = jax.tree.map(lambda leaf: leaf * 1.1, params)
    assert task.evaluate(moved)["overlap_loss"] > 0
    # All but the special tokens, whose rows are the model's.
    batch = next(task.batches(None)).batch
    wanted = (batch.real & (batch.own == NO_LABEL)).mean()
    np.testing.assert_allclose(first["overlap"], wanted, rtol=1e-6)
    with pytest.raises(DyntokError, match="overlap_with start is of one language's rows"):
        make_task("llama", config, data=data)
    with pytest.raises(DyntokError, match="overlap_with start is of one tokenizer's rows"):
        make_task("llama", replace(CONFIG, overlap_with="start"), data=own)


def test_a_text_may_be_a_sequence_of_its_own(make_task, data, other):
    own = replace(data, sources=data.sources[:1])
    config = replace(CONFIG, tokenizer=str(other), identity_steps=0)
    packed, single = (
        next(make_task("llama", replace(config, packed=packed), data=own).batches(None))
        for packed in (True, False)
    )
    target = named(str(other), make_task("llama", config, data=own)._tokenizer, None)
    lines = Path(own.sources[0].files or "").read_text("utf-8").splitlines()
    # This tokenizer has none of the special tokens that stand around texts.
    texts = [ids[: CONFIG.length] for ids in target.encode(lines)]
    for ids, mask in zip(single.batch.ids, single.batch.mask, strict=True):
        assert ids[mask].tolist() in texts
    assert single.dropped > 0 and packed.batch.mask.sum() >= single.batch.mask.sum()


def test_a_tokenizer_without_the_models_ends_is_warned_of(tokenizers, folders, other, caplog):
    named(str(folders["fallback_bpe"]), tokenizers["llama"], None)
    assert not any("texts stand without" in record.getMessage() for record in caplog.records)
    named(str(other), tokenizers["llama"], None)
    said = caplog.records[-1].getMessage()
    assert f"{other} has no <s>: texts stand without" in said
