import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dyntok_jax.config import MeshConfig
from dyntok_jax.large_vocabulary.exact import ExactIndex
from dyntok_jax.sharding import make_mesh
from dyntok_jax.types import Rows

V, D, B = 61, 8, 4


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((V, D)) * rng.uniform(0.2, 3, (V, 1))
    return Rows(table.astype(np.float32))


@pytest.fixture(scope="module")
def hidden():
    return np.random.default_rng(1).standard_normal((B, D)).astype(np.float32)


def mesh_of(**sizes):
    count = int(np.prod(list(sizes.values())))
    return make_mesh(MeshConfig(**{"data": 1, **sizes}), jax.devices()[:count])


MESHES = [{}, {"model": 4}, {"data": 2, "model": 2}, {"data": 2, "fsdp": 2, "model": 2}]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_the_best_inner_products_on_any_mesh(rows, hidden, sizes):
    index = ExactIndex.of(rows, mesh_of(**sizes))
    assert index.size == V and index.on_device
    found = index.search(hidden, 7)
    logits = hidden @ rows.input.T
    best = np.argsort(-logits, axis=1)[:, :7]
    np.testing.assert_array_equal(found.ids, best)
    np.testing.assert_allclose(found.logits, np.take_along_axis(logits, best, 1), rtol=1e-5)
    # One hidden state alone, which the mesh does not divide.
    np.testing.assert_array_equal(index.search(hidden[:1], 7).ids, best[:1])
    parts = sizes.get("model", 1)
    assert {s.data.shape[0] for s in index.rows.addressable_shards} == {-(-V // parts)}


@pytest.mark.parametrize("sizes", MESHES[:3], ids=str)
def test_a_search_traces_inside_a_program(rows, hidden, sizes):
    index = ExactIndex.of(rows, mesh_of(**sizes))

    @jax.jit
    def step(index, hidden):
        return index.search(2 * hidden, 3)

    found, expected = step(index, jnp.asarray(hidden)), index.search(hidden, 3)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.logits, 2 * np.asarray(expected.logits), rtol=1e-5)


@pytest.mark.parametrize(("dtype", "highest"), [(np.float32, True), (ml_dtypes.bfloat16, False)])
def test_nothing_is_approximate_on_any_platform(rows, hidden, dtype, highest):
    index = ExactIndex.of(Rows(rows.input.astype(dtype)), mesh_of())
    program = str(jax.make_jaxpr(lambda h: index.search(h, 3))(hidden))
    # Accelerators round float32 before they multiply, unless asked for the highest precision.
    assert ("HIGHEST" in program) == highest and "approx" not in program


@pytest.mark.parametrize("sizes", [{}, {"model": 4}], ids=str)
def test_more_than_there_are(rows, hidden, sizes):
    found = ExactIndex.of(rows, mesh_of(**sizes)).search(hidden, V + 5)
    ids, logits = np.asarray(found.ids), np.asarray(found.logits)
    assert ids.shape == logits.shape == (B, V + 5)
    assert all(sorted(row) == list(range(V)) for row in ids[:, :V].tolist())
    assert (ids[:, V:] == -1).all() and np.isneginf(logits[:, V:]).all()
    assert (np.diff(logits[:, :V]) <= 0).all()


@pytest.mark.parametrize("sizes", [{}, {"model": 4}], ids=str)
def test_cosine_chooses_and_inner_products_are_the_logits(rows, hidden, sizes):
    found = ExactIndex.of(rows, mesh_of(**sizes), cosine=True).search(hidden, 6)
    logits = hidden @ rows.input.T
    cosine = logits / np.linalg.norm(rows.input, axis=1)
    chosen = np.argsort(-cosine, axis=1)[:, :6]
    assert set(map(frozenset, chosen.tolist())) != set(
        map(frozenset, np.argsort(-logits, axis=1)[:, :6].tolist())
    )
    for row, ids, values in zip(chosen, np.asarray(found.ids), found.logits, strict=True):
        assert set(row) == set(ids)
        assert (np.diff(values) <= 0).all()
    expected = np.take_along_axis(logits, np.asarray(found.ids), 1)
    np.testing.assert_allclose(found.logits, expected, rtol=1e-5)


def test_output_rows_and_bias_count(rows, hidden):
    bias = np.linspace(-2, 2, V).astype(np.float32)
    index = ExactIndex.of(Rows(np.zeros((V, D), np.float32), rows.input, bias), mesh_of(model=4))
    logits = hidden @ rows.input.T + bias
    np.testing.assert_array_equal(index.search(hidden, 5).ids, np.argsort(-logits, axis=1)[:, :5])


def test_rows_of_half_precision(rows, hidden):
    half = rows.input.astype(ml_dtypes.bfloat16)
    found = ExactIndex.of(Rows(half), mesh_of()).search(hidden, 5)
    rounded = hidden.astype(ml_dtypes.bfloat16).astype(np.float32)
    logits = rounded @ half.astype(np.float32).T
    assert found.logits.dtype == jnp.float32
    np.testing.assert_allclose(found.logits, -np.sort(-logits, axis=1)[:, :5], rtol=1e-4)
