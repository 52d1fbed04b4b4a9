"""One mesh, one table of rules, one sharded forward for every model.

A parameter says its logical axes where it is declared (``models.layers.parameter``); :data:`RULES`
says which mesh axis cuts a logical axis. A laptop is a mesh of one device.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dyntok_jax.config import MeshConfig
from dyntok_jax.models.layers import constrain
from dyntok_jax.types import DyntokError

logger = logging.getLogger(__name__)

T = TypeVar("T")

AXES = ("data", "fsdp", "model")

RULES: dict[str, str | tuple[str, ...] | None] = {
    "B": ("data", "fsdp"),  # batch
    "T": None,  # tokens, and rows of a position table
    "D": "fsdp",  # model width, of parameters only: activations keep it whole
    "NH": "model",  # query heads times head width
    "KH": "model",  # key/value heads, or whole groups of heads, times head width
    "F": "model",  # feed-forward and other inner widths
    "V": None,  # vocabulary
    "C": None,  # classes, token types, languages
    "R": None,  # LoRA rank
    "L": None,  # layers: the scan runs over them
}
"""Logical axis -> the mesh axes it is cut along, or None where it stays whole.

``fsdp`` cuts each matrix along the width and gathers it when its layer runs; ``model`` cuts heads
and inner widths, so that each device computes its part of a layer and the sums meet at the
residual (tensor parallelism); ``data`` only cuts the batch.
"""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh ``(data, fsdp, model)`` over ``devices`` (default: all).

    Axis types are Auto: the compiler propagates shardings from the parameters, the batch and the
    constraints at the residuals, so that networks need no sharding on every operation.

    Raises:
        DyntokError: sizes that are not positive, more than one -1, or not that many devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.model]
    said = "×".join(map(str, sizes))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise DyntokError(f"mesh {said}: sizes are at least 1, and one of them may be -1")
    fixed = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
    count = math.prod(sizes)
    if not 0 < count <= len(devices) or (-1 in vars(config).values() and count != len(devices)):
        raise DyntokError(f"mesh {said} (data×fsdp×model) does not fit {len(devices)} devices")
    if count < len(devices):
        logger.warning("mesh %s uses %d of %d devices", said, count, len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:count])


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of what has a leading batch axis."""
    return NamedSharding(mesh, PartitionSpec(RULES["B"]))


class BatchPart(NamedTuple):
    """What a process's devices hold of the first axis of a batch.

    Attributes:
        index: number of the part; processes that differ along ``model`` only hold the same.
        count: parts.
        blocks: which of the axis's equal blocks, one for each step along data×fsdp, are in it. They
            need not stand side by side: a mesh follows the wires between devices, not processes.
    """

    index: int
    count: int
    blocks: tuple[int, ...]

    def places(self, rows: int) -> Int[np.ndarray, " rows"]:
        """Where in the batch the rows of this part are.

        Raises:
            DyntokError: the part's devices cannot hold equally many of them.
        """
        size, rest = divmod(rows, len(self.blocks))
        if rest:
            raise DyntokError(f"{rows} rows do not split over {len(self.blocks)} devices")
        return (np.array(self.blocks)[:, None] * size + np.arange(size)).ravel()

    def of(self, whole: np.ndarray) -> np.ndarray:
        """The rows of this part, of an array of the whole batch."""
        rows, rest = divmod(len(whole), self.count)
        if rest:
            raise DyntokError(f"{len(whole)} rows do not split into {self.count} parts")
        return whole[self.places(rows)]


