"""Distillation: batches say what was merged, step 0 is FVT, and the loss falls."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyntok_jax.config import ComputeConfig, MeshConfig
from dyntok_jax.dynamic_model import load
from dyntok_jax.embed import shipped
from dyntok_jax.embed.source import SourceEmbeddings
from dyntok_jax.merging.batch import merge
from dyntok_jax.merging.budget import Budget
from dyntok_jax.types import DyntokError
from train.config import HypernetRun, HypernetShape
from train.data import DataConfig, TextBatch
from train.distill import Distillation
from train.distill_config import DistillConfig
from train.distill_losses import (
    cosine_distance,
    relative_error,
    scored_positions,
    shortfall,
    span_means,
)
from train.hypernet import main, make_task
from train.loop import TrainingConfig
from train.text_sources import TextSource

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "In 1999 there were 24 lighthouses on this coast; today only 7 of them are lit.",
    "Der Großvater erzählte den Kindern jeden Abend Geschichten über ferne Länder.",
    "Habari ya asubuhi? Watoto wanacheza mpira nje ya nyumba ya babu yao.",
] * 4
SHAPE = HypernetShape(hidden=16, feed_forward=16, layers=1, heads=2, surface_length=6)


@pytest.fixture
def text_file(tmp_path):
    """Some sentences."""
    path = tmp_path / "xx.txt"
    path.write_text("\n".join(TEXTS), "utf-8")
    return path


def make_run(folder, text_file, out, **distill) -> HypernetRun:
    """A small run for a model."""
    source = TextSource("xx", files=str(text_file))
    sizes = {"sequences": 8, "max_length": 32, "merge_rates": (100.0, 100.0)}
    return HypernetRun(
        str(folder),
        DataConfig((source,), texts=16, workers=0),
        TrainingConfig(out, steps=30, checkpoint_every=30),
        held_out=DataConfig((source,), texts=16, workers=0),
        held_out_batches=1,
        hypernet=SHAPE,
        distill=DistillConfig(**sizes | distill),
    )


@pytest.fixture(params=["encoder", "decoder"])
def task(request, text_file, tmp_path):
    """A task of each kind of model."""
    folder = request.getfixturevalue(request.param)
    on = {} if request.param == "encoder" else {"divergence": 1.0, "output": 1.0}
    return make_task(make_run(folder, text_file, tmp_path / "run", **on))


def forms(task, batch):
    """Pieces of every merged token, in the order of their rows."""
    pad_id = task.hypernet_config.pad_id
    return [form[form != pad_id] for form in (*batch.short, *batch.long)]


def test_long_forms_stand_apart(task):
    batch = next(task.batches(None)).batch
    half = task.hypernet_config.surface_length // 2
    counts = [len(form) for form in forms(task, batch)]
    assert batch.short.shape[1] == half and max(counts[: len(batch.short)]) <= half
    assert all(count > half for count in counts[len(batch.short) :] if count)
    assert max(counts[len(batch.short) :]) > half


def test_batch_says_what_was_merged(task):
    batch = next(task.batches(None)).batch
    length, width = batch.base_ids.shape[1], batch.ids.shape[1]
    tokenizer = task.preparation._tokenizer
    spelled = {i: s for s, i in tokenizer.special_ids.items()} | tokenizer.spelled()
    merged = 0
    for row in range(len(batch.base_ids)):
        count = batch.base_mask[row].sum()
        assert batch.base_mask[row, :count].all() and (batch.owner[row, count:] == width).all()
        for place in np.flatnonzero(batch.mask[row]):
            pieces = batch.base_ids[row, :count][batch.owner[row, :count] == place]
            assert batch.last[row, place] == np.flatnonzero(batch.owner[row] == place)[-1]
            index = batch.ids[row, place]
            if index < len(batch.own):
                bytes_before = "".join(spelled[int(i)] for i in pieces)
                assert spelled[int(batch.own[index])] == bytes_before
            else:
                form = forms(task, batch)[index - len(batch.own)]
                assert len(pieces) > 1
                joined = "".join(spelled[int(i)] for i in form)
                assert joined == "".join(spelled[int(i)] for i in pieces)
                merged += 1
    assert length == 32 and merged > 3


def test_batches_are_the_same_from_a_position_on(task):
    stream = task.batches(None)
    first, second = next(stream), next(stream)
    again = next(task.batches(json.loads(json.dumps(first.position)))).batch
    jax.tree.map(np.testing.assert_array_equal, again, second.batch)


def test_devices_that_rows_do_not_split_over_are_refused(encoder, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr("train.distill.ROW_BUCKETS", (4, 64))
    run = make_run(encoder, text_file, tmp_path / "run")
    compute = ComputeConfig(mesh=MeshConfig(data=8))
    with pytest.raises(DyntokError, match="4 rows do not split over 8 devices"):
        make_task(dataclasses.replace(run, compute=compute))


def test_step_0_gives_fvt_rows(task):
    batch = next(task.batches(None)).batch
    params = task.init(jax.random.key(0))
    predicted = np.asarray(jax.jit(task.predicted)(params, task.frozen, batch).input)
    source = np.asarray(task.frozen["source"].input)
    for form, row in zip(forms(task, batch), predicted, strict=True):
        if len(form):
            np.testing.assert_allclose(row, source[form].mean(0), rtol=1e-5, atol=1e-6)


def test_order_is_seen_from_the_start(task):
    table = np.asarray(task.init(jax.random.key(0))["positions"])
    assert table.std() == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize("remat", [False, True])
def test_layers_of_both_networks_are_recomputed_on_request(encoder, text_file, tmp_path, remat):
    run = make_run(encoder, text_file, tmp_path / "run")
    task = make_task(dataclasses.replace(run, compute=ComputeConfig(remat=remat)))
    assert isinstance(task, Distillation)
    assert (task.network.remat, task.hypernet.remat) == (remat, remat)


def test_what_finds_no_room_in_a_batch_is_counted(task):
    preparation = task.preparation
    texts = ["old dog " * 7] * 100
    base, dropped = preparation._base(TextBatch(texts, ["xx"] * 100, 0))
    opening, *_ = preparation._tokenizer.encode([preparation.prefix])
    added = 2 + len(opening.ids) if task.is_encoder else 0
    drawn = sum(len(pieces.ids) for pieces in preparation._tokenizer.encode(texts))
    read = sum(len(sequence.tokens) - added for sequence in base)
    assert len(base) == preparation.sequences and read < drawn / 2
    # Line ends between texts are read too.
    assert drawn - read == pytest.approx(dropped, rel=0.1)


def test_a_hypernetwork_that_reads_one_piece_is_refused(encoder, text_file, tmp_path):
    run = make_run(encoder, text_file, tmp_path / "run")
    with pytest.raises(DyntokError, match="tokens of one piece never merge"):
        dataclasses.replace(run, hypernet=dataclasses.replace(SHAPE, surface_length=1))


def test_without_merges_student_and_teacher_agree(task):
    """Every vocabulary token keeps its own row, so the loss of unmerged text is nothing."""
    base, _ = task.preparation._base(TextBatch(TEXTS, ["xx"] * len(TEXTS), 0))
    batch, _ = task.preparation.arrays(base, merge(base, Budget(merges=0)).sequences)
    params, key = task.init(jax.random.key(0)), jax.random.key(1)
    _, parts = jax.jit(task.loss)(params, task.frozen, batch, key)
    assert float(parts["hidden"]) < 1e-9
    if "divergence" in parts:
        assert abs(float(parts["divergence"])) < 1e-6
    if "pooled" in parts:
        assert max(float(parts["pooled"]), float(parts["shortfall"])) < 1e-4


@pytest.mark.slow
def test_only_the_hypernetwork_gets_a_gradient_and_all_of_its_heads_do(task):
    batch = next(task.batches(None)).batch
    params, key = task.init(jax.random.key(0)), jax.random.key(1)
    grads = jax.jit(jax.grad(lambda p, b: task.loss(p, task.frozen, b, key)[0]))(params, batch)
    assert float(jnp.abs(grads["head"]["kernel"]).max()) > 0


def test_spans_and_errors():
    teacher = jnp.arange(8.0).reshape(1, 4, 2)
    owner = jnp.array([[0, 0, 1, 2]])
    means = span_means(teacher, owner, 2)
    np.testing.assert_allclose(means, [[[1, 2], [4, 5]]])
    mask = jnp.array([[True, False]])
    error = relative_error(jnp.array([[[1.0, 0], [9, 9]]]), jnp.array([[[2.0, 0], [1, 1]]]), mask)
    assert float(error) == pytest.approx(0.25)


def test_scored_positions_have_a_next_token():
    mask = np.zeros((3, 8), bool)
    mask[0, :5], mask[2, :2] = True, True
    rows, places = scored_positions(jnp.asarray(mask), jax.random.key(0), 5)
    assert set(zip(rows.tolist(), places.tolist(), strict=True)) == {
        *((0, i) for i in range(4)),
        (2, 0),
    }


def config_file(path, folder, text_file, out):
    """A run's YAML."""
    run = {
        "model": str(folder),
        "hypernet": {
            k: v for k, v in dataclasses.asdict(SHAPE).items() if k not in ("start", "residual")
        },
        "distill": {"sequences": 8, "max_length": 32, "merge_rates": [100, 100]},
        "data": {"texts": 16, "workers": 0, "sources": [{"language": "xx", "files": "${TEXTS}"}]},
        "held_out": {
            "texts": 16,
            "workers": 0,
            "sources": [{"language": "xx", "files": str(text_file)}],
        },
        "held_out_batches": 1,
        "training": {"out": str(out), "steps": 40, "evaluate_every": 20, "checkpoint_every": 20},
    }
    path.write_text(json.dumps(run), "utf-8")
    return path


