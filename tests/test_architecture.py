"""Modules import only what stands before them in the pipeline."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dyntok_jax"
ORDER = [
    {"types", "host_memory", "flops", "command_line"},
    {"files", "run_settings"},
    {"tensor_files"},
    {"config", "text", "model_store"},
    {"merging", "batching", "colour"},
    {"models", "tasks"},
    {"sharding", "lora"},
    {"checkpoint", "embed", "adapter_files"},
    {"dynamic_model"},
    {"large_vocabulary"},
    {"encoding", "scoring", "classification", "sampling"},
    {"generation"},
    {"generate"},
    {"demo", "lm_eval_adapter"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path, everywhere: bool) -> set[str]:
    """Full names of the modules a file imports; at its top level, or everywhere."""
    tree = ast.parse(path.read_text("utf-8"))
    names = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_go_one_way(path):
    own = part(path)
    if own == "__init__":
        return
    for name in imports(path, everywhere=True):
        if name.startswith("dyntok_jax."):
            other = name.split(".")[1]
            assert LEVEL[other] < LEVEL[own] or other == own, name


WITHOUT_JAX = ("text", "types", "files", "tensor_files", "model_store")


@pytest.mark.parametrize("path", [p for p in FILES if part(p) in WITHOUT_JAX], ids=str)
def test_the_text_side_never_imports_jax(path):
    for name in imports(path, everywhere=True):
        assert name.split(".")[0] not in ("jax", "flax", "jaxlib")


def test_models_never_import_text():
    for path in (PACKAGE / "models").rglob("*.py"):
        assert not any(name.startswith("dyntok_jax.text") for name in imports(path, True))


OF_TRAINING = ("bench_", "torch_")
"""Beginnings of the names of eval's modules that measure training itself."""


def test_evaluation_and_training_do_not_import_each_other():
    for own, other in (("eval", "train"), ("train", "eval")):
        for path in (PACKAGE.parent / own).rglob("*.py"):
            if own == "train" or not path.name.startswith(OF_TRAINING):
                assert not any(name.split(".")[0] == other for name in imports(path, True)), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_stands_without_training_and_evaluation(path):
    tree = ast.parse(path.read_text("utf-8"))
    roots = {name.split(".")[0] for name in imports(path, everywhere=True)}
    assert not roots & {"train", "eval", "pickle", "dill", "cloudpickle"}
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    prints = [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    assert not prints or part(path) in ("cli", "demo")
