"""Train a hypernetwork for a model.

    python -m train.hypernet --config configs/hypernet/e5_small.yaml
    python -m train.hypernet --config configs/hypernet/e5_small.yaml training.steps=200 --dry-run

Stopped by a signal or by accident, the same command goes on from the newest checkpoint. The result
is a folder ``hypernet/`` in the run's folder, which every ``--rows`` option takes: the parameters
of the best checkpoint by the figure ``training.best``, without one those of the last step. A model
that was trained as well (``zett.train_backbone``) is in ``model/``, in Hugging Face layout, with
the base's own rows: ``python -m train.transfer --model RUN/model --rows RUN/hypernet`` gives it
those of another tokenizer.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dyntok_jax.config import read_config
from dyntok_jax.embed.hypernet import Hypernet, HypernetConfig
from dyntok_jax.embed.shipped import table_languages, write_mark
from dyntok_jax.embed.source import SourceEmbeddings
from dyntok_jax.embed.zett import load_hypernet, save_hypernet
from dyntok_jax.files import new_folder
from dyntok_jax.model_store import resolve
from dyntok_jax.models.weights import (
    LoadedModel,
    copy_companions,
    load_model,
    load_source,
    save_model,
)
from dyntok_jax.sharding import made_by_all, on_host
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import DyntokError
from train.command import (
    add_config,
    add_distributed,
    add_dry_run,
    join_processes,
    make_parser,
    run_command,
)
from train.config import HypernetRun, HypernetShape
from train.distill import Distillation
from train.dry_run import dry_run
from train.held_out import HeldOut
from train.loop import train
from train.preparation import Preparation
from train.run_folder import alone, folder_to_write
from train.text_sources import check_readable
from train.zett import ZettTask
from train.zett_config import check_steps
from train.zett_hypernet import hypernet_tokenizer, random_parameters

THEIR_OWN = ("single_head", "languages", "predict_bias", "pad_id", "max_positions")
"""Fields of the shape of a hypernetwork for other tokenizers that no setting gives."""


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = make_parser("hypernet", __doc__)
    add_config(parser)
    add_dry_run(parser)
    add_distributed(parser)
    run_command(parser, _train, arguments)


def _train(options: argparse.Namespace) -> None:
    run = read_config(HypernetRun, options.config, options.overrides)
    if options.distributed:
        join_processes()

    if options.dry_run:
        print(*dry_run(_prepared(run), run.training), sep="\n")
        return
    # Before anything is loaded that would be lost without its folder, until all is written.
    with alone(run.training.out):
        _train_into(run)


def _prepared(run: HypernetRun) -> Distillation | ZettTask:
    def base() -> Base:
        folder_to_write(run.training.out / "hypernet")
        if run.objective == "zett" and run.zett.train_backbone:
            folder_to_write(run.training.out / "model")
        return load_base(run)

    return make_task(run, made_by_all(base))


def _train_into(run: HypernetRun) -> None:
    task = _prepared(run)
    trained = train(task, run.training)
    params = on_host(task.hypernet_params(trained))
    model = task.trained_model(on_host(trained)) if isinstance(task, ZettTask) else None
    if jax.process_index() == 0:
        languages = task.languages if isinstance(task, ZettTask) else ()
        _export(run, task.hypernet_config, params, languages)
        if model:
            _export_model(run, model)


def _export(
    run: HypernetRun, config: HypernetConfig, params: Any, languages: Sequence[str] = ()
) -> None:
    """Write the trained hypernetwork into the run's folder."""
    folder, base = run.training.out / "hypernet", resolve(run.model)
    save_hypernet(folder, config, params, dtype=jnp.float16)
    source = SourceEmbeddings(load_source(base).input)
    write_mark(folder, run.model, source, BaseTokenizer.from_folder(base), languages)
    logging.info("%s: the trained hypernetwork (--rows %s)", folder, folder)


def _export_model(run: HypernetRun, model: LoadedModel) -> None:
    """Write the trained model into the run's folder, with the other files of its base."""
    folder, base = run.training.out / "model", resolve(run.model)
    # Of this run too: its checkpoints have it still.
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder) as partial:
        save_model(partial, model)
        copy_companions(base, partial)
    logging.info("%s: the model, trained as well", folder)


class Base(NamedTuple):
    """What a run trains for.

    Attributes:
        folder: of the model.
        model: its weights on the host.
        tokenizer: its own.
    """

    folder: Path
    model: LoadedModel
    tokenizer: BaseTokenizer


def load_base(run: HypernetRun) -> Base:
    """Load the model, and open what evaluations read, without any device.

    Raises:
        DyntokError: what of it cannot be had; a model that the run's results would replace.
    """
    folder = resolve(run.model)
    if folder.resolve() == (run.training.out / "model").resolve():
        raise DyntokError(
            f"model: {folder} is where this run writes its own model; give another training.out"
        )
    if run.held_out:
        check_readable(run.held_out.sources, run.held_out.max_chars)
    return Base(folder, load_model(folder), BaseTokenizer.from_folder(folder))


