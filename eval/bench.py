"""Benchmarks, as ratios within one run: merging, the encoder's forward, end to end, memory.

    python -m eval.bench --out out/bench.json

Sentences are read from a folder with ``text/ntrex/XX.txt`` (lines) and ``xnli/dev-XX.tsv``
(premises in the first column).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dyntok_jax.dynamic_model import load
from dyntok_jax.host_memory import keep_freed_memory
from dyntok_jax.model_store import resolve
from eval.bench_merging import bench_merging
from eval.bench_models import bench_end_to_end, bench_forward
from eval.record import git_commit

ENCODER, DECODER = "multilingual-e5-small", "smollm2-135m-instruct"
SHARED = Path(os.environ.get("DYNTOK_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def main() -> None:
    """Runs all benchmarks, prints their tables and writes them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench.json"), help="JSON to write")
    parser.add_argument(
        "--data", type=Path, default=SHARED / "data", help="folder of the sentences"
    )
    options = parser.parse_args()
    for part in ("text/ntrex/de.txt", "xnli/dev-de.tsv"):
        if not (options.data / part).is_file():
            parser.error(f"no {part} in {options.data} (give --data FOLDER)")
    for name in (ENCODER, DECODER):
        resolve(name)  # so that no measured process downloads them
    keep_freed_memory()
    # First, while this process is small: the peak that Linux gives for a child counts its parent's.
    memory = _memory(options.data)
    model = load(ENCODER, rows="fvt")
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "commit": git_commit(),
        "forward": bench_forward(model, resolve(ENCODER)),
        "end_to_end": bench_end_to_end(model, options.data / "xnli"),
        "merging": bench_merging(model.tokenizer, options.data / "text" / "ntrex"),
        "peak_memory_gb": memory,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    _print(report)


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


def _print(report: dict[str, Any]) -> None:
    console = Console()
    console.print(f"{report['machine']}, commit {report['commit']}")
    console.print(_table("Merging 32 sentences (ms; ratio to the naive rescan)", report["merging"]))
    console.print(_table("Encoder's forward, float32", [report["forward"]]))
    end_to_end = report["end_to_end"]
    title = f"End to end ({end_to_end['compiled_shapes']} compiled shapes)"
    console.print(_table(title, end_to_end["languages"]))
    console.print(_table("Peak memory (GB)", [report["peak_memory_gb"]]))


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(*(name.replace("_", " ") for name in rows[0]), title=title, title_justify="left")
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    return table


if __name__ == "__main__":
    main()