def batch_part(mesh: Mesh, process: int | None = None) -> BatchPart:
    """The part of a batch that a process gives and holds, by default this one.

    Raises:
        DyntokError: parts of different size or that overlap, or processes without one.
    """
    process = jax.process_index() if process is None else process
    blocks = mesh.shape["data"] * mesh.shape["fsdp"]
    held: dict[int, set[int]] = {}
    for device, (index,) in batch_sharding(mesh).devices_indices_map((blocks,)).items():
        held.setdefault(device.process_index, set()).add(index.start or 0)
    parts = sorted({tuple(sorted(part)) for part in held.values()})
    whole = sum(map(len, parts)) == blocks and len(set(map(len, parts))) == 1
    if not whole or len(held) < jax.process_count():
        sizes = "×".join(str(size) for size in mesh.shape.values())
        raise DyntokError(
            f"mesh {sizes} (data×fsdp×model) does not cut a batch into a part of one size for each "
            f"of {jax.process_count()} processes"
        )
    own = tuple(sorted(held[process]))
    return BatchPart(parts.index(own), len(parts), own)


def of_all_processes(value: Any) -> list[Any]:
    """A JSON value of every process, by process; all must call it in the same order."""
    said = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.int32(len(said))).max())
    padded = np.pad(said, (0, longest - len(said)), constant_values=ord(" "))
    rows = np.reshape(multihost_utils.process_allgather(padded), (-1, longest))
    return [json.loads(bytes(row)) for row in rows]


def made_by_all(make: Callable[[], T]) -> T:
    """What ``make`` gives, where it fails in no process; else what failed is raised in all.

    A process that ends alone leaves the others waiting for it.

    Args:
        make: works on the host alone: of work of all processes one cannot drop out.

    Raises:
        DyntokError: what another process found wrong.
    """
    try:
        made = make()
    except Exception as error:  # whatever it is, the others have to know
        of_all_processes(str(error) or type(error).__name__)
        raise
    for said in filter(None, of_all_processes(None)):
        raise DyntokError(said)
    return made


def param_shardings(abstract: Any, mesh: Mesh) -> Any:
    """Sharding of every parameter, a tree like the parameters'.

    Args:
        abstract: shapes and logical axes, from ``models.layers.abstract_params``.
        mesh: devices.

    Raises:
        DyntokError: an axis without a rule, two axes of one parameter on one mesh axis, or a
            size that its mesh axis does not divide.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        if not boxed(leaf):
            raise DyntokError(f"parameter {name} is declared without logical axes")
        return NamedSharding(mesh, _spec(name, leaf.names, leaf.value.shape, dict(mesh.shape)))

    def boxed(leaf: Any) -> bool:
        return isinstance(leaf, nn.LogicallyPartitioned)

    return jax.tree_util.tree_map_with_path(sharding, abstract, is_leaf=boxed)


def _spec(
    name: str, axes: Sequence[str | None], shape: Sequence[int], mesh: dict[str, int]
) -> PartitionSpec:
    parts: list[str | tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and axis not in RULES:
            known = ", ".join(RULES)
            raise DyntokError(f"parameter {name}: no sharding rule for axis {axis!r} (of {known})")
        part = None if axis is None else RULES[axis]
        if part is not None and part in parts:
            raise DyntokError(f"parameter {name}: axes {axes} are cut along {part!r} twice")
        count = math.prod(mesh[p] for p in ((part,) if isinstance(part, str) else part or ()))
        if size % count:
            raise DyntokError(
                f"parameter {name}: axis {axis} of {size} cannot be cut into {count} equal parts "
                f"({part} of the mesh): choose a mesh whose sizes divide the model's"
            )
        parts.append(part)
    return PartitionSpec(*parts)


def shard_params(params: Any, abstract: Any, mesh: Mesh) -> Any:
    """Put parameters on the devices of the mesh, each device its part only.

    Args:
        params: host arrays; on one CPU device aligned ones (``models.weights``) are not copied.
        abstract: their shapes and logical axes.
        mesh: devices.

    Raises:
        DyntokError: as :func:`param_shardings`.
    """
    return jax.device_put(params, param_shardings(abstract, mesh))


def on_host(arrays: Any) -> Any:
    """Host copies of arrays, also of those that lie on devices of several processes.

    In a run of several processes all of them must ask, and all get whole arrays.
    """
    if jax.process_count() == 1:
        return jax.device_get(arrays)
    return multihost_utils.process_allgather(arrays, tiled=True)


def gathered(
    module: nn.Module,
    rows: Float[Array, "U D"],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *inputs: Any,
) -> Any:
    """The usual way into a model: each token's row, then the module."""
    embeddings = constrain(rows[ids], "B", "T", None)
    return module(embeddings, mask, *inputs)  # pyright: ignore[reportCallIssue]