@pytest.mark.slow
def test_command_trains_and_its_result_is_loaded(encoder, text_file, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TEXTS", str(text_file))
    path = config_file(tmp_path / "run.yaml", encoder, text_file, tmp_path / "run")
    main(["--config", str(path), "training.optimizer.phases=[{peak: 0.02, warmup: 5}]"])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    figures = [r["hidden_100"] for r in records if r["kind"] == "evaluation"]
    trained = tmp_path / "run" / "hypernet"
    model = load(str(encoder), rows=str(trained))
    fvt = load(str(encoder), rows="fvt")
    assert figures[-1] < figures[0]
    vocabulary = [token for _, token in sorted(model.tokenizer.spelled().items())]
    token = "".join(vocabulary[20:24])

    def row(of, token):
        slot = of.cache.lookup([token])[0]
        return np.asarray(of.cache.tables.input)[slot]

    assert np.abs(row(model, token) - row(fvt, token)).max() > 1e-4
    own = vocabulary[30]
    np.testing.assert_array_equal(row(model, own), row(fvt, own))
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "run")
    assert load(str(encoder)).rows == str(trained)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.stepz=3"], "stepz"),
        (["steps"], "key=value"),
        (["model=no-such-model"], "no-such-model"),
        (["training.steps=0"], "steps: 0"),
        (["data.sources=[]"], "sources is empty"),
        (["held_out.sources=abc"], "held_out.sources: 'abc'; valid is a list"),
        (["held_out.texts=0"], "held_out: texts: 0 is not at least 1"),
        (["distill.sequences=3"], "3 do not split over"),
        (["distill.sequences=-8"], "sequences: -8 is not at least 1"),
        (["distill.merge_rates=[90, 10]"], "merge_rates: 90.0 to 10.0"),
        (["distill.merge_rates=[.nan, 10]"], "merge_rates[0]: nan"),
        (["distill.prompt_share=[0.9, 0.1]"], "prompt_share: 0.9 to 0.1"),
        (["distill.prompt_share=[0, 0]"], "prompt_share: 0.0 to 0.0"),
        (["distill.repeated_words=1.5"], "repeated_words: 1.5 is no chance"),
        (["distill.repeated_words=0.5"], "with prompt_share up to 1.0"),
        (["distill.layers=0"], "layers: 0 is not at least 1"),
        (["hypernet.heads=3"], "16 units do not split into 3 heads"),
        (["hypernet.heads=0"], "heads: 0 is not at least 1"),
        (["held_out_batches=0"], "held_out_batches: 0"),
        (["training.seed=-1"], "seed: -1"),
        (["training.out="], "training.out: is empty"),
        (["training.out=/dev/null/run"], "/dev/null/run cannot be made"),
        (["training.optimizer.phases=[{peak: .nan}]"], "peak: nan"),
        (["training.optimizer.betas=[0.9, 1.0]"], "betas"),
    ],
)
def test_command_refuses_in_one_line(overrides, words, encoder, text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTS", str(text_file))
    path = config_file(tmp_path / "run.yaml", encoder, text_file, tmp_path / "run")
    with pytest.raises(SystemExit) as caught:
        main(["--config", str(path), *overrides])
    said = str(caught.value)
    assert words in said and said.startswith("error: ") and "\n" not in said
    monkeypatch.delenv("TEXTS")
    with pytest.raises(SystemExit, match="TEXTS"):
        main(["--config", str(path)])


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_file_in_the_place_of_the_result_is_found_before_the_training(
    encoder, text_file, tmp_path, monkeypatch, dry
):
    monkeypatch.setenv("TEXTS", str(text_file))
    path = config_file(tmp_path / "run.yaml", encoder, text_file, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "hypernet").write_text("", "utf-8")
    with pytest.raises(SystemExit, match="run/hypernet: is no folder, but the run's result is"):
        main(["--config", str(path), *dry])
    assert {file.name for file in (tmp_path / "run").iterdir()} <= {"hypernet", ".lock"}


def test_a_hypernetwork_knows_its_model(encoder, tmp_path):
    model = load(str(encoder), rows="fvt")
    source = SourceEmbeddings(np.asarray(model.source.input))
    shipped.write_mark(tmp_path, "tiny", source, model.tokenizer)
    assert shipped.belongs(tmp_path, source, model.tokenizer)
    noise = np.random.default_rng(0).normal(0, 0.1, source.input.shape) * source.input.std()
    near = SourceEmbeddings((source.input + noise).astype(np.float32))
    assert shipped.belongs(tmp_path, near, model.tokenizer)
    other = SourceEmbeddings(np.roll(source.input, 1, axis=0))
    assert not shipped.belongs(tmp_path, other, model.tokenizer)
    assert shipped.table_languages(tmp_path) == []
    (tmp_path / shipped.MARK).write_text("{}")
    with pytest.raises(DyntokError, match="damaged"):
        shipped.belongs(tmp_path, source, model.tokenizer)
    (tmp_path / shipped.MARK).write_text("{")
    with pytest.raises(DyntokError, match="damaged"):
        shipped.table_languages(tmp_path)


def test_shortfall_is_what_is_lacking_along_the_teachers_vector():
    rng = np.random.default_rng(0)
    teacher = 5 + rng.normal(size=(6, 8)).astype(np.float32)
    mask = np.ones((6, 3), bool)
    mask[4:] = False  # no texts: of no effect on the centre or the mean
    center = teacher[:4].mean(0)
    along, noise = teacher - center, rng.normal(size=(6, 8)).astype(np.float32)
    across = noise - along * (noise * along).sum(1, keepdims=True) / np.square(along).sum(
        1, keepdims=True
    )
    reached = np.array([[0.5], [1.2], [1.0], [0.9], [0.0], [3.0]], np.float32)
    student = jnp.asarray(center + reached * along + across)
    found = shortfall(student, jnp.asarray(teacher), jnp.asarray(mask))
    weights = np.square(along[:4]).sum(1)
    assert float(found) == pytest.approx(
        (1 - np.average(reached[:4, 0], weights=weights)) ** 2, rel=1e-4
    )
    alone = jnp.asarray(mask & (np.arange(6) == 0)[:, None])
    assert float(shortfall(student, jnp.asarray(teacher), alone)) == 0
    # The cosine knows nothing of it.
    shrunk = jnp.asarray(center + 0.3 * along)
    assert float(cosine_distance(shrunk, jnp.asarray(teacher), jnp.asarray(mask))) < 1e-5
    assert float(shortfall(shrunk, jnp.asarray(teacher), jnp.asarray(mask))) > 0.4
