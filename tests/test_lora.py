"""Adapters: the same as peft's, merged or beside the kernels, to and from its files."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta
from safetensors.numpy import load_file, save_file

from dyntok_jax.adapter_files import read_adapter, write_adapter
from dyntok_jax.config import MeshConfig
from dyntok_jax.lora import adapted_params, base_hash, frozen_hash
from dyntok_jax.models.classifier import Classifier
from dyntok_jax.models.encoder import EncoderConfig
from dyntok_jax.models.layers import Dense, abstract_params, dropped
from dyntok_jax.models.lora import LoraConfig, abstract_lora, additions, init_lora, targeted
from dyntok_jax.models.weights import load_model
from dyntok_jax.sharding import make_mesh, param_shardings
from dyntok_jax.types import DyntokError

FOLDER = Path(__file__).parent / "fixtures" / "lora"
MODELS = FOLDER.with_name("models")
NAMES = sorted(path.name for path in FOLDER.iterdir())
RATE, CLIP = 3e-2, 1.0


@pytest.fixture(params=NAMES)
def case(request, tmp_path):
    """A model, the adapter that peft wrote for it, and what torch computed."""
    folder = FOLDER / request.param
    model = load_model(folder)
    with np.load(folder / "record.npz") as record:
        return SimpleNamespace(
            folder=folder,
            model=model,
            adapter=read_adapter(folder / "adapter", model.architecture),
            record=dict(record),
            out=tmp_path / "written",
        )


def classifier(case) -> Classifier:
    return Classifier(case.model.config, case.adapter.kind, len(case.adapter.labels))


def scores_of(case, variables):
    return np.asarray(jax.jit(classifier(case).apply)(variables, *inputs(case)))


def inputs(case):
    rows = np.asarray(case.model.source.input, np.float32)[case.record["input_ids"]]
    return rows, case.record["attention_mask"].astype(bool)


def first_adapter(case):
    """The adapter before its first step, read from files like peft's own."""
    shutil.copytree(case.folder / "adapter", case.out)
    tensors = {k: v for k, v in case.record.items() if k.startswith("base_model.")}
    save_file(tensors, case.out / "adapter_model.safetensors")
    return read_adapter(case.out, case.model.architecture)


def test_merged_scores_are_torchs(case):
    params = adapted_params(case.model, case.adapter)
    scores = scores_of(case, {"params": params})
    real = case.record["attention_mask"].astype(bool)
    expected = case.record["scores"]
    if case.adapter.kind == "token":
        scores, expected = scores[real], expected[real]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_additions_are_the_merged_kernels(case):
    params = {"model": case.model.params, "head": case.adapter.head}
    lora = {"model": additions(case.adapter.lora, case.adapter.config)}
    beside = scores_of(case, {"params": params, "lora": lora})
    merged = scores_of(case, {"params": adapted_params(case.model, case.adapter)})
    np.testing.assert_allclose(beside, merged, atol=2e-5)
    assert np.abs(beside - scores_of(case, {"params": params})).max() > 0.01


def test_steps_are_peft_s(case):
    first = first_adapter(case)
    module, (rows, mask) = classifier(case), map(jnp.asarray, inputs(case))
    labels = jnp.asarray(case.record["labels"])

    def loss(trained):
        params = {"model": case.model.params, "head": trained["head"]}
        lora = {"model": additions(trained["lora"], first.config)}
        scores: Any = module.apply({"params": params, "lora": lora}, rows, mask)
        each = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(labels, 0))
        return jnp.where(labels >= 0, each, 0).sum() / (labels >= 0).sum()

    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE, weight_decay=0.0))
    trained = {"lora": first.lora, "head": first.head}
    state, losses = optimizer.init(trained), []

    @jax.jit
    def step(trained, state):
        value, grads = jax.value_and_grad(loss)(trained)
        updates, state = optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, value

    for _ in case.record["losses"]:
        trained, state, value = step(trained, state)
        losses.append(value)
    np.testing.assert_allclose(losses, case.record["losses"], atol=1e-4)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-3),
        trained,
        {"lora": case.adapter.lora, "head": case.adapter.head},
    )


def test_files_come_back_as_peft_wrote_them(case):
    write_adapter(case.out, case.adapter, case.model.architecture, "a model")
    ours = load_file(case.out / "adapter_model.safetensors")
    theirs = load_file(case.folder / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor)
    again = read_adapter(case.out, case.model.architecture)
    assert (again.kind, again.labels) == (case.adapter.kind, case.adapter.labels)
    assert (again.config.rank, again.config.alpha) == (
        case.adapter.config.rank,
        case.adapter.config.alpha,
    )
    jax.tree.map(np.testing.assert_array_equal, again.lora, case.adapter.lora)


