"""The step of an adapter beside transformers' and peft's, and merged beside static."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dyntok_jax.config import ComputeConfig, MeshConfig
from dyntok_jax.models.lora import LoraConfig
from dyntok_jax.tasks.source import TaskSource
from eval import bench_lora
from eval.bench_lora import JaxSide, against_merged, against_torch, exact, main, merged_run
from train.loop import TrainingConfig
from train.lora import make_task
from train.lora_config import LoraRun
from train.optim import OptimizerConfig, Phase

LINES = [
    "1\tGroßvater\tB-PER",
    "2\terzählte\tO",
    "3\tGeschichten\tO",
    "4\tüber\tO",
    "5\tLänder\tB-LOC",
]


# peft asks transformers by its old name.
PEFT = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"

RATE = OptimizerConfig(phases=(Phase(peak=1e-2),))


@pytest.fixture
def make(encoder, tmp_path):
    """Runs on a tiny encoder, three batches of one shape an epoch."""
    path = tmp_path / "tiny.iob2"
    path.write_text("\n\n".join(["\n".join(LINES)] * 12) + "\n", "utf-8")
    source = TaskSource(files=str(path), language="xx")

    def run(**changes: Any):
        fields: dict[str, Any] = {
            "rows": "base",
            "lora": LoraConfig(rank=4, alpha=8),
            "sequences": 4,
            "compute": ComputeConfig(mesh=MeshConfig(data=1)),
            "held_out": (source,),
            "training": TrainingConfig(tmp_path, steps=1, optimizer=RATE),
        }
        return make_task(LoraRun(str(encoder), "uner", (source,), **fields | changes))

    return run


@pytest.mark.filterwarnings(PEFT)
def test_losses_are_those_of_peft(make):
    pytest.importorskip("peft", reason="needs torch and peft")
    rounded = TrainingConfig(Path("run"), steps=1, products="bfloat16", optimizer=RATE)
    found = against_torch(make(), make(training=rounded), 12)
    assert found["apart_50"] < 1e-4 and found["timed"] == 11
    assert found["jax_ratio"] > 0 and found["configured_ratio"] > 0
    assert found["losses"][-1][0] < 0.8 * found["losses"][0][0]
    assert abs(found["f1_jax"] - found["f1_torch"]) < 0.5


@pytest.mark.filterwarnings(PEFT)
@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_losses_of_float64_are_those_of_peft_far_closer(make, decay):
    pytest.importorskip("peft", reason="needs torch and peft")
    rate = OptimizerConfig(phases=(Phase(peak=1e-2, warmup=3, decay=decay),))
    task = make(training=TrainingConfig(Path("run"), steps=1, optimizer=rate))
    single = against_torch(task, None, 30)
    with jax.enable_x64(True):
        double = make_task(exact(task.run, "float64"))
        found = against_torch(double, None, 30)
    assert found["apart"] < 1e-10 < 1e-8 < single["apart"]
    assert "configured_ratio" not in found and found["f1_jax"] == found["f1_torch"]


def test_a_step_of_float64_is_double_throughout(make):
    with jax.enable_x64(True):
        side = JaxSide(make_task(exact(make().run, "float64")), 3)
        before = jax.device_get(side.state.trainables)
        for number in range(2):
            side.step(number, lambda: next(side.task.batches(None)).batch)
        dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(side.state)}
        moved = jax.tree.map(lambda a, b: np.abs(a - b), before, side.state.trainables)
        # What float32 would have rounded away.
        for change in jax.tree.leaves(moved):
            assert (change != change.astype(np.float32)).any()
    assert dtypes == {"float64", "int32", "uint32"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--reduction", "75"], "--reduction: merged batches are timed"),
        ([], "give lora.dropout=0.0"),
    ],
)
def test_comparisons_in_float64_refuse_what_they_do_not_do(options, said, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setenv("UNER", "folder")
    config = str(Path(__file__).parents[2] / "configs/lora/uner_e5.yaml")
    command = ["bench_lora", "--config", config, "--float64", "--out", "out.json", *options]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match=r"[12]"):
        main()
    assert said in capsys.readouterr().err


def test_merged_batches_are_of_a_joint_configs_own_kind(monkeypatch, tmp_path, capsys):
    """Base tokens stand beside torch whatever the config reads, merged ones are as it says."""
    monkeypatch.setenv("UNER", "folder")
    monkeypatch.setenv("LABELS", "labels")
    seen = []
    monkeypatch.setattr(bench_lora, "make_task", lambda run: seen.append(run) or run)
    monkeypatch.setattr(bench_lora, "against_torch", lambda *_: {})
    shares = {"share_of_time": 0.8123, "share_of_tokens": 0.75}
    monkeypatch.setattr(bench_lora, "against_merged", lambda *_: shares)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "torch")
    config = Path(__file__).parents[2] / "configs/lora/uner_e5_self.yaml"
    command = ["bench_lora", "--config", str(config), "--out", str(tmp_path / "out.json")]
    command += ["--reduction", "75", "tokenization.boundary=word", "base_rows=predicted"]
    monkeypatch.setattr("sys.argv", [*command, "--rows", "default"])
    main()
    assert "0.81 (0.75 of the tokens)" in capsys.readouterr().out
    static, merged = seen[0], seen[-1]
    assert (static.rows, static.tokenization.mode, static.base_rows) == ("base", "static", None)
    assert (merged.rows, merged.tokenization.reduction, merged.held_out) == ("default", 75, ())
    assert merged.tokenization.boundary == "word" and merged.base_rows == "predicted"


@pytest.mark.slow
def test_merged_batches_have_their_share_of_tokens(make):
    static = make()
    # Configs evaluate; what is only timed does not.
    training = replace(static.run.training, evaluate_every=2)
    merged = merged_run(replace(static.run, training=training), "fvt", 100.0)
    found = against_merged(static, make_task(merged), 4)
    # Five words and two special tokens are left.
    base = static.batcher.examples.base[0]
    assert found["share_of_tokens"] == 7 / len(base.tokens)
    assert found["timed"] == 3 and found["share_of_time"] > 0
    first, again = found["new_rows"]
    assert first > 0 == again and found["share_of_time_known_rows"] > 0
