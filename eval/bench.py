"""Benchmarks, as ratios within one run: merging, the encoder's forward, end to end, memory.

    python -m eval.bench --out out/bench.json

Sentences are read from a folder with ``text/ntrex/XX.txt`` (lines) and ``xnli/dev-XX.tsv``
(premises in the first column).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dyntok_jax.dynamic_model import load
from dyntok_jax.model_store import resolve
from dyntok_jax.types import DyntokError
from eval import record
from eval.bench_merging import bench_merging
from eval.bench_models import bench_end_to_end, bench_forward

ENCODER, DECODER = "multilingual-e5-small", "smollm2-135m-instruct"
SHARED = Path(os.environ.get("DYNTOK_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def main() -> None:
    """Runs all benchmarks and writes them as JSON."""
    parser = record.Parser(
        "eval.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=SHARED / "data", metavar="FOLDER", help="of the sentences"
    )
    record.run(parser, measure, names_model=False)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of all benchmarks.

    Raises:
        DyntokError: sentences that are missing, or a model that cannot be had.
    """
    for part in ("text/ntrex/de.txt", "xnli/dev-de.tsv"):
        if not (options.data / part).is_file():
            raise DyntokError(f"no {part} in {options.data}; give --data FOLDER")
    for name in (ENCODER, DECODER):
        resolve(name)  # so that no measured process downloads them
    # First, while this process is small: the peak that Linux gives for a child counts its parent's.
    memory = _memory(options.data)
    model = load(ENCODER, rows="fvt")
    return {
        "forward": bench_forward(model, resolve(ENCODER)),
        "end_to_end": bench_end_to_end(model, options.data / "xnli"),
        "merging": bench_merging(model.tokenizer, options.data / "text" / "ntrex"),
        "peak_memory_gb": memory,
    }


def _memory(data: Path) -> dict[str, float]:
    """Peak resident memory of ``dyntok encode`` and ``dyntok score`` on real sentences, in GB."""
    lines = (data / "text" / "ntrex" / "de.txt").read_text("utf-8").splitlines()[:256]
    # Texts as long as the encoder reads, and a prompt of some thousand tokens.
    texts_of_all_lengths = lines + [" ".join(lines)] * 32
    prompts_of_all_lengths = [*lines[:64], " ".join(lines[:64])]
    with tempfile.TemporaryDirectory() as folder:
        texts, prompts = Path(folder, "texts.jsonl"), Path(folder, "prompts.jsonl")
        texts.write_text(
            "".join(json.dumps({"text": line}) + "\n" for line in texts_of_all_lengths)
        )
        prompts.write_text(
            "".join(
                json.dumps({"prompt": line, "choices": [" Ja.", " Nein."]}) + "\n"
                for line in prompts_of_all_lengths
            )
        )
        vectors = str(Path(folder, "vectors.safetensors"))
        return {
            "encode": _peak("encode", "--model", ENCODER, "--out", vectors, str(texts)),
            "score": _peak("score", "--model", DECODER, str(prompts)),
        }


def _peak(*arguments: str) -> float:
    command = [sys.executable, "-c", "from dyntok_jax.cli import main; main()", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"dyntok {' '.join(arguments)} failed")
    return usage.ru_maxrss / 1e6  # kilobytes on Linux


if __name__ == "__main__":
    main()
