"""Batches of texts in several languages, prepared ahead of the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from dyntok_jax.config import at_least
from dyntok_jax.types import DyntokError
from train.task import Loaded
from train.text_files import Texts, windows
from train.text_sources import Stream, TextSource, open_stream, open_texts
from train.workers import in_order

logger = logging.getLogger(__name__)

MAX_SKIPPED = 100
"""Batches in a row that may be of no use."""

STREAM_BLOCK = 1024
"""Texts of a stream that are read, cut and shuffled together."""


@dataclass(frozen=True)
class DataConfig:
    """The texts of a run and how they are drawn.

    Attributes:
        sources: one or more for each language.
        exponent: languages are drawn in proportion to (weight x texts) ** exponent, sources of a
            language in proportion to weight x texts. Once a source is streaming, whose texts
            cannot be counted, all sources are drawn by their weights alone.
        one_language: each batch is of one language.
        texts: texts of a batch.
        max_chars: longer texts are cut at white space into several.
        workers: processes that prepare batches; 0 prepares them in the caller's.
    """

    sources: tuple[TextSource, ...]
    exponent: float = 1.0
    one_language: bool = False
    texts: int = 32
    max_chars: int = 2000
    workers: int = 1

    def __post_init__(self) -> None:
        at_least(self, texts=1, max_chars=1, workers=0)
        if not self.sources:
            raise DyntokError("sources is empty; give a source of texts at least")

    @property
    def drawn(self) -> dict[str, Any]:
        """What says which texts are drawn: the fields, and the identity of local files.

        Any number of workers draws the same.

        Raises:
            DyntokError: a file is not there or cannot be read.
        """
        fields = {name: value for name, value in asdict(self).items() if name != "workers"}
        contents = [source.contents for source in self.sources]
        return fields | {"contents": {name: of for part in contents for name, of in part.items()}}


class TextBatch(NamedTuple):
    """Texts to be prepared.

    Attributes:
        texts: none is empty.
        languages: of each text.
        seed: 32 bits for random choices of the preparation; the same in every process, until one of
            them skips a batch.
    """

    texts: list[str]
    languages: list[str]
    seed: int


Prepared = tuple[Any, int] | tuple[Any, int, int, int]
Prepare = Callable[[TextBatch], Prepared | str | None]
"""From texts to a batch's arrays, its tokens and, where they are counted, those without room in it
and those of a vocabulary that are cut; where nothing can be made of them why not, or None.