# peft asks transformers by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_reads_our_files(case):
    peft = pytest.importorskip("peft", reason="needs torch and peft")
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    adapter = case.adapter._replace(base=base_hash(case.model), task={"task": "any"})
    write_adapter(case.out, adapter, case.model.architecture, str(case.folder))
    auto = AutoModelForSequenceClassification
    if adapter.kind == "token":
        auto = AutoModelForTokenClassification
    base = auto.from_pretrained(case.folder, num_labels=len(adapter.labels))
    model = peft.PeftModel.from_pretrained(base, case.out).eval()
    names = ("input_ids", "attention_mask")
    with torch.no_grad():
        scores = model(**{n: torch.from_numpy(case.record[n]) for n in names}).logits.numpy()
    np.testing.assert_allclose(scores, case.record["scores"], rtol=1e-5, atol=1e-5)


def test_another_base_is_refused(case):
    known = case.adapter._replace(base=base_hash(case.model))
    write_adapter(case.out, known, case.model.architecture, "a model")
    read = read_adapter(case.out, case.model.architecture)
    adapted_params(case.model, read)
    other = case.model._replace(params=jax.tree.map(lambda x: x + 1e-3, case.model.params))
    with pytest.raises(DyntokError, match="trained on another model"):
        adapted_params(other, read)
    rows = case.model.source._replace(input=np.asarray(case.model.source.input) + 1e-3)
    with pytest.raises(DyntokError, match="trained on another model"):
        adapted_params(case.model._replace(source=rows), read)


def test_everything_of_a_frozen_model_counts_for_its_hash():
    mistral, masked = (load_model(MODELS / name) for name in ("mistral", "xlm_roberta_masked_lm"))
    output, bias = (-np.asarray(t) for t in (mistral.source.output, masked.source.bias))
    changed = [mistral._replace(source=mistral.source._replace(output=output))]
    head = jax.tree.map(lambda x: x + 1e-3, masked.head_params)
    changed += [masked._replace(head_params=head)]
    changed += [masked._replace(source=masked.source._replace(bias=bias))]
    for other, model in zip(changed, (mistral, masked, masked), strict=True):
        assert base_hash(other) == base_hash(model)
        assert frozen_hash(other) != frozen_hash(model) == frozen_hash(model)


def test_tensors_that_do_not_fit_are_all_named(case):
    shutil.copytree(case.folder / "adapter", case.out)
    path = case.out / "adapter_model.safetensors"
    tensors = load_file(path)
    first, second, *_ = tensors
    tensors["something"] = tensors.pop(first)
    tensors[second] = tensors[second][:, :-1].copy()
    save_file(tensors, path)
    with pytest.raises(DyntokError) as error:
        read_adapter(case.out, case.model.architecture)
    said = str(error.value)
    assert f"missing: {first}" in said and "unexpected: something" in said
    assert f"mis-shaped: {second}" in said and "\n" not in said


def test_a_pooler_that_peft_did_not_save_is_the_bases(tmp_path):
    """As by its default for sequence classification."""
    folder = FOLDER / "bert_sequence"
    model = load_model(folder)
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = read_adapter(tmp_path / "adapter", model.architecture, folder).head
    save_file({name: x for name, x in load_file(path).items() if "pooler" not in name}, path)
    head = read_adapter(tmp_path / "adapter", model.architecture, folder).head
    assert head is not None and whole is not None
    own = load_file(folder / "model.safetensors")["pooler.dense.weight"]
    np.testing.assert_array_equal(head["dense"]["kernel"], own.T)
    assert np.abs(head["dense"]["kernel"] - whole["dense"]["kernel"]).max() > 1e-3
    np.testing.assert_array_equal(head["classes"]["kernel"], whole["classes"]["kernel"])
    with pytest.raises(DyntokError, match=r"missing: .*pooler.*modules_to_save=\['pooler', 'cl"):
        read_adapter(tmp_path / "adapter", model.architecture)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'; valid is LORA"),
        ({"use_dora": True, "bias": "all"}, "not supported: use_dora True, bias 'all'"),
        ({"target_modules": ["nothing"]}, "'nothing' reaches nothing; there are attention"),
        ({"target_modules": r".*\.0\..*query"}, "in 1 of 3 layers"),
        ({"target_modules": None}, "not a configuration of LoRA"),
        ({"r": 0}, "lora.rank: 0"),
        ({"r": 4.5}, "lora.rank: 4.5"),
        ({"r": float("nan")}, "lora.rank: nan"),
        ({"r": float("inf")}, "lora.rank: inf"),
        ({"task_type": ["SEQ_CLS"]}, "not supported: task_type ['SEQ_CLS']"),
        ({"lora_alpha": "8"}, "not numbers"),
        ({"lora_alpha": None}, "not numbers"),
        ({"lora_alpha": float("nan")}, "lora.alpha: nan"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', by which"),
        ({"kasa_config": {"beta": 1}}, "not supported: kasa_config"),
    ],
)
def test_configurations_that_do_not_fit(change, said, tmp_path):
    folder = FOLDER / "xlm_roberta_sequence"
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DyntokError, match=re.escape(said)):
        read_adapter(tmp_path / "adapter", load_model(folder).architecture)


