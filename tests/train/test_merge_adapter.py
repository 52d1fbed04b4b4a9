"""An adapter merged into its base: the folder that is written computes what both did together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from transformers import AutoConfig

from dyntok_jax.adapter_files import read_adapter, write_adapter
from dyntok_jax.models.classifier import Classifier
from dyntok_jax.models.encoder import EncoderConfig
from dyntok_jax.models.lora import additions
from dyntok_jax.models.weights import load_model
from dyntok_jax.tasks.registry import TASKS
from train.merge_adapter import main

FOLDER = Path(__file__).parents[1] / "fixtures" / "lora"


@pytest.fixture(params=sorted(path.name for path in FOLDER.iterdir()))
def case(request, tmp_path, tiny_tokenizers):
    """A base with a tokenizer, an adapter for a task, and what torch computed with both."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(FOLDER / request.param, base)
    (base / "tokenizer.json").write_text(json.dumps(tiny_tokenizers["unigram"].json), "utf-8")
    (base / "tokenizer_config.json").write_text(json.dumps(tiny_tokenizers["unigram"].config))
    model = load_model(base)
    read = read_adapter(base / "adapter", model.architecture)
    task = TASKS["uner" if read.kind == "token" else "xnli"]
    read = read._replace(labels=task.labels, task={"task": task.name})
    write_adapter(adapter, read, model.architecture, str(base))
    with np.load(base / "record.npz") as record:
        return SimpleNamespace(
            base=base,
            model=model,
            folder=adapter,
            adapter=read,
            task=task,
            record=dict(record),
            out=tmp_path / "new" / "out",
        )


def written(case) -> Path:
    main(["--model", str(case.base), "--adapter", str(case.folder), "--out", str(case.out)])
    return case.out


def scores(case, source: Any, variables: dict[str, Any]) -> np.ndarray:
    """Scores of the recorded inputs, of real tokens only."""
    config = case.model.config
    assert isinstance(config, EncoderConfig)
    rows = np.asarray(source.input, np.float32)[case.record["input_ids"]]
    module = Classifier(config, case.task.kind, len(case.task.labels))
    return real(case, jax.jit(module.apply)(variables, rows, mask(case)))


def mask(case) -> np.ndarray:
    return case.record["attention_mask"].astype(bool)


def real(case, found: Any) -> np.ndarray:
    return np.asarray(found)[mask(case)] if case.task.kind == "token" else np.asarray(found)


def test_scores_are_those_of_base_and_adapter(case):
    whole = load_model(written(case))
    found = scores(
        case, whole.source, {"params": {"model": whole.params, "head": whole.head_params}}
    )
    beside = {"model": additions(case.adapter.lora, case.adapter.config)}
    params = {"model": case.model.params, "head": case.adapter.head}
    expected = scores(case, case.model.source, {"params": params, "lora": beside})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found, real(case, case.record["scores"]), rtol=1e-5, atol=1e-5)


def test_the_folder_says_what_it_is(case):
    out = written(case)
    assert load_model(out).architecture.labels == case.task.labels
    assert load_model(out).architecture.head == case.task.kind
    config: Any = AutoConfig.from_pretrained(out)
    suffix = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification"}
    assert config.architectures[0].endswith(suffix[case.task.kind])
    assert config.id2label == dict(enumerate(case.task.labels))
    assert config.label2id == {label: i for i, label in enumerate(case.task.labels)}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (case.base / name).read_bytes()


def test_transformers_computes_the_same(case):
    torch = pytest.importorskip("torch")
    import transformers

    name = {"sequence": "SequenceClassification", "token": "TokenClassification"}[case.task.kind]
    model = getattr(transformers, f"AutoModelFor{name}").from_pretrained(written(case)).eval()
    inputs = [torch.tensor(case.record[key]) for key in ("input_ids", "attention_mask")]
    with torch.no_grad():
        found = model(*inputs).logits.numpy()
    np.testing.assert_allclose(
        real(case, found), real(case, case.record["scores"]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("case", ["bert_token"], indirect=True)
@pytest.mark.parametrize(
    ("rows", "mode", "warned"),
    [("base", "static", False), ("fvt", "static", True), ("fvt", "fixed", True), (None, "", False)],
)
def test_a_joint_adapter_is_warned_of(case, capsys, rows, mode, warned):
    said = {"task": case.task.name} | (
        {"rows": rows, "tokenization": {"mode": mode}} if rows else {}
    )
    written_anew = case.adapter._replace(task=said)
    write_adapter(case.folder, written_anew, case.model.architecture, str(case.base))
    written(case)
    words = f"{case.folder}: trained on rows of {rows}, tokenization {mode}; here it reads base"
    messages = [line for line in capsys.readouterr().err.splitlines() if "WARNING: " in line]
    assert (f"WARNING: {words}" in "".join(messages)) == warned
    # Written by peft, as these were, an adapter does not say what it was trained on.
    (other,) = [line for line in messages if "trained on rows of" not in line]
    assert other.startswith("WARNING: the adapter says no hash of its base")


@pytest.mark.parametrize("case", ["bert_token"], indirect=True)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(case, decoder, tmp_path):
    def refused(**changes: Any) -> str:
        given = {"model": case.base, "adapter": case.folder, "out": case.out} | changes
        with pytest.raises(SystemExit) as ended:
            main([word for name, value in given.items() for word in (f"--{name}", str(value))])
        said = str(ended.value.code)
        assert said.startswith("error: ") and "\n" not in said and not case.out.parent.exists()
        return said

    assert "is a decoder" in refused(model=decoder)
    assert "nowhere" in refused(model=tmp_path / "nowhere")
    assert "No such file" in refused(adapter=tmp_path / "nowhere")
    assert "is no empty folder" in refused(out=case.base)
    for said, changes in (
        ("trained on another model", {"base": "0" * 64}),
        ("has no head", {"head": None, "kind": None, "labels": ()}),
    ):
        other = tmp_path / said
        write_adapter(other, case.adapter._replace(**changes), case.model.architecture, "base")
        assert said in refused(adapter=other)
