"""Exact search: all inner products, on the devices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from dyntok_jax.large_vocabulary.index import Candidates
from dyntok_jax.models.products import precision
from dyntok_jax.sharding import RULES
from dyntok_jax.types import Rows


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "bias", "scale"],
    meta_fields=["size", "mesh"],
)
@dataclass(frozen=True)
class ExactIndex:
    """Every row's inner product; a pytree, each device of the mesh's ``model`` axis its part.

    A search holds B × V scores, 4 MB a hidden state for a million rows.

    Attributes:
        rows: (V', D) output rows, V rounded up to a multiple of the ``model`` axis.
        bias: (V',) added to the inner products, or None; -inf in rows that only fill up.
        scale: (V',) one over the rows' norms where the search is by cosine, else None.
        size: V.
        mesh: devices.
    """

    rows: Float[Array, "V D"]
    bias: Float[Array, " V"] | None
    scale: Float[Array, " V"] | None
    size: int
    mesh: Mesh

    @classmethod
    def of(cls, rows: Rows, mesh: Mesh, cosine: bool = False) -> ExactIndex:
        """Put output rows (the input rows where there are no others) on the mesh.

        On one CPU device a mapped float32 file is used where it lies.

        Args:
            rows: of all tokens.
            mesh: devices.
            cosine: choose by cosine, as the original does; the logits stay inner products.
        """
        output = rows.input if rows.output is None else rows.output
        size, parts = len(output), mesh.shape["model"]
        padding = -size % parts
        bias = None if rows.bias is None else np.asarray(rows.bias, np.float32)
        if padding:
            bias = np.zeros(size, np.float32) if bias is None else bias
            bias = np.pad(bias, (0, padding), constant_values=-np.inf)
        scale = _one_over_norms(output) if cosine else None
        if scale is not None:
            scale = np.pad(scale, (0, padding), constant_values=1)
        sharding = NamedSharding(mesh, PartitionSpec("model"))

        def part(index: Any) -> np.ndarray:
            table = output[index]
            missing = -(-size // parts) - len(table)
            return np.pad(table, ((0, missing), (0, 0))) if missing else table

        shape = (size + padding, output.shape[1])
        if parts == 1:
            placed = jax.device_put(output, sharding)
        else:
            placed = jax.make_array_from_callback(shape, sharding, part)
        put = partial(jax.device_put, device=sharding)
        return cls(placed, jax.tree.map(put, bias), jax.tree.map(put, scale), size, mesh)

    @property
    def on_device(self) -> bool:
        """Searches trace inside compiled programs."""
        return True

    def search(self, hidden: Float[Array | np.ndarray, "B D"], k: int) -> Candidates:
        """The ``k`` best rows of every hidden state; see ``index.Index``."""
        parts = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        batch = PartitionSpec(RULES["B"] if len(hidden) % parts == 0 else None)
        cut = PartitionSpec("model")
        local = jax.shard_map(
            partial(_search_part, k=k),
            mesh=self.mesh,
            in_specs=(batch, cut, *(None if t is None else cut for t in (self.bias, self.scale))),
            out_specs=(batch, batch),
            check_vma=False,
        )
        ids, logits = local(jnp.asarray(hidden), self.rows, self.bias, self.scale)
        missing = ((0, 0), (0, k - ids.shape[1]))
        ids = jnp.pad(ids, missing, constant_values=-1)
        logits = jnp.pad(logits, missing, constant_values=-jnp.inf)
        return Candidates(jnp.where(jnp.isneginf(logits), -1, ids), logits)


def _search_part(
    hidden: Float[Array, "B D"],
    rows: Float[Array, "V D"],
    bias: Float[Array, " V"] | None,
    scale: Float[Array, " V"] | None,
    k: int,
) -> tuple[Int[Array, "B K"], Float[Array, "B K"]]:
    """The best rows of one device, then the best of all devices'."""
    logits = jnp.einsum(
        "bd,vd->bv",
        hidden.astype(rows.dtype),
        rows,
        precision=precision(rows.dtype),
        preferred_element_type=jnp.float32,
    )
    if bias is not None:
        logits = logits + bias
    scores = logits if scale is None else logits * scale
    best, ids = jax.lax.top_k(scores, min(k, len(rows)))
    found = jnp.take_along_axis(logits, ids, axis=1) if scale is not None else best
    ids = ids + jax.lax.axis_index("model") * len(rows)
    best, found, ids = (
        jax.lax.all_gather(x, "model", axis=1, tiled=True) for x in (best, found, ids)
    )
    _, place = jax.lax.top_k(best, min(k, best.shape[1]))
    ids, found = (jnp.take_along_axis(x, place, axis=1) for x in (ids, found))
    if scale is not None:
        order = jnp.argsort(-found, axis=1)
        ids, found = (jnp.take_along_axis(x, order, axis=1) for x in (ids, found))
    return ids.astype(jnp.int32), found


def _one_over_norms(rows: np.ndarray, block: int = 65_536) -> Float[np.ndarray, " V"]:
    """(V,) float32; a zero row keeps its inner product of 0."""
    norms = [
        np.linalg.norm(np.asarray(rows[i : i + block], np.float32), axis=1)
        for i in range(0, len(rows), block)
    ]
    return 1 / np.maximum(np.concatenate(norms), np.finfo(np.float32).tiny)