def apply(
    module: nn.Module,
    params: Any,
    rows: Float[Array, "U D"],
    ids: Int[Array, "B T"] | None,
    mask: Bool[Array, "B T"] | None,
    *inputs: Any,
    mesh: Mesh,
    method: Callable[..., Any] = gathered,
    lora: Any = None,
    dropout: PRNGKeyArray | None = None,
) -> Any:
    """:func:`forward` for use inside a jitted function, such as a training step.

    Args:
        module, params, rows, inputs, mesh, method: as in :func:`forward`.
        ids, mask: likewise, or None where ``method`` does without them.
        lora: low-rank additions, as ``models.layers.Dense`` reads them.
        dropout: key of their dropout; without it there is none.
    """
    variables = {"params": params} if lora is None else {"params": params, "lora": lora}
    rngs = None if dropout is None else {"dropout": dropout}
    with axis_rules(mesh):
        return module.apply(variables, rows, ids, mask, *inputs, method=method, rngs=rngs)


@contextmanager
def axis_rules(mesh: Mesh) -> Iterator[None]:
    """Where ``layers.constrain`` cuts arrays over a mesh; elsewhere it does nothing."""
    rules = list(RULES.items())
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(rules):
        yield


@functools.lru_cache(maxsize=64)
def compiled_forward(
    module: nn.Module, mesh: Mesh, method: Callable[..., Any]
) -> Callable[..., Any]:
    """The jitted function behind :func:`forward`: ``(params, rows, ids, mask, inputs)``.

    One per module, mesh and method; jax compiles it once for each set of shapes.
    """

    def run(params: Any, rows: Any, ids: Any, mask: Any, inputs: tuple[Any, ...]) -> Any:
        return apply(module, params, rows, ids, mask, *inputs, mesh=mesh, method=method)

    whole, batch = replicated(mesh), batch_sharding(mesh)
    return jax.jit(run, in_shardings=(None, whole, batch, batch, None), out_shardings=batch)


def forward(
    module: nn.Module,
    params: Any,
    rows: Float[Array | np.ndarray, "U D"],
    ids: Int[Array | np.ndarray, "B T"],
    mask: Bool[Array | np.ndarray, "B T"],
    *inputs: Any,
    mesh: Mesh,
    method: Callable[..., Any] = gathered,
) -> Any:
    """Gather the rows of a batch's tokens and run a module on them, sharded over the mesh.

    Training, evaluation and generation, encoder, decoder and hypernetwork all go through here.

    Args:
        module: what to run, an unbound linen module.
        params: its parameters, from :func:`shard_params`.
        rows: table of the batch's unique tokens, on every device.
        ids: row of each token, split over ``data`` and ``fsdp``.
        mask: True at real tokens.
        inputs: further arguments of the module, such as token types.
        mesh: devices.
        method: how the module takes ``(module, rows, ids, mask, *inputs)``.

    Returns:
        What the module returns, every array split along its leading batch axis.

    Raises:
        DyntokError: B is not a multiple of data × fsdp; parameters that are not on the mesh.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if len(ids) % parts:
        raise DyntokError(f"a batch of {len(ids)} does not split over data×fsdp = {parts} devices")
    for leaf in jax.tree.leaves(params):
        if getattr(getattr(leaf, "sharding", None), "mesh", None) != mesh:
            raise DyntokError("parameters are not on the mesh: pass them through shard_params")
    whole, batch = replicated(mesh), batch_sharding(mesh)
    rows = jax.device_put(rows, whole)
    ids, mask = jax.device_put((ids, mask), batch)
    return compiled_forward(module, mesh, method)(params, rows, ids, mask, inputs)
