"""Build a large vocabulary for a decoder, its rows and its index.

    python -m train.vocabulary --config configs/vocabulary/smollm2.yaml
    python -m train.vocabulary --config configs/vocabulary/smollm2.yaml size=200000 out=out/small

The model's own tokens come first, with their ids; then those of a byte-pair encoding trained on the
texts, in the order of its merges. What is done is not done again: stopped or killed, the same
command goes on with the rows that are missing. A folder with only ``vocabulary.json`` and
``manifest.json`` of another gets other rows for the same tokens.
"""

from __future__ import annotations

import argparse
import heapq
import logging
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from dyntok_jax.config import read_config
from dyntok_jax.dynamic_model import load
from dyntok_jax.embed.providers import default_rows, identity, row_provider
from dyntok_jax.embed.source import SourceEmbeddings
from dyntok_jax.files import new_folder
from dyntok_jax.large_vocabulary.expand import new_tokens
from dyntok_jax.large_vocabulary.hidden_states import hidden_states
from dyntok_jax.large_vocabulary.scann_index import build_index, load_index
from dyntok_jax.large_vocabulary.vocabulary import MANIFEST, LargeVocabulary, write_vocabulary
from dyntok_jax.model_store import resolve
from dyntok_jax.models.weights import load_source
from dyntok_jax.sharding import make_mesh
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import DyntokError
from train.command import add_config, make_parser, run_command
from train.text_files import file_identity, matching_files
from train.text_sources import TextSource, open_stream, open_texts
from train.vocabulary_config import RowsConfig, VocabularyRun

INDEX = "scann"
MAX_CHARS = 100_000
"""Longer texts are cut at white space into several."""

_READ_TOGETHER = 1024
_QUERIES_A_TEXT = 8
_LONGEST_QUERY_TEXT = 64  # tokens

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = make_parser("vocabulary", __doc__)
    add_config(parser)
    run_command(parser, _build, arguments)


def _build(options: argparse.Namespace) -> None:
    # So that what is under way is removed, as by an interrupt of the keyboard.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        build(read_config(VocabularyRun, options.config, options.overrides))
    except OSError as error:
        raise DyntokError(f"{error.filename or options.config}: {error.strerror}") from error
    except KeyboardInterrupt as stop:
        said = "interrupted; the same command goes on with what is not there yet"
        raise DyntokError(said) from stop
    finally:
        signal.signal(signal.SIGTERM, before)


def build(run: VocabularyRun) -> LargeVocabulary:
    """Build what a run asks for and is not there yet.

    Raises:
        DyntokError: a folder that holds something of other settings; texts, model or rows that
            cannot be had; see ``new_tokens``, ``RowsFile.predict`` and ``build_index``.
    """
    tokenizer = BaseTokenizer.from_folder(resolve(run.model))
    made_by = _made_by(run)
    if not (run.out / MANIFEST).is_file():
        texts = (text for source in run.sources for text in _texts(source))
        # A folder that cannot be written is found out before the texts are read.
        with new_folder(run.out) as folder:
            new = new_tokens(texts, tokenizer, run.size, run.min_frequency, run.max_token_bytes)
            write_vocabulary(folder, tokenizer, new, run.model, made_by)
    vocabulary = LargeVocabulary.load(run.out, tokenizer)
    wanted = {**made_by, "size": run.size}
    found = vocabulary.manifest
    if found.get("corpus") == (unread := _without_contents(wanted["corpus"])):
        wanted["corpus"] = unread  # the manifest is from before they were said
    differing = [name for name, value in wanted.items() if found.get(name) != value]
    if differing:
        raise DyntokError(f"{run.out}: built with another {', '.join(differing)}; give another out")
    logger.info("%s: %d tokens, %s", run.out, len(vocabulary.tokens), vocabulary.hash[:12])
    if run.rows:
        _make_rows(run, run.rows, vocabulary)
    if run.index:
        _make_index(run, vocabulary)
    return vocabulary


def _made_by(run: VocabularyRun) -> dict[str, Any]:
    """What the manifest says of the texts and the training."""
    return {
        "min_frequency": run.min_frequency,
        "max_token_bytes": run.max_token_bytes,
        "corpus": [part for source in run.sources for part in _named(source)],
    }


