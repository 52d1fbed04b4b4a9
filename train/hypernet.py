"""Train a hypernetwork for a model.

    python -m train.hypernet --config configs/hypernet/e5_small.yaml
    python -m train.hypernet --config configs/hypernet/e5_small.yaml training.steps=200 --dry-run

Stopped by a signal or by accident, the same command goes on from the newest checkpoint. The result
is a folder ``hypernet/`` in the run's folder, which every ``--rows`` option takes.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from dyntok_jax.config import read_config
from dyntok_jax.embed.hypernet import HypernetConfig
from dyntok_jax.embed.shipped import write_mark
from dyntok_jax.embed.source import SourceEmbeddings
from dyntok_jax.embed.zett import load_hypernet, save_hypernet
from dyntok_jax.model_store import resolve
from dyntok_jax.models.weights import LoadedModel, load_model, load_source
from dyntok_jax.sharding import make_mesh
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import DyntokError
from train.config import HypernetRun
from train.distill import Distillation
from train.held_out import HeldOut
from train.loop import dry_run, train
from train.preparation import Preparation


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m train.hypernet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run")
    parser.add_argument("--dry-run", action="store_true", help="compile one step and report it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields of the file")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run = read_config(HypernetRun, options.config, options.overrides)
        task = make_task(run)
        if options.dry_run:
            print(dry_run(task, run.training))
            return
        params = train(task, run.training)
        if jax.process_index() == 0:
            folder = run.training.out / "hypernet"
            save_hypernet(folder, task.hypernet_config, jax.device_get(params), dtype=jnp.float16)
            base = resolve(run.model)
            source = SourceEmbeddings(load_source(base).input)
            write_mark(folder, run.model, source, BaseTokenizer.from_folder(base))
            logging.info("%s: the trained hypernetwork (--rows %s)", folder, folder)
    except DyntokError as error:
        sys.exit(f"error: {error}")


def make_task(run: HypernetRun) -> Distillation:
    """The task of a run: model, hypernetwork, data."""
    folder = resolve(run.model)
    model = load_model(folder)
    shape = hypernet_config(run, model, BaseTokenizer.from_folder(folder))
    config, encoder = run.distill, model.kind == "encoder"
    preparation = Preparation(
        folder,
        encoder,
        config.sequences,
        config.max_length,
        config.prefix,
        config.merge_rates,
        shape.surface_length,
        shape.pad_id,
    )
    held_out = run.held_out and HeldOut(run.held_out, preparation, run.held_out_batches)
    start = None
    if run.hypernet.start is not None:
        found, start = load_hypernet(run.hypernet.start)
        if found != shape:
            raise DyntokError(f"{run.hypernet.start}: {found} is not the configured {shape}")
    mesh = make_mesh(run.compute.mesh)
    return Distillation(
        model,
        shape,
        config,
        run.data,
        preparation,
        mesh,
        run.compute.dtype,
        run.training.seed,
        held_out,
        start,
    )


def hypernet_config(
    run: HypernetRun, model: LoadedModel, tokenizer: BaseTokenizer
) -> HypernetConfig:
    """Shape of a run's hypernetwork."""
    rows, width = model.source.input.shape
    own = run.hypernet
    pad = tokenizer.pad_id
    return HypernetConfig(
        width=width,
        hidden=own.hidden,
        feed_forward=own.feed_forward,
        layers=own.layers,
        heads=own.heads,
        surface_length=own.surface_length,
        vocab_size=rows,
        extra_tokens=0,
        pad_id=pad,
        separate_output=own.separate_output or model.source.output is not None,
        rescale=False,
        predict_bias=False,
        residual=own.residual,
        native=True,
        max_positions=own.surface_length,
    )


if __name__ == "__main__":
    main()