def test_damaged_files(tmp_path):
    folder = FOLDER / "xlm_roberta_sequence"
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    for content in ("{", "[" * 100_000):
        (tmp_path / "adapter" / "adapter_config.json").write_text(content)
        with pytest.raises(DyntokError, match="not JSON"):
            read_adapter(tmp_path / "adapter", load_model(folder).architecture)
    with pytest.raises(DyntokError, match="No such file"):
        read_adapter(tmp_path / "none", load_model(folder).architecture)


@pytest.mark.parametrize("labels", [None, 5, "PER", ["O", 1]])
def test_labels_that_are_no_names(labels, tmp_path):
    folder = FOLDER / "xlm_roberta_sequence"
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "task.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(DyntokError, match=r"task\.json: labels is .* valid is a list of names"):
        read_adapter(tmp_path / "adapter", load_model(folder).architecture)


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        ("task", 3, "a name"),
        ("seed", [1], "a whole number"),
        ("rows", None, "a name"),
        ("row_provider", " ", "a name"),
        ("tokenization", "static", "a mapping"),
    ],
)
def test_what_an_adapter_says_of_its_training_is_checked(key, value, valid, tmp_path):
    folder = FOLDER / "xlm_roberta_sequence"
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "task.json").write_text(json.dumps({"labels": ["a"], key: value}))
    said = re.escape(f"task.json: {key} is {value!r}; valid is {valid}")
    with pytest.raises(DyntokError, match=said):
        read_adapter(tmp_path / "adapter", load_model(folder).architecture)


def test_an_adapters_weights_take_their_place_last(tmp_path, monkeypatch):
    folder = FOLDER / "xlm_roberta_sequence"
    architecture = load_model(folder).architecture
    adapter = read_adapter(folder / "adapter", architecture)
    written: list[str] = []
    replace = os.replace

    def noted(source: str, target: str) -> None:
        written.append(Path(target).name)
        if "task" in written[-1]:
            raise OSError(errno.ENOSPC, "No space left")
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    with pytest.raises(DyntokError, match=r"task\.json: cannot be written"):
        write_adapter(tmp_path, adapter, architecture, "base")
    assert not (tmp_path / "adapter_model.safetensors").exists()
    with pytest.raises(DyntokError):
        read_adapter(tmp_path, architecture)


def test_an_adapter_is_not_written_over_a_file(tmp_path):
    folder = FOLDER / "xlm_roberta_sequence"
    architecture = load_model(folder).architecture
    adapter = read_adapter(folder / "adapter", architecture)
    (tmp_path / "adapter").write_text("mine")
    with pytest.raises(DyntokError, match="adapter: cannot be written"):
        write_adapter(tmp_path / "adapter", adapter, architecture, "base")
    assert (tmp_path / "adapter").read_text() == "mine"


def make_lora(model, **fields):
    config = LoraConfig(**fields)
    abstract = abstract_params(Classifier(model.config, "token", 3))["model"]
    paths = targeted(model.architecture, config.targets).values()
    return config, abstract_lora(abstract, [*paths], config.rank)


def test_first_values_change_nothing_and_are_as_wide_as_peft_s():
    model = load_model(FOLDER / "bert_token")
    _, abstract = make_lora(model, rank=64, targets=("query", "output.dense"))
    lora = init_lora(abstract, jax.random.key(0))
    assert {*lora["stack"]["layers"]} == {"attention", "down"}
    assert {*lora["stack"]["layers"]["attention"]} == {"query", "output"}
    for pair, width in (
        (lora["stack"]["layers"]["attention"]["query"], model.config.width),
        (lora["stack"]["layers"]["down"], model.config.feed_forward),
    ):
        assert pair["A"].shape == (model.config.layers, width, 64)
        assert not pair["B"].any()
        bound = width**-0.5
        assert 0.97 * bound < np.abs(pair["A"]).max() <= bound
        np.testing.assert_allclose(pair["A"].std(), bound / 3**0.5, rtol=0.03)


