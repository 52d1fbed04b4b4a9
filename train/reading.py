"""Train an adapter by which a model reads dynamic tokens as it reads base tokens.

    python -m train.reading --config configs/reading/smollm2.yaml
    python -m train.reading --config configs/reading/smollm2.yaml training.steps=200 --dry-run

The objective is that of ``train.distill``, but the hypernetwork stays as it is: what is trained are
low-rank additions to the student, which knows no task. Stopped by a signal or by accident, the same
command goes on from the newest checkpoint. The result is a folder ``adapter/`` in the run's folder,
which ``--adapter`` of ``dyntok encode``, ``score`` and ``generate`` and of ``eval.retrieval`` and
``eval.continuation`` takes, and peft as well.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from dyntok_jax.adapter_files import write_adapter
from dyntok_jax.config import ComputeConfig, read_config
from dyntok_jax.embed.hypernet import HypernetConfig
from dyntok_jax.embed.hypernet_rows import readable_source
from dyntok_jax.embed.providers import identity
from dyntok_jax.embed.shipped import belongs, shipped_hypernet
from dyntok_jax.embed.source import SourceEmbeddings
from dyntok_jax.embed.zett import load_hypernet
from dyntok_jax.lora import Adapter, base_hash
from dyntok_jax.model_store import public_name, resolve
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.lora import LoraConfig, abstract_lora, additions, init_lora, targeted
from dyntok_jax.models.weights import LoadedModel, load_model
from dyntok_jax.run_settings import plain_settings
from dyntok_jax.sharding import made_by_all, on_host, param_shardings, shard_params
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
from train.data import DataConfig
from train.distill import Distillation
from train.distill_config import DistillConfig
from train.dry_run import dry_run
from train.held_out import HeldOut
from train.loop import trained
from train.preparation import Preparation
from train.reading_config import ReadingRun
from train.run_folder import alone, folder_to_write
from train.text_sources import check_readable


class Reading(Distillation):
    """The task of ``train.loop`` for additions to the student, with a hypernetwork that is given.

    Attributes:
        lora: shape of the additions.
    """

    def __init__(
        self,
        lora: LoraConfig,
        model: LoadedModel,
        hypernet: HypernetConfig,
        config: DistillConfig,
        data: DataConfig,
        preparation: Preparation,
        compute: ComputeConfig,
        seed: int,
        held_out: HeldOut | None = None,
        start: Any = None,
    ):
        """Puts model and hypernetwork on the mesh.

        Args:
            lora: shape of what is trained.
            model: teacher and, with the additions, student.
            hypernet: shape of the hypernetwork.
            config, data, preparation, compute, seed, held_out: as ``Distillation`` takes them.
            start: the hypernetwork's parameters, which stay as they are.

        Raises:
            DyntokError: as ``Distillation``; patterns that reach nothing.
        """
        super().__init__(model, hypernet, config, data, preparation, compute, seed, held_out, start)
        self.lora = lora
        paths = [*targeted(model.architecture, lora.targets).values()]
        self._abstract = abstract_lora(abstract_params(self.network), paths, lora.rank)
        self.frozen["hypernet"] = self._first.trained

    @property
    def settings(self) -> Mapping[str, Any]:
        """What must stay equal when a run goes on."""
        return dict(super().settings) | {"objective": "reading", "lora": asdict(self.lora)}

    def shardings(self) -> Any:
        """Sharding of every array of the additions."""
        return param_shardings(self._abstract, self.mesh)

    def init(self, key: PRNGKeyArray) -> Any:
        """Values at step 0, which make no difference yet."""
        return shard_params(init_lora(self._abstract, key), self._abstract, self.mesh)

    def split(self, trainables: Any, frozen: Any) -> tuple[Any, Any]:
        """The hypernetwork's parameters, which are frozen, and the student's additions."""
        return frozen["hypernet"], additions(trainables, self.lora)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = make_parser("reading", __doc__)
    add_config(parser)
    add_dry_run(parser)
    add_distributed(parser)
    run_command(parser, _train, arguments)


def _train(options: argparse.Namespace) -> None:
    run = read_config(ReadingRun, options.config, options.overrides)
    if options.distributed:
        join_processes()
    if options.dry_run:
        print(*dry_run(make_task(run, made_by_all(lambda: load_base(run))), run.training), sep="\n")
        return
    # Before anything is loaded that would be lost without its folder, until all is written.
    with alone(run.training.out):
        _train_into(run)


def _train_into(run: ReadingRun) -> None:
    base = made_by_all(lambda: load_base(run))
    lora, step = trained(make_task(run, base), run.training)
    lora = on_host(lora)
    if jax.process_index() == 0:
        _export(run, base, lora, step)


class Base(NamedTuple):
    """What a run trains for, on the host.

    Attributes:
        folder: of the model.
        model: its weights.
        rows: folder of the hypernetwork.
        shape, params: of the hypernetwork.
    """

    folder: Path
    model: LoadedModel
    rows: Path
    shape: HypernetConfig
    params: Any


def load_base(run: ReadingRun) -> Base:
    """Load model and hypernetwork, and open what evaluations read, without any device.

    Raises:
        DyntokError: what of it cannot be had, or does not fit together.
    """
    folder_to_write(run.training.out / "adapter")
    folder = resolve(run.model)
    model, tokenizer = load_model(folder), BaseTokenizer.from_folder(folder)
    source = SourceEmbeddings(*model.source)
    inputs = SourceEmbeddings(source.input)
    rows = shipped_hypernet(inputs, tokenizer) if run.rows == "default" else Path(run.rows)
    if rows is None or not rows.is_dir():
        raise DyntokError(
            f"rows {run.rows}: valid are the folder of a hypernetwork for {run.model}, and default "
            "where one ships for it"
        )
    if not belongs(rows, inputs, tokenizer):
        raise DyntokError(f"rows {rows}: this hypernetwork was trained for another model")
    shape, params = load_hypernet(rows)
    if not shape.native:
        raise DyntokError(f"rows {rows}: are read by another tokenizer than the model's own")
    if shape.languages:
        raise DyntokError(f"rows {rows}: have a table of languages, of which batches know nothing")
    try:
        readable_source(shape, source)
    except DyntokError as error:
        raise DyntokError(f"rows {rows}: {error}") from error
    if run.held_out:
        check_readable(run.held_out.sources, run.held_out.max_chars)
    return Base(folder, model, rows, shape, params)


def make_task(run: ReadingRun, base: Base | None = None) -> Reading:
    """The task of a run: model, hypernetwork, data.

    Args:
        run: the config.
        base: of :func:`load_base`, which is called by default.

    Raises:
        DyntokError: what of it cannot be had, or does not fit together.
    """
    folder, model, _, shape, params = base or load_base(run)
    preparation = Preparation.of_run(
        folder, model.kind == "encoder", run.distill, shape.surface_length, shape.pad_id
    )
    return Reading(
        run.lora,
        model,
        shape,
        run.distill,
        run.data,
        preparation,
        run.compute,
        run.training.seed,
        run.held_out and HeldOut(run.held_out, preparation, run.held_out_batches),
        params,
    )


def _export(run: ReadingRun, base: Base, lora: Any, step: int) -> None:
    """Write the trained adapter into the run's folder."""
    folder, merges = run.training.out / "adapter", ("merge_rates", "prompt_share", "repeated_words")
    said = {
        "task": "reading",
        "model": run.model,
        "rows": run.rows,
        "row_provider": identity(str(base.rows)),
        "tokenization": {name: getattr(run.distill, name) for name in merges},
        "steps": step,
        "seed": run.training.seed,
    }
    half = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), lora)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(half)):
        raise DyntokError(f"{folder}: values beyond float16, in which adapters are kept")
    adapter = Adapter(run.lora, half, base=base_hash(base.model), task=plain_settings(said))
    write_adapter(folder, adapter, base.model.architecture, public_name(run.model), "F16")
    logging.info("%s: the trained adapter (--adapter %s)", folder, folder)


if __name__ == "__main__":
    main()
