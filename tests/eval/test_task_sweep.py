"""Curves beside a run's JSON, and their plot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dyntok_jax.types import DyntokError
from eval import task_sweep
from eval.task_config import Setting


def test_settings_that_differ_in_reduction_are_swept_once():
    first = Setting("half", "task", 50, control="whole")
    others = [
        replace(first, name="rows", rows="fvt"),
        replace(first, name="joint", adapter="joint"),
    ]
    whole = replace(first, name="whole", reduction=100, control=None)
    assert task_sweep.swept([first, whole, *others], [0.0]) == [first, *others]
    for settings, reductions in (([], [0.0]), ([first], [])):
        with pytest.raises(DyntokError, match="no setting merges, or sweep is empty"):
            task_sweep.swept(settings, reductions)


@pytest.mark.parametrize("name", ["found.svg", "found.csv", "found"])
def test_curves_stand_beside_a_json(tmp_path, name):
    refused = pytest.raises(DyntokError, match=r"stand beside a \.json")
    with refused, task_sweep.companions(tmp_path / name):
        pytest.fail("measured")
    assert not [*tmp_path.iterdir()]


def test_new_companions_stand_beside_no_old_json(tmp_path):
    out = tmp_path / "found.json"
    files = [out.with_suffix(suffix) for suffix in (".json", ".csv", ".svg")]
    older = ["old", "curve,old", "<?xml old"]
    for path, text in zip(files, older, strict=True):
        path.write_text(text, "utf-8")
    with pytest.raises(KeyboardInterrupt), task_sweep.companions(out) as made:
        made[0].write_text("new", "utf-8")
        raise KeyboardInterrupt
    assert [path.read_text("utf-8") for path in files] == older
    with task_sweep.companions(out) as made:
        for path in made:
            path.write_text("new", "utf-8")
    assert [path.read_text("utf-8") for path in files[1:]] == ["new"] * 2 and not out.exists()


@pytest.mark.parametrize("suffix", [".csv", ".svg"])
def test_new_companions_replace_nothing_else(tmp_path, suffix):
    out = tmp_path / "found.json"
    other = out.with_suffix(suffix)
    other.write_text("question,answer\n", "utf-8")
    refused = pytest.raises(DyntokError, match="no evaluation wrote it")
    with refused, task_sweep.companions(out):
        pytest.fail("measured")
    assert other.read_text("utf-8") == "question,answer\n"


def test_curves_of_another_name_leave_its_json(tmp_path):
    of, own = tmp_path / "found.json", tmp_path / "found_bits.json"
    for path in (of, own):
        path.write_text("old", "utf-8")
    with task_sweep.companions(own, of) as made:
        for path in made:
            path.write_text("new", "utf-8")
    assert own.read_text("utf-8") == "old" and not of.exists()
    assert own.with_suffix(".csv").read_text("utf-8") == "new"


def test_curves_of_several_seeds_have_a_band():
    def point(reduction: float, *values: float) -> dict:
        return {"reduction": reduction, "average": {"value": sum(values), "by_seed": [*values]}}

    run = {
        "task": "uner",
        "metric": "F1",
        "model": "tiny",
        "average_of": ["xx"],
        "sweep": [
            {"name": "one", "points": [point(0, 1.0), point(50, 2.0)]},
            {"name": "_$two\n$", "points": [point(0, 1.0, 3.0), point(50, 2.0, 2.0)]},
        ],
    }
    (axes,) = task_sweep.plot(run).axes
    assert [line.get_label() for line in axes.lines] == ["one", r" _\$two \$"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", r" _\$two \$"]
    (band,) = axes.collections
    ends = band.get_paths()[0].vertices
    # Of 1 and 3, the deviation is the root of 2.
    at_zero = ends[ends[:, 0] == 0][:, 1]
    assert at_zero.min() == pytest.approx(4 - 2**0.5) and at_zero.max() == pytest.approx(4 + 2**0.5)
