"""Every file of an evaluation is valid, and says how it is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from dyntok_jax.config import read_config
from eval.task_config import TaskRun

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for task in ("uner", "xnli") for path in (ROOT / "configs" / "eval").glob(f"{task}_*.yaml")
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_file_is_valid_and_says_its_command(path, monkeypatch):
    for name in ("UNER", "XNLI", "HYPERNET"):
        monkeypatch.setenv(name, name.lower())
    run = read_config(TaskRun, path)
    # The paper's six settings, of which the first reads base tokens by the model's own rows.
    names = [setting.name.partition(" ")[0] for setting in run.settings]
    assert names == [f"({i})" for i in range(1, len(names) + 1)]
    assert [(s.reduction, s.adapter) for s in run.settings[:6]] == [
        (0, "task"),
        (0, "task"),
        (100, "task"),
        (100, "task"),
        (100, "fixed"),
        (100, "sampled"),
    ]
    further = [(s.reduction, s.adapter, s.rows) for s in run.settings[6:]]
    if path.name == "uner_e5.yaml":
        assert further[:2] == [(100, "whole", "default"), (100, "self", "default")]
        assert further[2:] == [(0, "longer", "base"), (0, "longer_self", "base")]
        longer, then_self = (setting.name for setting in run.settings[8:])
        assert [s.control for s in run.settings[5:8]] == [longer, longer, then_self]
        assert {len(folders) for folders in run.adapters.values()} == {3}
    else:
        assert not further
    assert run.settings[0].rows == "base" and run.settings[3].rows == "fvt"
    task, model = path.stem.split("_")
    assert len(run.average or run.data) == {"uner": 5, "xnli": 13}[task]
    if run.hypernet_languages:
        codes = {source.language.partition("_")[0] for source in run.data}
        assert codes <= set(run.hypernet_languages)
        assert model == "xlmr" and len(set(run.hypernet_languages)) == 26
    head = path.read_text("utf-8").split("model:")[0]
    assert f"python -m eval.{task} --config configs/eval/{path.name}" in head
    assert all(line.startswith("#") for line in head.splitlines())
