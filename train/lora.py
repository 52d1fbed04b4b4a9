"""Train an adapter and a task's head on an encoder that reads dynamic tokens.

    python -m train.lora --config configs/lora/uner_e5.yaml
    python -m train.lora --config configs/lora/uner_e5.yaml training.seed=2 --dry-run

Stopped by a signal or by accident, the same command goes on from the newest checkpoint. The result
is a folder ``adapter/`` in the run's folder, which peft reads too.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace

import jax

from dyntok_jax.adapter_files import read_adapter, write_adapter
from dyntok_jax.config import read_config
from dyntok_jax.dynamic_model import load
from dyntok_jax.model_store import public_name, resolve
from dyntok_jax.models.hf_config import read_architecture
from dyntok_jax.types import DyntokError
from train.command import add_config, add_dry_run, make_parser, run_command
from train.dry_run import dry_run
from train.loop import trained
from train.lora_config import LoraRun
from train.lora_task import LoraTask
from train.run_folder import alone, folder_to_write

EPOCH_ROWS = 65_536
"""Rows that are kept: where an epoch has no more distinct tokens, later ones predict none again."""


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = make_parser("lora", __doc__)
    add_config(parser)
    add_dry_run(parser)
    run_command(parser, _train, arguments)


def _train(options: argparse.Namespace) -> None:
    run = read_config(LoraRun, options.config, options.overrides)
    if options.dry_run:
        task = make_task(run)
        print(*dry_run(task, replace(run.training, steps=task.steps)), sep="\n")
        return
    # Before anything is loaded that would be lost without its folder, until all is written.
    with alone(run.training.out):
        _train_into(run)


def _train_into(run: LoraRun) -> None:
    folder = folder_to_write(run.training.out / "adapter")
    task = make_task(run)
    training = replace(run.training, steps=task.steps)
    adapter = task.adapter(*trained(task, training))
    name = public_name(run.model)
    write_adapter(folder, adapter, read_architecture(resolve(run.model)), name)
    caches = {"training": task.model.cache}
    if run.held_out:
        caches["evaluations"] = task.held_out_cache
    for of, cache in caches.items():
        if said := cache.costs():
            logging.info("%s: %s", of, ", ".join(said))
    logging.info("%s: the trained adapter", folder)


def make_task(run: LoraRun) -> LoraTask:
    """The task of a run: model, rows, examples.

    Raises:
        DyntokError: what cannot be had, or does not fit together.
    """
    if jax.process_count() > 1:
        # Their batches would differ in shape: each is rounded up to buckets of its own.
        raise DyntokError("train.lora runs in one process, on all of its devices")
    rows = run.rows, run.compute, run.language, run.base_rows
    model = load(run.model, *rows, cache_rows=EPOCH_ROWS)
    architecture = read_architecture(resolve(run.model))
    start = None
    if run.start is not None:
        start = read_adapter(run.start, architecture, resolve(run.model))
    return LoraTask(run, model, architecture, start)


if __name__ == "__main__":
    main()
