"""Approximate search on the host by ScaNN (Guo et al. 2020), with the paper's settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from dyntok_jax.files import new_folder
from dyntok_jax.large_vocabulary.index import Candidates
from dyntok_jax.tensor_files import LazyTensor, file_tensors, write_tensors
from dyntok_jax.types import DyntokError, Rows

MANIFEST = "index.json"
SEARCHER = "scann"
QUERIES = "query_map"
QUERY_MAP = f"{QUERIES}.safetensors"
_TINY = np.finfo(np.float32).tiny
_DAMPING = 0.01  # of the mean spread, added to each: few queries say little of the smallest ones


@dataclass(frozen=True)
class ScannSettings:
    """How an index is built; defaults are the paper's (Table 8).

    Attributes:
        leaves: parts the rows are clustered into.
        leaves_searched: parts whose rows are looked at; a search may ask for others.
        training_sample: rows that the clusters are found on.
        block_dims: coordinates that are quantized together.
        anisotropic_threshold: rows parallel to the query by more than that count more.
        reorder: best rows whose true products are computed; a search may ask for others.
        query_sample: hidden states of texts, by whose spread rows are quantized; None takes all
            directions for alike.
        cosine: choose by cosine, as the original does, whose rows are normalised; the logits stay
            inner products.
    """

    leaves: int = 2000
    leaves_searched: int = 250
    training_sample: int = 1_000_000
    block_dims: int = 3
    anisotropic_threshold: float = 0.2
    reorder: int = 200
    query_sample: int | None = None
    cosine: bool = False

    def __post_init__(self) -> None:
        if min(self.leaves, self.training_sample, self.block_dims, self.reorder) < 1:
            raise DyntokError("index: leaves, training_sample, block_dims and reorder are from 1")
        if not 1 <= self.leaves_searched <= self.leaves:
            raise DyntokError(
                f"index: leaves_searched is {self.leaves_searched}; valid is 1 to {self.leaves}"
            )
        if self.training_sample < self.leaves:
            raise DyntokError(
                f"index: training_sample is {self.training_sample}; valid is from {self.leaves}, "
                "the leaves"
            )
        if self.query_sample is not None and self.query_sample < 1:
            raise DyntokError(f"index: query_sample is {self.query_sample}; valid is from 1")
        if not 0 <= self.anisotropic_threshold <= 1:
            raise DyntokError(
                f"index: anisotropic_threshold is {self.anisotropic_threshold}; valid is 0 to 1"
            )


@dataclass(frozen=True)
class ScannIndex:
    """Rows found by their quantized products; their logits are the true inner products.

    ScaNN holds quantized rows only. The true products of the best ones are computed from the
    model's rows, which stay where they are.

    Attributes:
        searcher: ScaNN's own object.
        query_map: what hidden states are multiplied by before it sees them, or None; (D, D), or
            with a bias (D + 1, D + 1).
        output: (V, D) rows.
        bias: (V,) added to the logits of what is found, or None.
        settings: what it was built by, with the leaves and rows to look at that were asked for.
        always: rows whose true products are computed for every query.
    """

    searcher: Any
    query_map: Float[np.ndarray, "E E"] | None
    output: Float[np.ndarray, "V D"]
    bias: Float[np.ndarray, " V"] | None
    settings: ScannSettings
    always: Int[np.ndarray, " A"]

    @property
    def size(self) -> int:
        """V."""
        return len(self.output)

    @property
    def on_device(self) -> bool:
        """Searches are calls on the host."""
        return False

    def search(self, hidden: Float[Array | np.ndarray, "B D"], k: int) -> Candidates:
        """The ``k`` best rows of every hidden state; see ``index.Index``."""
        hidden = np.asarray(hidden, np.float32)
        count = min(max(k, self.settings.reorder), self.size)
        found, near = self.searcher.search_batched(
            _asked(hidden, self.bias, self.query_map),
            final_num_neighbors=count,
            pre_reorder_num_neighbors=count,
            leaves_to_search=self.settings.leaves_searched,
        )
        found = np.asarray(found, np.int64)
        # Those that ScaNN finds of them too would come twice.
        near = np.where(np.isin(found, self.always), np.inf, near)
        found = np.concatenate([found, np.tile(self.always, (len(found), 1))], axis=1)
        near = np.pad(near, ((0, 0), (0, len(self.always))))
        rows = np.asarray(self.output[found], np.float32)
        logits = np.einsum("bd,bkd->bk", hidden, rows)
        if self.bias is not None:
            logits += self.bias[found]
        logits = np.where(np.isfinite(near), logits, -np.inf).astype(np.float32)
        scores = logits
        if self.settings.cosine:
            norms = np.linalg.norm(rows, axis=2)
            scores = np.where(np.isneginf(logits), logits, logits / np.maximum(norms, _TINY))
        chosen = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        ids, logits = (np.take_along_axis(table, chosen, 1) for table in (found, logits))
        if self.settings.cosine:
            order = np.argsort(-logits, axis=1, kind="stable")
            ids, logits = (np.take_along_axis(table, order, 1) for table in (ids, logits))
        ids = np.where(np.isneginf(logits), -1, ids).astype(np.int32)
        if missing := k - ids.shape[1]:
            ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=-1)
            logits = np.pad(logits, ((0, 0), (0, missing)), constant_values=-np.inf)
        return Candidates(ids, logits)


def build_index(
    folder: Path,
    rows: Rows,
    settings: ScannSettings,
    made_for: Mapping[str, str],
    queries: Callable[[], Float[np.ndarray, "N D"]] | None = None,
) -> None:
    """Build an index of output rows and write it into a new folder.

    Args:
        folder: new or empty.
        rows: of all tokens; float32 for the time of building.
        settings: how.
        made_for: what :func:`load_index` compares, such as hashes.
        queries: gives hidden states, just if ``query_sample`` is among the settings; called when
            all else is sure.

    Raises:
        DyntokError: no ScaNN here, fewer rows than leaves, settings that ScaNN does not take,
            queries that are fewer than numbers of each or not finite, a folder that cannot be
            written.
        ValueError: queries without ``query_sample``, or the other way round.
    """
    if (queries is None) != (settings.query_sample is None):
        raise ValueError("queries belong to settings with query_sample, and the other way round")
    scann = _scann()
    output = np.asarray(_output(rows), np.float32)
    norms = np.linalg.norm(output, axis=1, keepdims=True) if settings.cosine else None
    if rows.bias is not None:
        output = np.column_stack([output, np.asarray(rows.bias, np.float32)])
    if settings.leaves > len(output):
        raise DyntokError(f"index: {settings.leaves} leaves for {len(output)} rows; give fewer")
    if norms is not None:
        output = output / np.maximum(norms, _TINY)
    with new_folder(folder) as partial:
        query_map = None
        if queries is not None:
            row_map, query_map = _whitening(_asked(queries(), rows.bias))
            output = output @ row_map
        builder = (
            scann.builder(output, settings.reorder, "dot_product")
            .tree(settings.leaves, settings.leaves_searched, settings.training_sample)
            .score_ah(settings.block_dims, settings.anisotropic_threshold)
        )
        try:
            searcher = builder.build()
        except (ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise DyntokError(f"index: ScaNN builds none by these settings ({said})") from error
        (partial / SEARCHER).mkdir()
        try:
            searcher.serialize(str(partial / SEARCHER), relative_path=True)
        except RuntimeError as error:
            said = " ".join(str(error).split())
            raise DyntokError(f"{folder}: cannot be written ({said})") from error
        manifest = {"settings": asdict(settings), "size": len(output), **made_for}
        if query_map is not None:
            tensor = LazyTensor(query_map.shape, lambda: query_map)
            write_tensors(partial / QUERY_MAP, {QUERIES: tensor})
        files = (path for path in partial.rglob("*") if path.is_file())
        names = sorted(path.relative_to(partial).as_posix() for path in files)
        manifest["files"] = _digests(partial, names)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


def load_index(
    folder: Path,
    rows: Rows,
    made_for: Mapping[str, str],
    leaves_searched: int | None = None,
    reorder: int | None = None,
    always: Sequence[int] = (),
) -> ScannIndex:
    """Load an index that :func:`build_index` wrote.

    Args:
        folder: of the index.
        rows: those it was built of.
        made_for: as it was built for.
        leaves_searched, reorder: instead of the settings' numbers.
        always: rows whose true products are computed for every query. Texts hold no special tokens,
            so that an index quantized by their hidden states may miss the end of a text.

    Raises:
        DyntokError: no ScaNN here, no index there, or one that is damaged or of other rows.
    """
    manifest, built = _manifest(folder)
    asked = {"leaves_searched": leaves_searched, "reorder": reorder}
    settings = replace(built, **{name: n for name, n in asked.items() if n is not None})
    output = _output(rows)
    here = {**made_for, "size": len(output)}
    differing = [name for name, value in here.items() if manifest.get(name) != value]
    if differing:
        raise DyntokError(f"{folder}: built for other rows (another {', '.join(differing)})")
    files = folder / SEARCHER
    if list(files.glob("*.pkl")):
        raise DyntokError(f"{files}: holds a pickle, which no index written here does")
    written = manifest["files"]
    there = _digests(folder, written)
    if changed := [name for name, digest in written.items() if there.get(name) != digest]:
        raise DyntokError(f"{folder}: damaged ({', '.join(changed)}: not what was written)")
    try:
        searcher = _scann().load_searcher(str(files), assets_backcompat_shim=False)
    except (ValueError, RuntimeError, OSError, IndexError) as error:
        said = " ".join(str(error).split())
        raise DyntokError(f"{files}: this ScaNN cannot read it ({said}); build it again") from error
    query_map = None
    if settings.query_sample is not None:
        query_map = file_tensors(folder / QUERY_MAP)[QUERIES].read()
    compared = np.unique(np.asarray(always, np.int64))
    return ScannIndex(searcher, query_map, output, rows.bias, settings, compared)


def _manifest(folder: Path) -> tuple[dict[str, Any], ScannSettings]:
    """What an index says of itself, and its settings."""
    try:
        manifest = dict(json.loads((folder / MANIFEST).read_text("utf-8")))
        stored = dict(manifest["settings"])
        unknown = sorted(stored.keys() - {field.name for field in fields(ScannSettings)})
        if unknown or "files" not in manifest:
            said = ", ".join(unknown) or "no digests of its files"
            raise DyntokError(f"{folder}: built by another version ({said}); build it again")
        manifest["files"] = dict(manifest["files"])
        return manifest, ScannSettings(**stored)
    except OSError as error:
        raise DyntokError(f"{folder}: no index there (train.vocabulary builds one)") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DyntokError(f"{folder / MANIFEST}: damaged ({error!r})") from error


def _asked(
    hidden: Float[np.ndarray, "B D"],
    bias: Float[np.ndarray, " V"] | None,
    query_map: Float[np.ndarray, "E E"] | None = None,
) -> Float[np.ndarray, "B E"]:
    """What ScaNN is asked: with a bias, a 1 behind each hidden state, times the bias of a row."""
    if bias is not None:
        hidden = np.column_stack([hidden, np.ones(len(hidden), np.float32)])
    return hidden if query_map is None else hidden @ query_map


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files of an index by name, as far as they are there."""
    digests = {}
    for name in names:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _whitening(
    queries: Float[np.ndarray, "N E"],
) -> tuple[Float[np.ndarray, "E E"], Float[np.ndarray, "E E"]]:
    """What rows and queries are multiplied by: their products stay, queries spread evenly.

    ScaNN weighs errors of quantization as for queries without a preferred direction (Guo et al.
    2020, section 3); hidden states prefer a few.
    """
    count, width = queries.shape
    if count < width or not np.isfinite(queries).all():
        raise DyntokError(
            f"index: {count} hidden states of {width} numbers; valid are {width} at least, all "
            "finite: give a larger query_sample, or more texts"
        )
    exact = np.asarray(queries, np.float64)
    spread, directions = np.linalg.eigh(exact.T @ exact / len(exact))
    scale = np.sqrt(spread.clip(0) + _DAMPING * max(spread.mean(), _TINY))
    row_map, query_map = (directions * scale) @ directions.T, (directions / scale) @ directions.T
    return row_map.astype(np.float32), query_map.astype(np.float32)


def _output(rows: Rows) -> np.ndarray:
    # A plain array of the same memory: a memory map's own indexing is slow.
    return np.asarray(rows.input if rows.output is None else rows.output)


def _scann() -> Any:
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as error:
        raise DyntokError(
            f"no ScaNN here ({error}): pip install scann (Linux), or search with index exact"
        ) from error
    return scann_ops_pybind
