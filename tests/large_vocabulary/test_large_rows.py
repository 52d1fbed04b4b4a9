import os

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from dyntok_jax.large_vocabulary.rows import RowsFile
from dyntok_jax.types import DyntokError, Rows

TOKENS = [3, *(f"t{i}" for i in range(22))]
MADE_BY = {"model": "tiny", "rows": "fvt"}
HASH = "ab" * 32


class Provider:
    """Rows that tell the token, with what a call costs; fails at a given token."""

    def __init__(self, output=True, fails_at=None):
        self.output, self.fails_at, self.asked = output, fails_at, []

    def rows(self, tokens):
        if self.fails_at in tokens:
            raise RuntimeError("killed")
        self.asked += tokens
        ids = np.array([t if isinstance(t, int) else 100 + int(t[1:]) for t in tokens])
        table = (ids[:, None] + np.arange(4) / 7).astype(np.float32)
        if not self.output:
            return Rows(table)
        return Rows(table, -table, table[:, 0] / 3)


def predict(file, provider, **options):
    file.predict(TOKENS, provider, MADE_BY, part=5, **options)


def test_rows_are_those_of_the_provider(tmp_path):
    file = RowsFile(tmp_path, HASH, 23)
    predict(file, Provider())
    rows, expected = file.read(), Provider().rows(TOKENS)
    for found, wanted in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert found is not None and not found.flags.writeable
    assert rows.input.ctypes.data % 64 == 0
    # Any reader of the format can read them.
    np.testing.assert_array_equal(load_file(file.path)["output"], expected.output)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.safetensors"]
    assert file.metadata().items() >= {**MADE_BY, "vocabulary": HASH, "dtype": "float32"}.items()


@pytest.mark.parametrize("fails_at", ["t0", "t4", "t11", "t21"])
def test_a_killed_prediction_goes_on(tmp_path, fails_at):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, parts = (RowsFile(tmp_path / name, HASH, 23) for name in ("whole", "parts"))
    predict(whole, Provider())
    with pytest.raises(RuntimeError, match="killed"):
        predict(parts, Provider(fails_at=fails_at))
    with pytest.raises(DyntokError, match="not finished"):
        parts.read()
    later = Provider()
    predict(parts, later)
    done = TOKENS.index(fails_at) // 5 * 5
    assert later.asked == TOKENS[done:]
    assert parts.path.read_bytes() == whole.path.read_bytes()


def test_a_prediction_killed_before_its_file_is_in_place_goes_on(tmp_path, monkeypatch):
    file, replace = RowsFile(tmp_path, HASH, 23), os.replace

    def killed(source, target):
        if target == file.path:
            raise RuntimeError("killed")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(RuntimeError, match="killed"):
            predict(file, Provider())
    later = Provider()
    predict(file, later)
    np.testing.assert_array_equal(file.read().input, Provider().rows(TOKENS).input)
    assert later.asked == [] and set(file.metadata()["hash"]) != {"0"}


def test_what_was_begun_otherwise_is_not_gone_on_with(tmp_path):
    file = RowsFile(tmp_path, HASH, 23)
    with pytest.raises(RuntimeError, match="killed"):
        predict(file, Provider(fails_at="t9"))
    with pytest.raises(DyntokError, match=r"begun with rows fvt \(now ridge\)"):
        file.predict(TOKENS, Provider(), {"model": "tiny", "rows": "ridge"}, part=5)
    with pytest.raises(DyntokError, match="dtype float32"):
        predict(file, Provider(), dtype="bfloat16")
    progress = tmp_path / "rows.progress.json"
    for text in (progress.read_text()[:20], '{"settings": 3, "digests": []}'):
        progress.write_text(text)
        with pytest.raises(DyntokError, match="damaged"):
            predict(file, Provider())


def test_tied_rows_in_half_the_size(tmp_path):
    file = RowsFile(tmp_path, HASH, 23)
    predict(file, Provider(output=False), dtype="bfloat16")
    rows = file.read()
    assert rows.output is None and rows.bias is None and rows.input.dtype == ml_dtypes.bfloat16
    expected = Provider().rows(TOKENS).input.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(rows.input, expected)


def test_the_hash_is_that_of_the_rows(tmp_path):
    hashes = []
    for name, shift in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        file = RowsFile(tmp_path / name, HASH, 23)
        tokens = [*TOKENS[:20], "t90" if shift else "t19", *TOKENS[21:]]
        file.predict(tokens, Provider(), MADE_BY, part=5)
        hashes.append(file.metadata()["hash"])
    assert hashes[0] == hashes[1] != hashes[2] and len(hashes[0]) == 64


def test_rows_of_another_vocabulary_and_damaged_files_are_refused(tmp_path):
    file = RowsFile(tmp_path, HASH, 23)
    with pytest.raises(DyntokError, match="not computed"):
        file.read()
    predict(file, Provider())
    with pytest.raises(DyntokError, match="made for another vocabulary"):
        RowsFile(tmp_path, "cd" * 32, 23).read()
    with pytest.raises(DyntokError, match="not the rows of 24"):
        RowsFile(tmp_path, HASH, 24).read()
    whole = file.path.read_bytes()
    file.path.write_bytes(whole.replace(b'"hash"', b'"hush"'))
    with pytest.raises(DyntokError, match="says no hash"):
        file.read()
    file.path.write_bytes(whole[:-1])
    with pytest.raises(DyntokError, match="not a whole safetensors file"):
        file.read()
