"""The file of a large vocabulary, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dyntok_jax.config import ComputeConfig, at_least
from dyntok_jax.large_vocabulary.rows import RowsDtype
from dyntok_jax.large_vocabulary.scann_index import ScannSettings
from dyntok_jax.types import DyntokError
from train.text_sources import TextSource

MOST = 100_000_000
"""The trainer takes memory for so many tokens before it reads the first text."""


@dataclass(frozen=True)
class RowsConfig:
    """The rows of all tokens.

    Attributes:
        provider: as every ``--rows``: default, fvt, … or a hypernetwork's folder.
        language: row of the hypernetwork's language table.
        dtype: that they are stored in.
    """

    provider: str = "default"
    language: int | None = None
    dtype: RowsDtype = "float32"


@dataclass(frozen=True)
class VocabularyRun:
    """A large vocabulary, its rows and its index.

    Attributes:
        model: name or folder of the model.
        out: folder of the vocabulary and its rows; the ScaNN index is ``scann/`` in it.
        sources: texts; their languages and weights count for nothing here.
        size: V, the model's own tokens counted.
        min_frequency: least occurrences of a pair of pieces that is merged.
        max_token_bytes: bytes of the longest new token; none: any number.
        rows: how rows are made; none: no rows.
        index: how a ScaNN index is built; none: no index (an exact search needs none).
        compute: mesh of the row prediction, and of the network whose hidden states an index is
            built by (in float32).
    """

    model: str
    out: Path
    sources: tuple[TextSource, ...]
    size: int = 1_000_000
    min_frequency: int = 2
    max_token_bytes: int | None = None
    rows: RowsConfig | None = field(default_factory=RowsConfig)
    index: ScannSettings | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        if not self.sources:
            raise DyntokError("sources is empty; give a source of texts at least")
        at_least(self, size=1, min_frequency=1)
        if self.max_token_bytes is not None:
            at_least(self, max_token_bytes=1)
        if max(self.size, self.min_frequency, self.max_token_bytes or 1) > MOST:
            raise DyntokError(f"size, min_frequency and max_token_bytes are at most {MOST}")
        if self.index and not self.rows:
            raise DyntokError("index: it is built of rows; give rows too")