It is pickled for the worker processes: a function of a module, or an object that builds what is
heavy when it is first called."""


def batches(
    config: DataConfig,
    prepare: Prepare,
    *,
    seed: int,
    position: Any = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Loaded]:
    """Endless prepared batches, the same for the same seed, position and process.

    In every epoch of a source its texts come once, in a new order; in a run of several processes
    each text comes to one of them. Languages and seeds are the same in all processes as long as
    no batch is skipped.

    Args:
        seed: of the run, 0 or more.
        position: of the last batch that was used, as a run with an equal config gave it; None is
            the start.

    Raises:
        DyntokError: at once, what is wrong with a source; on the way, a stream without texts, or
            ``MAX_SKIPPED`` batches in a row of which nothing can be made; what ``prepare`` raises.
    """
    sampler = _Sampler(config, seed, process_index, process_count, position)
    skipped = position["skipped"] if position else 0
    return useful(in_order(_PrepareDrawn(prepare), sampler, config.workers), skipped)


class _Drawn(NamedTuple):
    batch: TextBatch
    position: dict[str, Any]


class _PrepareDrawn:
    def __init__(self, prepare: Prepare):
        self.prepare = prepare

    def __call__(self, drawn: _Drawn) -> Prepared | str | None:
        return self.prepare(drawn.batch)


def useful(results: Iterable[tuple[Any, Prepared | str | None]], skipped: int) -> Iterator[Loaded]:
    """Prepared batches, without those of which nothing can be made.

    Args:
        results: texts as ``batch`` with the position after them, and what was made of them.
        skipped: batches without use so far; positions go on with it.

    Raises:
        DyntokError: ``MAX_SKIPPED`` batches in a row of which nothing can be made.
    """
    in_a_row = 0
    for item, result in results:
        if isinstance(result, tuple):
            in_a_row = 0
            batch, tokens, *counts = result
            yield Loaded(batch, tokens, item.position | {"skipped": skipped}, *counts)
            continue
        skipped, in_a_row = skipped + 1, in_a_row + 1
        logger.info("nothing to train on in batch %d (%d so far)", item.position["batch"], skipped)
        if in_a_row == MAX_SKIPPED:
            languages = ", ".join(sorted(set(item.batch.languages)))
            raise DyntokError(
                f"{in_a_row} batches in a row held nothing to train on; the last was of "
                f"{languages} and began {item.batch.texts[0][:60]!r}"
                + (f": {result}" if result else "")
            )


class _Sampler:
    """Iterator of the texts of one batch after the other."""

    def __init__(
        self, config: DataConfig, seed: int, process_index: int, process_count: int, position: Any
    ):
        self.config = config
        self.seed, self.parts = seed, process_count
        states = position["sources"] if position else [None] * len(config.sources)
        parts = position["parts"] if position else process_count
        if parts != process_count and any(source.streaming for source in config.sources):
            raise DyntokError(
                f"streams go on in as many parts as before, {parts}; these are {process_count}"
            )
        if len(states) != len(config.sources):
            raise DyntokError(
                f"the data position is of {len(states)} sources, data.sources has "
                f"{len(config.sources)}; resume with the sources of the run"
            )
        self.batch = position["batch"] if position else 0
        self.readers: list[_Shuffled | _Blocks] = []
        for number, (source, state) in enumerate(zip(config.sources, states, strict=True)):
            if source.streaming:
                stream = open_stream(source, process_index, process_count)
                key = (seed, number, process_index)
                self.readers.append(_Blocks(stream, key, config.max_chars, source, state))
            else:
                texts, part = open_texts(source, config.max_chars), (process_index, process_count)
                self.readers.append(_Shuffled(texts, (seed, number), part, state))
        self.sizes = [len(r.texts) if isinstance(r, _Shuffled) else None for r in self.readers]
        before = position["sizes"] if position else self.sizes
        for source, size, size_before in zip(config.sources, self.sizes, before, strict=True):
            # The order of the texts of an epoch is another one with another number of them.
            if size != size_before:
                raise DyntokError(
                    f"{source.files or source.dataset or source.tfds}: {size} texts, "
                    f"{size_before} before; resume with the texts of the run"
                )
        self.language_shares, self.source_shares = _shares(config, self.sizes)

    def __iter__(self) -> Iterator[_Drawn]:
        return self

    def __next__(self) -> _Drawn:
        random = np.random.default_rng((self.seed, self.batch))
        batch_seed = int(random.integers(2**32))
        if self.config.one_language:
            p = self.source_shares[random.choice(len(self.language_shares), p=self.language_shares)]
        else:
            p = self.language_shares @ self.source_shares
        chosen = random.choice(len(self.readers), self.config.texts, p=p)
        texts = [self.readers[i].next() for i in chosen]
        names = [self.config.sources[i].language for i in chosen]
        self.batch += 1
        position = {"batch": self.batch, "sources": [reader.state() for reader in self.readers]}
        position |= {"parts": self.parts, "sizes": self.sizes}
        return _Drawn(TextBatch(texts, names, batch_seed), position)


def _shares(config: DataConfig, sizes: Sequence[int | None]) -> tuple[np.ndarray, np.ndarray]:
    """Probability of every language, and in each language of every source."""
    languages = sorted({source.language for source in config.sources})
    countable = None not in sizes
    masses = np.zeros((len(languages), len(sizes)))
    for number, (source, size) in enumerate(zip(config.sources, sizes, strict=True)):
        mass = source.weight * (size if countable and size else 1)
        masses[languages.index(source.language), number] = mass
    of_languages = masses.sum(1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        powers = (of_languages / of_languages.max()) ** config.exponent
    if not np.isfinite(powers.sum()):
        weights = ", ".join(f"{source.weight:g}" for source in config.sources)
        raise DyntokError(
            f"data.exponent {config.exponent:g} and sources of weight {weights} give no shares"
        )
    return powers / powers.sum(), masses / of_languages[:, None]


class _Shuffled:
    """Texts in a new order every epoch; of P processes, each takes every P-th of the sequence."""

    def __init__(self, texts: Texts, key: tuple[int, ...], part: tuple[int, int], state: Any):
        self.texts = texts
        self.key = key
        self.index, self.count = part
        self.taken = state or 0
        self.epoch = -1
        self.order = np.zeros(0, np.int64)

    def next(self) -> str:
        epoch, offset = divmod(self.taken + self.index, len(self.texts))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, _order(len(self.texts), *self.key, epoch)
        self.taken += self.count
        return self.texts[int(self.order[offset])]

    def state(self) -> int:
        """Texts that all processes together have taken."""
        return self.taken


class _Blocks:
    """Texts of a stream, block by block, those of a block in random order."""

    def __init__(
        self, stream: Stream, key: tuple[int, ...], max_chars: int, source: TextSource, state: Any
    ):
        self.stream = stream
        self.key = key
        self.max_chars = max_chars
        self.source = source
        self.block, self.taken, self.texts = 0, 0, []
        self.start: Any = None
        if state:
            self.block, self.start = state["block"], state["start"]
            stream.seek(self.start)
            self._read()
            self.taken = state["taken"]

    def next(self) -> str:
        if self.taken == len(self.texts):
            self.block += 1
            self._read()
        self.taken += 1
        return self.texts[self.taken - 1]

    def state(self) -> dict[str, Any] | None:
        if not self.block:
            return None
        return {"block": self.block, "start": self.start, "taken": self.taken}

    def _read(self) -> None:
        restarts, texts = 0, []
        while not texts:
            self.start = self.stream.position()
            read = self.stream.read(STREAM_BLOCK)
            if not read:
                restarts += 1
                if restarts == 2:
                    raise DyntokError(f"{self.source}: holds no text, only blank values")
                self.stream.seek(None)
            texts = [window for text in read for window in windows(text, self.max_chars)]
        self.texts = [texts[i] for i in _order(len(texts), *self.key, self.block)]
        self.taken = 0


def _order(count: int, *key: int) -> np.ndarray:
    return np.random.default_rng(key).permutation(count)