def test_dropout_drops_its_share_of_the_inputs_only():
    model = load_model(FOLDER / "bert_token")
    config, abstract = make_lora(model, rank=4, dropout=0.25)
    lora = jax.tree.map(jnp.ones_like, init_lora(abstract, jax.random.key(0)))
    added = additions(lora, config)
    assert added["stack"]["layers"]["attention"]["value"]["rate"].shape == (model.config.layers,)

    x = jnp.ones((50, 40, 24))
    query = jax.tree.map(lambda leaf: leaf[0], added["stack"]["layers"]["attention"]["query"])
    params = {"kernel": jnp.zeros((24, 24))}
    dense = Dense(24, ("D", "NH"), use_bias=False)

    def run(rngs: Any) -> Any:
        return dense.apply({"params": params, "lora": query}, x, rngs=rngs)

    whole, dropped = run(None), run({"dropout": jax.random.key(1)})
    scale = config.alpha / config.rank
    np.testing.assert_allclose(whole, 24 * 4 * scale)
    kept = dropped[..., 0] / (4 * scale) * 0.75
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-4)
    np.testing.assert_allclose(kept.mean() / 24, 0.75, atol=0.01)
    assert not np.array_equal(dropped, run({"dropout": jax.random.key(2)}))


def test_every_layer_and_map_drops_anew():
    model = load_model(FOLDER / "bert_token")
    config, abstract = make_lora(model, rank=4, dropout=0.5)
    lora = jax.tree.map(lambda x: jnp.ones_like(x) * 0.02, init_lora(abstract, jax.random.key(0)))
    assert isinstance(model.config, EncoderConfig)
    module = Classifier(model.config, "token", 3)
    rows, mask = jnp.ones((1, 5, model.config.width)), jnp.ones((1, 5), bool)
    params = meta.unbox(jax.jit(module.init)(jax.random.key(0), rows, mask))["params"]
    variables = {"params": params, "lora": {"model": additions(lora, config)}}
    apply = jax.jit(lambda key: module.apply(variables, rows, mask, rngs={"dropout": key}))
    scores = [apply(jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.abs(np.asarray(scores[0]) - np.asarray(scores[2])).max() > 1e-4


def test_dropout_is_drawn_once_where_layers_are_recomputed():
    """The gradients are those of activations that are all kept, by as many draws."""
    model = load_model(FOLDER / "bert_token")
    config, abstract = make_lora(model, rank=4, dropout=0.5)
    lora = jax.tree.map(lambda x: jnp.ones_like(x) * 0.02, init_lora(abstract, jax.random.key(0)))
    assert isinstance(model.config, EncoderConfig)
    rows, mask = jnp.ones((1, 5, model.config.width)), jnp.ones((1, 5), bool)
    found = []
    for remat in (False, True):
        module = Classifier(model.config, "token", 3, remat=remat)
        params = meta.unbox(jax.jit(module.init)(jax.random.key(0), rows, mask))["params"]

        def loss(lora: Any, module: Any = module, params: Any = params) -> Any:
            variables = {"params": params, "lora": {"model": additions(lora, config)}}
            scores = module.apply(variables, rows, mask, rngs={"dropout": jax.random.key(1)})
            return jnp.square(scores).sum()

        gradient = jax.jit(jax.grad(loss))
        found.append((gradient(lora), str(gradient.trace(lora).jaxpr).count("random_bits")))
    (plain, draws), (recomputed, again) = found
    assert draws == again > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain, recomputed)


def test_arrays_are_cut_like_their_kernels():
    model = load_model(FOLDER / "bert_token")
    _, abstract = make_lora(model, rank=4)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, model=4))
    specs = param_shardings(abstract, mesh)["stack"]["layers"]["attention"]["query"]
    assert tuple(specs["A"].spec) == (None, "fsdp", None)
    assert tuple(specs["B"].spec) == (None, None, "model")


def test_dropout_of_an_odd_width_keeps_the_mean_and_draws_every_place_alone():
    kept = dropped(jnp.ones((400, 5)), jnp.float32(0.25), jax.random.key(0))
    np.testing.assert_allclose(np.unique(kept), [0, 4 / 3], rtol=1e-4)
    gone = np.asarray(kept) == 0
    assert np.abs(gone.mean(axis=0) - 0.25).max() < 0.08
    assert np.abs(np.corrcoef(gone.T) - np.eye(5)).max() < 0.2