def make_task(run: HypernetRun, base: Base | None = None) -> Distillation | ZettTask:
    """The task of a run: model, hypernetwork, data.

    Args:
        run: the config.
        base: of :func:`load_base`, which is called by default.

    Raises:
        DyntokError: what of it cannot be had, or does not fit together.
    """
    folder, model, tokenizer = base or load_base(run)
    if run.objective == "zett":
        return _zett(run, model, tokenizer)
    if tokenizer.pad_id is None:
        raise DyntokError("the tokenizer has no padding token, which surface forms need")
    shape = hypernet_config(run.hypernet, model, tokenizer)
    config = run.distill
    is_encoder = model.kind == "encoder"
    preparation = Preparation.of_run(folder, is_encoder, config, shape.surface_length, shape.pad_id)
    return Distillation(
        model,
        shape,
        config,
        run.data,
        preparation,
        run.compute,
        run.training.seed,
        run.held_out and HeldOut(run.held_out, preparation, run.held_out_batches),
        _start(run.hypernet.start, shape).params,
    )


def _zett(run: HypernetRun, model: LoadedModel, tokenizer: BaseTokenizer) -> ZettTask:
    own = run.hypernet
    if own.separate_output:
        raise DyntokError("hypernet.separate_output: the objective zett takes it from the model")
    if own.model_layers:
        raise DyntokError("hypernet.model_layers: is for the objective distill")
    if not own.rescale:
        raise DyntokError("hypernet.rescale: the objective zett always rescales")
    check_steps(run.zett, run.training.steps, run.training.optimizer)
    languages = len({source.language for source in run.data.sources})
    start = _start(own.start, zett_hypernet_config(own, model, tokenizer, languages), THEIR_OWN)
    return ZettTask(
        model,
        tokenizer,
        start.shape,
        run.zett,
        run.data,
        run.compute,
        run.training.seed,
        run.held_out,
        start.params,
        start.languages,
    )


class Start(NamedTuple):
    """What a run starts from.

    Attributes:
        shape: of the run.
        params: None where they are random.
        languages: names of the rows of their language table, as far as they are known.
    """

    shape: HypernetConfig
    params: Any = None
    languages: Sequence[str] = ()


def _start(folder: Path | None, shape: HypernetConfig, their_own: Sequence[str] = ()) -> Start:
    """A hypernetwork to start from, checked against the shape of the run.

    Args:
        folder: the hypernetwork's; None for random parameters.
        shape: of the run.
        their_own: fields of the shape in which the hypernetwork's are the run's.
    """
    if folder is None:
        return Start(shape)
    found, params = load_hypernet(folder)
    shape = replace(shape, **{name: getattr(found, name) for name in their_own})
    if shape.model_layers and not found.model_layers:
        # What it will read of the model's states makes no difference yet.
        found = replace(found, model_layers=shape.model_layers)
        drawn = random_parameters(Hypernet(shape), jax.random.key(0))
        params |= {name: part for name, part in drawn.items() if name.startswith("states_")}
    differing = [
        f"{name} is {there} there and {here} here"
        for (name, there), here in zip(vars(found).items(), vars(shape).values(), strict=True)
        if there != here
    ]
    if differing:
        raise DyntokError(f"hypernet.start {folder}: {'; '.join(differing)}")
    return Start(shape, params, table_languages(folder))


def hypernet_config(
    own: HypernetShape, model: LoadedModel, tokenizer: BaseTokenizer
) -> HypernetConfig:
    """Shape of a hypernetwork that reads by the model's own tokenizer.

    Raises:
        DyntokError: more layers than the model has.
    """
    if own.model_layers > model.config.layers:
        raise DyntokError(
            f"hypernet.model_layers: {own.model_layers}; the model has {model.config.layers}"
        )
    rows, width = model.source.input.shape
    return HypernetConfig(
        width=width,
        hidden=own.hidden,
        feed_forward=own.feed_forward,
        layers=own.layers,
        heads=own.heads,
        surface_length=own.surface_length,
        vocab_size=rows,
        extra_tokens=0,
        pad_id=tokenizer.pad_id or 0,
        separate_output=own.separate_output or model.source.output is not None,
        rescale=own.rescale,
        predict_bias=False,
        residual=own.residual,
        native=True,
        max_positions=own.surface_length,
        model_layers=own.model_layers,
    )


def zett_hypernet_config(
    own: HypernetShape, model: LoadedModel, tokenizer: BaseTokenizer, languages: int
) -> HypernetConfig:
    """Shape of a hypernetwork for other tokenizers, as ZeTT publishes them.

    Args:
        own: sizes.
        model: the base model.
        tokenizer: its own.
        languages: of the run; a single one needs no table.
    """
    return replace(
        hypernet_config(own, model, tokenizer),
        vocab_size=tokenizer.vocab_size,
        extra_tokens=hypernet_tokenizer(tokenizer)[1],
        languages=languages if languages > 1 else 0,
        predict_bias=model.source.bias is not None,
        native=False,
        max_positions=HypernetConfig.max_positions,
    )


if __name__ == "__main__":
    main()