def _named(source: TextSource) -> list[dict[str, Any]]:
    """A source's files with their sizes and contents, or the name of its dataset."""
    # Absent where they are not set, as in manifests from before they were told apart.
    chosen = {
        name: value
        for name in ("lines", "exclude_lines", "config_name", "column")
        if (value := getattr(source, name)) != getattr(TextSource, name)
    }
    if not source.files:
        split = source.split or "train"
        return [{"dataset": source.dataset or source.tfds, "split": split, **chosen}]
    # The folder above the files is the machine's own.
    return [
        {
            "file": "/".join(path.parts[-2:]),
            "bytes": path.stat().st_size,
            "contents": file_identity(path),
            **chosen,
        }
        for path in matching_files(source.files, str(source))
    ]


def _without_contents(corpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in part.items() if key != "contents"} for part in corpus]


def _texts(source: TextSource) -> Iterator[str]:
    if not source.streaming:
        yield from open_texts(source, MAX_CHARS)
        return
    stream = open_stream(source)
    while texts := stream.read(_READ_TOGETHER):
        yield from filter(str.strip, texts)


def _make_rows(run: VocabularyRun, config: RowsConfig, vocabulary: LargeVocabulary) -> None:
    folder = resolve(run.model)
    own = SourceEmbeddings(*load_source(folder), folder=folder)

    def source(separate: bool) -> SourceEmbeddings:
        return own  # output rows too, where the model has them

    name = config.provider
    if name == "default":
        name = default_rows(source, vocabulary.tokenizer)
    made_by = {"model": run.model, "rows": identity(name)}
    if config.language is not None:
        made_by["language"] = str(config.language)
    file = vocabulary.rows_file
    if file.path.is_file():
        found = file.metadata()
        differing = [
            f"{key} {found.get(key)} (now {value})"
            for key, value in {"language": None, **made_by, "dtype": config.dtype}.items()
            if found.get(key) != value
        ]
        if differing:
            raise DyntokError(f"{file.path}: made with {', '.join(differing)}; give another out")
        logger.info("%s: there already", file.path)
        return
    mesh = make_mesh(run.compute.mesh)
    provider = row_provider(name, source, vocabulary.tokenizer, config.language, None, mesh)
    file.predict(vocabulary.row_tokens, provider, made_by, config.dtype)
    if cut := getattr(provider, "truncated", 0):
        logger.info("%s: %d rows are of the first pieces only", file.path, cut)


def _make_index(run: VocabularyRun, vocabulary: LargeVocabulary) -> None:
    folder, rows = run.out / INDEX, vocabulary.rows()
    assert run.index is not None
    if not folder.exists():
        count = run.index.query_sample
        queries = None if count is None else partial(_queries, run, count, vocabulary)
        build_index(folder, rows, run.index, vocabulary.made_for, queries)
    if load_index(folder, rows, vocabulary.made_for).settings != run.index:
        raise DyntokError(f"{folder}: built with other settings; remove it, or give these")
    logger.info("%s: the index", folder)


def _queries(
    run: VocabularyRun, count: int, vocabulary: LargeVocabulary
) -> Float[np.ndarray, "N D"]:
    """Hidden states of texts, each drawn with a chance as its length is."""
    assert run.rows is not None  # an index has rows
    compute = replace(run.compute, dtype="float32")
    model = load(run.model, run.rows.provider, compute, run.rows.language)
    drawn = random.Random(0)
    texts = (text for source in run.sources for text in _texts(source))
    # Weighted sampling in one pass (Efraimidis and Spirakis 2006).
    keyed = ((drawn.random() ** (1 / len(text)), text) for text in texts if text)
    chosen = [text for _, text in heapq.nlargest(-(-count // _QUERIES_A_TEXT), keyed)]
    logger.info("%s: hidden states of %d texts", run.out, len(chosen))
    found = hidden_states(model, vocabulary, chosen, count, _LONGEST_QUERY_TEXT)
    if len(found) < count:
        raise DyntokError(
            f"index.query_sample is {count}, and the texts give {len(found)} hidden states: give "
            "fewer, or more texts"
        )
    return found


if __name__ == "__main__":
    main()
