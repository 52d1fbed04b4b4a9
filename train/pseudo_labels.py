"""Label plain text with a task adapter that reads base tokens, for a joint adapter to learn from.

    python -m train.pseudo_labels --model multilingual-e5-small --adapter out/uner_static/adapter \\
        --text wiki_qa/de.txt ntrex/de.txt --sentences 4000 --out out/pseudo_labels/de.jsonl

Self-training: a joint adapter that is given these sentences beside labelled ones reads dynamic
tokens of languages that the labelled ones are not in. Texts are cut into sentences behind ``.``,
``!`` and ``?`` and a space, sentences into words and single marks of punctuation (scripts without
spaces come in long pieces); each sentence counts once. The file has words and tags a line, as
``dyntok_jax.tasks.uner`` reads them. Sentences that the model cannot read whole are left out and
counted.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
from collections.abc import Iterable
from pathlib import Path

import regex

from dyntok_jax.adapter_files import read_adapter
from dyntok_jax.classification import adapted, classify
from dyntok_jax.config import ComputeConfig
from dyntok_jax.dynamic_model import load
from dyntok_jax.files import atomic_path, refuse_input
from dyntok_jax.lora import warn_of_merged_tokens
from dyntok_jax.model_store import resolve
from dyntok_jax.models.hf_config import read_architecture
from dyntok_jax.tasks import metrics, uner
from dyntok_jax.tasks.registry import TASKS
from dyntok_jax.types import DyntokError
from train.command import make_parser, run_command
from train.text_files import matching_files, read_files

_SENTENCE_END = regex.compile(r"(?<=[.!?])\s+")
# Accents and invisible characters go with the letters before them.
_WORD = regex.compile(r"\w[\w\p{M}\p{Cf}]*|[^\w\s\p{M}\p{Cf}]")


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = make_parser("pseudo_labels", __doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="the adapter's base, its name or folder")
    add("--adapter", required=True, type=Path, metavar="FOLDER", help="trained for uner")
    add(
        "--text",
        required=True,
        nargs="+",
        metavar="FILE",
        help=".txt (a text a line), .jsonl, .parquet",
    )
    add("--sentences", type=int, default=4000, help="so many, drawn from all (%(default)s)")
    add("--seed", type=int, default=0, help="of the drawing (%(default)s)")
    add("--max-length", type=int, default=128, help="base tokens of a sentence (%(default)s)")
    add("--out", required=True, type=Path, metavar="FILE", help=".jsonl to write")
    run_command(parser, _label, arguments)


def _label(options: argparse.Namespace) -> None:
    if options.sentences < 1 or options.max_length < 1:
        raise DyntokError("--sentences and --max-length: valid are numbers from 1")
    if options.out.suffix != ".jsonl":
        raise DyntokError(f"{options.out}: valid is a file .jsonl")
    for pattern in options.text:
        refuse_input(options.out, *matching_files(pattern, pattern))
    drawn = sentences(
        text
        for pattern in options.text
        for text in read_files(pattern, "text", None, None, sys.maxsize, pattern)
    )
    if not drawn:
        raise DyntokError(f"{', '.join(options.text)}: no sentence with a word")
    random.Random(options.seed).shuffle(drawn)
    chosen = [words(sentence) for sentence in drawn[: options.sentences]]
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DyntokError(f"{error.filename}: {error.strerror}") from error
    with atomic_path(options.out) as partial:
        found = labelled(options.model, options.adapter, chosen, options.max_length)
        lines = [
            json.dumps({"tokens": s.words, "ner_tags": s.tags}, ensure_ascii=False) + "\n"
            for s in found
        ]
        partial.write_text("".join(lines), "utf-8")
    tags = [sentence.tags for sentence in found]
    names = metrics.span_counts(tags, tags)[:, 1].sum()
    said = f"{len(found)} sentences, {len(chosen) - len(found)} too long, {names} names"
    logging.info("%s: %s", options.out, said)


def sentences(texts: Iterable[str]) -> list[str]:
    """The sentences of texts that hold a word, each once."""
    found = {part: None for text in texts for part in _SENTENCE_END.split(text)}
    return [sentence for sentence in found if regex.search(r"\w", sentence)]


def words(sentence: str) -> list[str]:
    """Its words and marks of punctuation."""
    return _WORD.findall(sentence)


def labelled(
    model: str, adapter: Path, sentences: list[list[str]], max_length: int
) -> list[uner.Sentence]:
    """Sentences with the tags that an adapter predicts on base tokens, without those too long.

    Args:
        model: name or folder of the base.
        adapter: folder.
        sentences: words of each.
        max_length: in base tokens.

    Raises:
        DyntokError: a model or an adapter that cannot be had, or that do not belong together; no
            sentence is left.
    """
    task, base = TASKS["uner"], load(model, "base")
    if base.kind != "encoder":
        raise DyntokError(f"{base.name} is a decoder: {task.name} needs an encoder")
    trained = read_adapter(adapter, read_architecture(resolve(model)))
    warn_of_merged_tokens(adapter, trained)
    try:
        network = adapted(base, trained, task, ComputeConfig())
    except DyntokError as error:
        raise DyntokError(f"{adapter}: {error}") from error
    untagged = [uner.Sentence(part, [uner.OUTSIDE] * len(part)) for part in sentences]
    longest = min(max_length, base.max_length)
    layouts = task.layout(base.tokenizer, untagged, max_length=longest)
    kept = [i for i, layout in enumerate(layouts) if not layout.truncated]
    if not kept:
        raise DyntokError(f"no sentence of {len(sentences)} has at most {longest} tokens")
    predicted = classify(network, [[*layouts[i].ids.tolist()] for i in kept], 32)
    found = []
    for i, numbers in zip(kept, predicted, strict=True):
        ids = layouts[i].word_ids
        assert ids is not None  # the task's layout is of words
        found.append(uner.Sentence(sentences[i], uner.word_tags(ids, numbers, len(sentences[i]))))
    return found


if __name__ == "__main__":
    main()
