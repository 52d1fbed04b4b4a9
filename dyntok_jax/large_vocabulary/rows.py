"""Rows of a large vocabulary in one safetensors file, predicted part by part.

Rows are stored as float32 unless asked otherwise: the model's own stay exactly what they are, and
a CPU multiplies by the mapped file itself, which input and output, the index and several processes
then share. Half of that is enough where rows go to a device in bfloat16 anyway.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from tqdm import tqdm

from dyntok_jax.command_line import is_terminal
from dyntok_jax.embed.source import RowProvider
from dyntok_jax.files import atomic_path
from dyntok_jax.tensor_files import (
    DTYPES,
    StoredTensor,
    encode_header,
    file_metadata,
    file_tensors,
)
from dyntok_jax.types import DyntokError, Rows, Token

logger = logging.getLogger(__name__)

RowsDtype = Literal["float32", "bfloat16"]
PART = 16_384
"""Rows that are predicted, and are safe on disk, together."""

_NAMES = {"float32": "F32", "bfloat16": "BF16"}
_ALIGNMENT = 64  # what a CPU device takes over without a copy
_NO_HASH = "0" * 64


@dataclass(frozen=True)
class RowsFile:
    """The file of a vocabulary's rows.

    Attributes:
        folder: of the vocabulary.
        vocabulary: hash of its tokens.
        size: V.
    """

    folder: Path
    vocabulary: str
    size: int

    @property
    def path(self) -> Path:
        """The finished file."""
        return self.folder / "rows.safetensors"

    @property
    def _partial(self) -> Path:
        return self.folder / "rows.safetensors.partial"

    @property
    def _progress(self) -> Path:
        return self.folder / "rows.progress.json"

    def read(self) -> Rows:
        """The tables, (V, D) and (V,), as read-only memory maps.

        Raises:
            DyntokError: not there, not finished, damaged, or of another vocabulary.
        """
        self.metadata()
        found = file_tensors(self.path)
        tables = {name: found[name].map() for name in Rows._fields if name in found}
        if "input" not in tables or any(len(t) != self.size for t in tables.values()):
            raise DyntokError(f"{self.path}: not the rows of {self.size} tokens")
        return Rows(**tables)

    def metadata(self) -> dict[str, str]:
        """What made the rows: ``rows``, ``model``, ``vocabulary``; and their ``hash``.

        Raises:
            DyntokError: as :meth:`read`.
        """
        if not self.path.is_file():
            begun = "not finished" if self._partial.is_file() else "not computed"
            raise DyntokError(f"{self.folder}: its rows are {begun} (train.vocabulary makes them)")
        file_tensors(self.path)  # says what is wrong with a damaged file
        metadata = file_metadata(self.path)
        if metadata.get("vocabulary") != self.vocabulary:
            raise DyntokError(f"{self.path}: made for another vocabulary; make rows for this one")
        if "hash" not in metadata:
            raise DyntokError(f"{self.path}: says no hash of its rows; remove it to make it anew")
        return metadata

    def predict(
        self,
        tokens: Sequence[Token],
        provider: RowProvider,
        made_by: Mapping[str, str],
        dtype: RowsDtype = "float32",
        part: int = PART,
    ) -> None:
        """Predict the rows of all tokens; what was done before it was stopped is not done again.

        Args:
            tokens: V tokens by id.
            provider: gives their rows.
            made_by: what the file says of the rows' origin; the same to go on.
            dtype: that they are stored in.
            part: rows predicted at once.

        Raises:
            DyntokError: begun with other settings; see the provider.
        """
        shapes = {
            name: ((self.size, *table.shape[1:]), _NAMES[dtype])
            for name, table in provider.rows([])._asdict().items()
            if table is not None
        }
        settings = {**made_by, "vocabulary": self.vocabulary, "dtype": dtype, "part": str(part)}
        digests = self._begun(settings) or self._begin(shapes, settings)
        tables = file_tensors(self._partial)
        begins = range(len(digests) * part, self.size, part)
        with self._partial.open("r+b") as file:
            for begin in tqdm(begins, disable=not is_terminal(), leave=False, unit="part"):
                rows = provider.rows(tokens[begin : begin + part])
                digests.append(_write(file, tables, rows, begin))
                self._record(settings, digests)
                logger.info("rows: %d of %d", min(begin + part, self.size), self.size)
            # Of the same length as none, so that the header has its place.
            digest = hashlib.sha256("".join(digests).encode()).hexdigest()
            file.seek(0)
            file.write(encode_header(shapes, {**settings, "hash": digest}, _ALIGNMENT))
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._partial, self.path)
        self._progress.unlink()

    def _begun(self, settings: Mapping[str, str]) -> list[str]:
        """Digests of the parts that are done."""
        if not (self._progress.is_file() and self._partial.is_file()):
            return []
        try:
            progress = json.loads(self._progress.read_text("utf-8"))
            found, digests = dict(progress["settings"]), list(progress["digests"])
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise DyntokError(f"{self._progress}: damaged ({error!r}); remove it") from error
        differing = [k for k in {**found, **settings} if found.get(k) != settings.get(k)]
        if differing:
            said = ", ".join(f"{k} {found.get(k)} (now {settings.get(k)})" for k in differing)
            raise DyntokError(f"{self._progress}: begun with {said}; go on so, or remove it")
        return digests

    def _begin(self, shapes: Mapping[str, Any], settings: Mapping[str, str]) -> list[str]:
        header = encode_header(shapes, {**settings, "hash": _NO_HASH}, _ALIGNMENT)
        sizes = [np.dtype(DTYPES[d]).itemsize * math.prod(shape) for shape, d in shapes.values()]
        try:
            with self._partial.open("wb") as file:
                file.write(header)
                file.truncate(len(header) + sum(sizes))
        except OSError as error:
            self._partial.unlink(missing_ok=True)
            raise DyntokError(f"{self._partial}: cannot be written ({error.strerror})") from error
        self._record(settings, [])
        return []

    def _record(self, settings: Mapping[str, str], digests: Sequence[str]) -> None:
        with atomic_path(self._progress) as partial:
            content = {"settings": settings, "digests": digests}
            partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _write(file: BinaryIO, tables: Mapping[str, StoredTensor], rows: Rows, begin: int) -> str:
    """Put rows where they belong, on the disk itself; the SHA-256 of their bytes."""
    digest = hashlib.sha256()
    for name, table in tables.items():
        values = np.asarray(getattr(rows, name), DTYPES[table.dtype], order="C")
        raw = values.reshape(-1).view(np.uint8)
        file.seek(table.offset + begin * (table.bytes // table.shape[0]))
        file.write(raw.data)
        digest.update(raw.data)
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()
