"""Configurations: every field counts, every file of configs is valid, every mistake is a line."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyntok_jax.config import ComputeConfig, MeshConfig, load_config, read_config
from dyntok_jax.models.encoder import Encoder, EncoderConfig
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.sharding import compiled_forward, gathered, make_mesh, param_shardings
from dyntok_jax.types import DyntokError

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_every_file_is_valid_and_says_how_it_is_used(path):
    config = load_config(path)
    make_mesh(config.mesh, jax.devices()[: 1 if path.name == "one_device.yaml" else 8])
    header = path.read_text().split("dtype:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert "dyntok score --model" in header and f"--config configs/{path.name}" in header


def test_files_are_read():
    assert load_config(None) == ComputeConfig("float32", False, MeshConfig(-1, 1, 1))
    assert load_config(CONFIGS / "tpu.yaml") == ComputeConfig(
        "bfloat16", False, MeshConfig(1, -1, 4)
    )


def program(config: ComputeConfig) -> str:
    """The computation a configuration leads to."""
    module: Any = Encoder(EncoderConfig(16, 2, 8, 16), jnp.dtype(config.dtype), config.remat)
    mesh: Any = make_mesh(config.mesh)
    abstract = abstract_params(module)
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.value.shape, jnp.float32, sharding=sharding
        ),
        abstract,
        param_shardings(abstract, mesh),
        is_leaf=lambda leaf: hasattr(leaf, "names"),
    )
    rows, ids = np.zeros((4, 16), np.float32), np.zeros((8, 4), np.int32)
    traced = compiled_forward(module, mesh, gathered).trace(params, rows, ids, ids == 0, ())
    return str(traced.jaxpr) + traced.lower().as_text()


FIELDS: dict[str, Any] = {
    "dtype": "bfloat16",
    "remat": True,
    "mesh.data": 4,
    "mesh.fsdp": 2,
    "mesh.model": 2,
}


def test_every_field_is_tried():
    names = [field.name for field in dataclasses.fields(ComputeConfig) if field.name != "mesh"]
    names += [f"mesh.{field.name}" for field in dataclasses.fields(MeshConfig)]
    assert sorted(names) == sorted(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_changes_the_computation(name):
    *nested, field = name.split(".")
    default = ComputeConfig()
    if nested:
        mesh = dataclasses.replace(default.mesh, **{field: FIELDS[name]})
        changed = dataclasses.replace(default, mesh=mesh)
    else:
        changed = dataclasses.replace(default, **{field: FIELDS[name]})
    assert program(changed) != program(default) == program(ComputeConfig())


def test_an_encoder_in_float64_is_double_throughout():
    with jax.enable_x64(True):
        exact, _ = program(dataclasses.replace(ComputeConfig(), dtype="float64")).split("module @")
    assert "f64[8,4,16]" in exact
    # Parameters and rows come in float32; nothing that is computed does.
    assert "new_dtype=float64" in exact and "new_dtype=float32" not in exact
    assert "preferred_element_type=float32" not in exact


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dtyp: float32", "`dtyp` are not valid"),
        ("mesh: {rows: 2}", "`rows` are not valid"),
        ("dtype: float16", "one of: float32, bfloat16"),
        ("remat: 3", "Couldn't parse '3' into a bool"),
        ("mesh: {data: 1.5}", "`mesh.data`: Couldn't parse '1.5' into an int"),
        ("- dtype", "not a mapping of fields"),
        ("a: [", "not a readable YAML file"),
        ("\x00", "not a readable YAML file"),
        ("[" * 5000, "not a readable YAML file"),
        ("dtype: " + "9" * 5000, "not a readable YAML file"),
        ("dtype: 2026-13-01", "not a readable YAML file (month must be in 1..12)"),
    ],
)
def test_mistakes_are_one_line(text, said, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(DyntokError) as error:
        load_config(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and said in message and "\n" not in message
    # Where the field is known, a list of all of them would hide what is said of its value.
    assert ("the fields are dtype" in message) == said.endswith(("not valid", "mapping of fields"))


@dataclasses.dataclass(frozen=True)
class Inner:
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner | None = None
    names: tuple[str, ...] = ()
    count: int = 1
    inners: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("names=abc", "names: 'abc'; valid is a list"),
        ("inner.names=abc", "inner.names: 'abc'; valid is a list"),
        ("inner=abc", "inner: 'abc'; valid is a mapping of fields"),
        ("nmes=", "`nmes` are not valid"),
        ("inner.nmes=[]", "the fields are inner.names, names"),
        ("count=", "count: is empty; give a value"),
        ("inner.names=null", "inner.names: is empty"),
        ("names=[a, null]", "names[1]: is empty"),
        ("inners=[{names: abc}]", "inners[0].names: 'abc'; valid is a list"),
    ],
)
def test_what_stands_in_anothers_place_is_refused(override, said, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("", "utf-8")
    with pytest.raises(DyntokError, match=re.escape(said)):
        read_config(Outer, path, [override])
    assert read_config(Outer, path, ["inner=null"]) == Outer()


def test_variables_stand_for_values(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text('dtype: "${KIND}16" # ${NOTE}\nmesh: {data: "${COUNT}", model: "${PARTS}"}\n')
    monkeypatch.setenv("KIND", "bfloat")
    monkeypatch.setenv("COUNT", "2")
    with pytest.raises(DyntokError, match=r"set the environment variable PARTS$"):
        load_config(path)
    found = read_config(ComputeConfig, path, ["mesh.model=4"])
    assert found == ComputeConfig("bfloat16", mesh=MeshConfig(2, 1, 4))


@dataclasses.dataclass(frozen=True)
class Values:
    text: str = ""
    path: Path | None = None
    whole: int = 0
    number: float = 0.0
    seed: int = 0
    flag: bool = False
    numbers: tuple[float, ...] = ()
    texts: dict[str, list[str]] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize("text", ["@x", "a: b: c", "0123", "null", "[a]", "yes", "", "${X}", "$X"])
def test_a_variable_in_a_text_is_that_text(tmp_path, monkeypatch, text):
    path = tmp_path / "run.yaml"
    path.write_text('text: "${X}"\npath: "${X}/$X"\n', "utf-8")
    monkeypatch.setenv("X", text)
    assert read_config(Values, path) == Values(text, Path(f"{text}/$X"))


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("whole", "-5", -5),
        ("number", "2e-4", 2e-4),
        ("number", "3", 3.0),
        ("flag", "true", True),
        ("flag", "False", False),
        ("numbers", "[1, 2.5]", (1.0, 2.5)),
    ],
)
def test_a_variable_is_read_as_its_field_is(tmp_path, monkeypatch, field, text, value):
    path = tmp_path / "run.yaml"
    path.write_text(f'{field}: "${{X}}"\n', "utf-8")
    monkeypatch.setenv("X", text)
    found = getattr(read_config(Values, path), field)
    assert found == value and type(found) is type(value)
    monkeypatch.setenv("X", "a: b: c")
    with pytest.raises(DyntokError, match=field) as error:
        read_config(Values, path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("whole=true", "whole: True; valid is a number"),
        ("number=yes", "number: True; valid is a number"),
        ("whole='٣'", "whole: '٣'; valid is a number"),
        ("whole='1_0'", "whole: '1_0'; valid is a number"),
        ("whole=[1]", "whole: [1]; valid is a number"),
        ("whole=x", "whole: 'x'; valid is a whole number"),
        ("whole=2147483648", "whole: 2147483648; valid is -2147483648 to 2147483647"),
        ("seed=4294967296", "seed: 4294967296; valid is 0 to 4294967295"),
        ("seed=-1", "seed: -1; valid is 0"),
        ("number=.nan", "number: nan is no finite number"),
        ("number=1e999", "number: '1e999' is no finite number"),
        ("number=" + "9" * 400, "is no finite number"),
        ("numbers=[1, -.inf]", "numbers[1]: -inf is no finite number"),
        ("text=[1]", "text: [1]; valid is a text, in quotes"),
        ("text={a: b}", "text: {'a': 'b'}; valid is a text"),
        ("text=no", "text: False; valid is a text, in quotes"),
        ("path=[a]", "path: ['a']; valid is a text"),
        ("texts={a: [b, [c]]}", "texts.a[1]: ['c']; valid is a text"),
        ("texts={a: b}", "texts.a: 'b'; valid is a list"),
        ('text="a\\0b"', "text: 'a\\x00b' has control characters"),
        ('path="a\\nb"', "path: 'a\\nb' has control characters"),
        ("number=" + "9" * 5000, "number: '999999999999...9999999999999' is no YAML value"),
        ("number=" + "[" * 5000, "number: '[[[[[[[[[[[[...[[[[[[[[[[[[[' is no YAML value"),
    ],
)
def test_what_nobody_can_have_meant_is_refused(override, said, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("", "utf-8")
    with pytest.raises(DyntokError, match=re.escape(said)) as error:
        read_config(Values, path, [override])
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_numbers_and_texts_at_their_ends_are_read(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text('text: "a\\n\\tb"\nwhole: "-5"\nnumber: 2e-4\ntexts: {a: [b]}\n', "utf-8")
    found = read_config(Values, path, ["seed=4294967295", "numbers=[2147483648, 1]"])
    values = {"seed": 2**32 - 1, "numbers": (2**31, 1.0), "texts": {"a": ["b"]}}
    assert found == Values("a\n\tb", None, -5, 2e-4, **values)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DyntokError, match=r"nowhere\.yaml: not a readable YAML file"):
        load_config(tmp_path / "nowhere.yaml")
