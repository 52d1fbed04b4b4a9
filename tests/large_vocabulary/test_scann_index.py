import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

pytest.importorskip("scann", reason="ScaNN is for Linux only")

from dyntok_jax.large_vocabulary.scann_index import (
    MANIFEST,
    QUERY_MAP,
    SEARCHER,
    ScannSettings,
    _whitening,
    build_index,
    load_index,
)
from dyntok_jax.tensor_files import LazyTensor, write_tensors
from dyntok_jax.types import DyntokError, Rows

V, D = 3000, 24
MADE_FOR = {"vocabulary": "aa", "rows": "bb"}
SETTINGS = ScannSettings(leaves=20, leaves_searched=20, training_sample=V, reorder=300)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, D))
    table = centres[rng.integers(40, size=V)] + 0.3 * rng.standard_normal((V, D))
    return Rows((table * rng.uniform(0.5, 2, (V, 1))).astype(np.float32))


@pytest.fixture(scope="module")
def hidden():
    return np.random.default_rng(1).standard_normal((30, D)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexes") / "scann"
    build_index(folder, rows, SETTINGS, MADE_FOR)
    return folder


def recall(found, scores, k):
    best = np.argsort(-scores, axis=1)[:, :k]
    return np.mean([len(set(a) & set(b)) / k for a, b in zip(found, best, strict=True)])


def test_it_finds_the_best_and_gives_true_inner_products(folder, rows, hidden):
    index = load_index(folder, rows, MADE_FOR)
    assert (index.size, index.on_device) == (V, False)
    found = index.search(hidden, 10)
    logits = hidden @ rows.input.T
    assert found.ids.shape == (30, 10) and found.ids.dtype == np.int32
    assert recall(found.ids, logits, 10) >= 0.95
    np.testing.assert_allclose(
        found.logits, np.take_along_axis(logits, np.asarray(found.ids), 1), rtol=1e-4
    )
    assert (np.diff(found.logits) <= 0).all()
    alone = index.search(hidden[:1], 10)
    np.testing.assert_array_equal(alone.ids, found.ids[:1])


def test_fewer_leaves_find_less(folder, rows, hidden):
    logits = hidden @ rows.input.T
    few = load_index(folder, rows, MADE_FOR, leaves_searched=1).search(hidden, 10)
    assert recall(few.ids, logits, 10) < 0.8
    with pytest.raises(DyntokError, match="leaves_searched is 21; valid is 1 to 20"):
        load_index(folder, rows, MADE_FOR, leaves_searched=21)


@pytest.mark.parametrize("kind", ["plain", "bias", "cosine", "query_sample"])
def test_rows_that_are_always_compared(rows, hidden, tmp_path, kind):
    """Also such that the search does not find, once each, by their true products."""
    bias = np.linspace(-3, 3, V, dtype=np.float32) if kind == "bias" else None
    table = rows._replace(bias=bias)
    sample = len(hidden) if kind == "query_sample" else None
    settings = replace(SETTINGS, cosine=kind == "cosine", query_sample=sample)
    queries = (lambda: hidden) if sample else None
    build_index(tmp_path / "index", table, settings, MADE_FOR, queries)
    logits = hidden @ rows.input.T + (0 if bias is None else bias)
    few = partial(load_index, tmp_path / "index", table, MADE_FOR, leaves_searched=1)
    index, without = few(always=[3, 5, 3]), few()
    missed = 0
    for i, query in enumerate(hidden):
        found, fewer = (each.search(query[None], V) for each in (index, without))
        ids, others = found.ids[0][found.ids[0] >= 0], fewer.ids[0][fewer.ids[0] >= 0]
        assert len(set(ids)) == len(ids) and set(ids) == {*others, 3, 5}
        np.testing.assert_allclose(found.logits[0][: len(ids)], logits[i][ids], rtol=1e-3)
        missed += len(ids) - len(others)
    assert missed


def test_more_rows_compared_find_more(folder, rows, hidden):
    logits = hidden @ rows.input.T
    rough = load_index(folder, rows, MADE_FOR, reorder=10).search(hidden, 10)
    assert recall(rough.ids, logits, 10) < 0.8


def test_queries_of_few_directions_find_more_by_their_spread(tmp_path):
    # As hidden states are: most of each is in few directions, which rows have no more of.
    rng = np.random.default_rng(2)
    table = Rows((rng.standard_normal((V, D)) + 2).astype(np.float32))
    sample, asked = rng.standard_normal((2, 400, D)).astype(np.float32) * np.geomspace(20, 0.1, D)
    asked = asked[:50].astype(np.float32)
    plain = replace(SETTINGS, reorder=20)
    build_index(tmp_path / "plain", table, plain, MADE_FOR)
    spread = replace(plain, query_sample=400)
    build_index(tmp_path / "spread", table, spread, MADE_FOR, lambda: sample)
    logits = asked @ table.input.T
    found = load_index(tmp_path / "spread", table, MADE_FOR).search(asked, 10)
    without = load_index(tmp_path / "plain", table, MADE_FOR).search(asked, 10)
    assert recall(found.ids, logits, 10) > recall(without.ids, logits, 10) + 0.1
    np.testing.assert_allclose(
        found.logits, np.take_along_axis(logits, np.asarray(found.ids), 1), rtol=1e-4, atol=1e-3
    )


def test_rows_and_queries_are_mapped_so_that_products_stay(rows):
    queries = np.random.default_rng(3).standard_normal((500, D)) * np.geomspace(30, 0.3, D)
    row_map, query_map = _whitening(queries.astype(np.float32))
    mapped = queries @ query_map
    moments = mapped.T @ mapped / len(mapped)
    np.testing.assert_allclose(np.diag(moments)[:6], 1, atol=0.05)
    assert np.abs(moments - np.diag(np.diag(moments))).max() < 0.05
    expected = queries @ rows.input.T
    np.testing.assert_allclose(mapped @ (rows.input @ row_map).T, expected, atol=2e-3)


def test_queries_are_mapped_as_the_rows_are(rows, hidden, tmp_path):
    asked = []

    class Recorder:
        def search_batched(self, queries, **_):
            asked.append(queries)
            return np.zeros((len(queries), 1), int), np.zeros((len(queries), 1))

    settings = replace(SETTINGS, query_sample=30)
    build_index(tmp_path / "index", rows, settings, MADE_FOR, lambda: hidden)
    index = load_index(tmp_path / "index", rows, MADE_FOR)
    replace(index, searcher=Recorder()).search(hidden, 1)
    row_map, _ = _whitening(hidden)
    expected = hidden @ rows.input.T
    np.testing.assert_allclose(asked[0] @ (rows.input @ row_map).T, expected, atol=1e-2)


def test_queries_and_their_setting_belong_together(rows, hidden, tmp_path):
    for settings, queries in (
        (SETTINGS, lambda: hidden),
        (replace(SETTINGS, query_sample=30), None),
    ):
        with pytest.raises(ValueError, match="belong"):
            build_index(tmp_path / "new", rows, settings, MADE_FOR, queries)
    assert not (tmp_path / "new").exists()


def test_too_few_queries_and_such_as_are_no_numbers_are_refused(rows, hidden, tmp_path):
    settings = replace(SETTINGS, query_sample=30)
    for queries in (hidden[: D - 1], np.where(hidden > 2, np.nan, hidden)):
        with pytest.raises(DyntokError, match="valid are 24 at least, all finite"):
            build_index(tmp_path / "new", rows, settings, MADE_FOR, lambda table=queries: table)
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_nothing(rows, tmp_path, monkeypatch):
    class Full:
        def __getattr__(self, name):
            return lambda *_, **__: self

        def serialize(self, *_, **__):
            raise RuntimeError("I/O error")

    monkeypatch.setattr("dyntok_jax.large_vocabulary.scann_index._scann", Full)
    with pytest.raises(DyntokError, match=r"new: cannot be written \(I/O error\)"):
        build_index(tmp_path / "new", rows, SETTINGS, MADE_FOR)
    assert list(tmp_path.iterdir()) == []


def test_an_index_of_another_version_is_named(folder, rows, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["settings"]["reorder_8_bit"] = 30
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DyntokError, match=r"another version \(reorder_8_bit\); build it again"):
        load_index(copy, rows, MADE_FOR)


def test_an_index_without_digests_is_of_another_version(folder, rows, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest["files"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DyntokError, match=r"another version \(no digests.*\); build it again"):
        load_index(copy, rows, MADE_FOR)


def test_an_index_that_this_scann_does_not_read(folder, rows, monkeypatch):
    class Other:
        def load_searcher(self, *_, **__):
            raise RuntimeError("unknown field")

    monkeypatch.setattr("dyntok_jax.large_vocabulary.scann_index._scann", Other)
    with pytest.raises(DyntokError, match=r"this ScaNN cannot read it \(unknown field\)"):
        load_index(folder, rows, MADE_FOR)


@pytest.mark.parametrize("damage", ["absent", "cut off", "of another index"])
def test_a_damaged_query_map_is_refused(rows, hidden, tmp_path, damage):
    settings = replace(SETTINGS, query_sample=30)
    build_index(tmp_path / "index", rows, settings, MADE_FOR, lambda: hidden)
    path = tmp_path / "index" / QUERY_MAP
    if damage == "absent":
        path.unlink()
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        other = np.eye(D, dtype=np.float32)
        write_tensors(path, {"query_map": LazyTensor(other.shape, lambda: other)})
    with pytest.raises(DyntokError, match=QUERY_MAP):
        load_index(tmp_path / "index", rows, MADE_FOR)


def test_what_is_not_found_is_absent(folder, rows, hidden):
    found = load_index(folder, rows, MADE_FOR, leaves_searched=1).search(hidden, V + 3)
    assert found.ids.shape == found.logits.shape == (30, V + 3)
    for ids, logits in zip(found.ids, found.logits, strict=True):
        count = (ids >= 0).sum()
        assert 0 < count < V and len(set(ids[:count])) == count
        assert (ids[count:] == -1).all() and np.isneginf(logits[count:]).all()
        assert np.isfinite(logits[:count]).all()


def test_cosine(rows, hidden, tmp_path):
    settings = replace(SETTINGS, cosine=True)
    build_index(tmp_path / "cosine", rows, settings, MADE_FOR)
    found = load_index(tmp_path / "cosine", rows, MADE_FOR).search(hidden, 10)
    logits = hidden @ rows.input.T
    assert recall(found.ids, logits / np.linalg.norm(rows.input, axis=1), 10) >= 0.95
    np.testing.assert_allclose(
        found.logits, np.take_along_axis(logits, np.asarray(found.ids), 1), rtol=1e-4
    )


@pytest.mark.parametrize("sample", [None, 30])
def test_output_rows_are_searched_and_a_bias_is_added(rows, hidden, tmp_path, sample):
    logits = hidden @ rows.input.T
    bias = np.random.default_rng(4).normal(0, 2 * logits.std(), V).astype(np.float32)
    both = Rows(np.zeros((V, D), np.float32), rows.input, bias)
    settings = replace(SETTINGS, query_sample=sample)
    queries = None if sample is None else lambda: hidden
    build_index(tmp_path / "index", both, settings, MADE_FOR, queries)
    found = load_index(tmp_path / "index", both, MADE_FOR).search(hidden, 5)
    logits += bias
    assert recall(found.ids, logits, 5) >= 0.95
    np.testing.assert_allclose(
        found.logits, np.take_along_axis(logits, np.asarray(found.ids), 1), rtol=1e-4
    )


def test_it_holds_no_second_copy_of_the_rows(folder, rows):
    size = sum(path.stat().st_size for path in (folder / SEARCHER).iterdir())
    assert size < rows.input.nbytes / 2


def test_other_rows_are_refused(folder, rows):
    with pytest.raises(DyntokError, match=r"other rows \(another rows\)"):
        load_index(folder, rows, MADE_FOR | {"rows": "cc"})
    with pytest.raises(DyntokError, match=r"other rows \(another vocabulary, size\)"):
        load_index(folder, Rows(rows.input[:-1]), MADE_FOR | {"vocabulary": "cc"})


def test_damage_and_bad_settings_are_refused(folder, rows, tmp_path):
    with pytest.raises(DyntokError, match="no index there"):
        load_index(tmp_path, rows, MADE_FOR)
    (tmp_path / MANIFEST).write_text((folder / MANIFEST).read_text()[:30])
    with pytest.raises(DyntokError, match="damaged"):
        load_index(tmp_path, rows, MADE_FOR)
    (tmp_path / MANIFEST).write_text((folder / MANIFEST).read_text())
    with pytest.raises(DyntokError, match="damaged"):
        load_index(tmp_path, rows, MADE_FOR)
    (tmp_path / SEARCHER).mkdir()
    (tmp_path / SEARCHER / "scann_docids.pkl").write_bytes(b"")
    with pytest.raises(DyntokError, match="pickle"):
        load_index(tmp_path, rows, MADE_FOR)
    with pytest.raises(DyntokError, match="5000 leaves for 3000 rows"):
        build_index(tmp_path / "new", rows, ScannSettings(5000), MADE_FOR)
    with pytest.raises(DyntokError, match="leaves_searched is 21"):
        ScannSettings(20, 21)
    assert not (tmp_path / "new").exists()
    assert json.loads((folder / MANIFEST).read_text())["size"] == V


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"leaves": 40, "training_sample": 2, "leaves_searched": 4}, "training_sample is 2; valid"),
        ({"query_sample": 0}, "query_sample is 0; valid is from 1"),
        ({"anisotropic_threshold": float("nan")}, "anisotropic_threshold is nan; valid is 0 to 1"),
        ({"leaves": 4, "leaves_searched": 4, "reorder": 10**11}, "ScaNN builds none by these"),
    ],
)
def test_settings_that_no_index_has_are_refused(rows, tmp_path, settings, said):
    with pytest.raises(DyntokError, match=said):
        build_index(tmp_path / "new", rows, ScannSettings(**settings), MADE_FOR)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["empty", "absent", "moved"])
def test_files_that_are_not_what_was_written_are_damage(folder, rows, tmp_path, damage):
    """Also where ScaNN would read them."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / SEARCHER / "hashed_dataset.npy"
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "absent":
        path.unlink()
    else:
        np.save(path, np.roll(np.load(path), 7, axis=0))
    with pytest.raises(DyntokError, match=rf"damaged \({SEARCHER}/hashed_dataset.npy: not what"):
        load_index(copy, rows, MADE_FOR)
