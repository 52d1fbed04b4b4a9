"""Train an adapter by which a model reads dynamic tokens as it reads base tokens.

    python -m train.reading --config configs/reading/smollm2.yaml
    python -m train.reading --config configs/reading/smollm2.yaml training.steps=200 --dry-run

The objective is that of ``train.distill``, but the hypernetwork stays as it is: what is trained are
low-rank additions to the student, which knows no task. Stopped by a signal or by accident, the same
command goes on from the newest checkpoint. The result is a folder ``adapter/`` in the run's folder,
which ``--adapter`` of ``dyntok encode`` and of evaluations takes, and peft as well.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from dyntok_jax.config import read_config
from dyntok_jax.embed.providers import default_rows, identity
from dyntok_jax.embed.shipped import belongs
from dyntok_jax.embed.source import SourceEmbeddings
from dyntok_jax.embed.zett import load_hypernet
from dyntok_jax.lora import Adapter, base_hash, write_adapter
from dyntok_jax.model_store import public_name, resolve
from dyntok_jax.models.hf_config import read_architecture
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.lora import LoraConfig, abstract_lora, additions, init_lora, targeted
from dyntok_jax.models.weights import LoadedModel, load_model, load_source
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
from train.distill import Distillation
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
        base: hash of the frozen model.
    """

    def __init__(self, model: LoadedModel, *given: Any, lora: LoraConfig):
        """Puts model and hypernetwork on the mesh.

        Args:
            model: teacher and student.
            given: as ``Distillation`` takes it; its ``start`` is the hypernetwork.
            lora: shape of what is trained.

        Raises:
            DyntokError: as ``Distillation``; patterns that reach nothing.
        """
        super().__init__(model, *given)
        self.lora, self.base = lora, base_hash(model)
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
        print(*dry_run(make_task(run), run.training), sep="\n")
        return
    # Before anything is loaded that would be lost without its folder, until all is written.
    with alone(run.training.out):
        _train_into(run)


def _train_into(run: ReadingRun) -> None:
    folder = folder_to_write(run.training.out / "adapter")
    base, rows = resolve(run.model), made_by_all(lambda: hypernet_folder(run))
    task = make_task(run, rows)
    lora, step = trained(task, run.training)
    lora = on_host(lora)
    if jax.process_index() != 0:
        return
    said = {
        "task": "reading",
        "model": run.model,
        "rows": run.rows,
        "row_provider": identity(str(rows)),
        "tokenization": {"mode": "reduction", "merge_rates": run.distill.merge_rates},
        "steps": step,
        "seed": run.training.seed,
    }
    adapter = Adapter(run.lora, lora, base=task.base, task=plain_settings(said))
    write_adapter(folder, adapter, read_architecture(base), public_name(run.model), "F16")
    logging.info("%s: the trained adapter (--adapter %s)", folder, folder)


def make_task(run: ReadingRun, rows: Path | None = None) -> Reading:
    """The task of a run: model, hypernetwork, data.

    Args:
        run: the config.
        rows: of :func:`hypernet_folder`, which is called by default.

    Raises:
        DyntokError: what of it cannot be had, or does not fit together.
    """
    folder = resolve(run.model)
    shape, params = load_hypernet(rows or hypernet_folder(run))
    if not shape.native:
        raise DyntokError(f"rows {run.rows}: read by another tokenizer than the model's own")
    model = load_model(folder)
    if run.held_out:
        check_readable(run.held_out.sources, run.held_out.max_chars)
    preparation = Preparation.of_run(
        folder, model.kind == "encoder", run.distill, shape.surface_length, shape.pad_id
    )
    return Reading(
        model,
        shape,
        run.distill,
        run.data,
        preparation,
        run.compute,
        run.training.seed,
        run.held_out and HeldOut(run.held_out, preparation, run.held_out_batches),
        params,
        lora=run.lora,
    )


def hypernet_folder(run: ReadingRun) -> Path:
    """The folder of the run's hypernetwork.

    Raises:
        DyntokError: its rows are no hypernetwork's, or of another model's.
    """
    model = resolve(run.model)
    source, tokenizer = SourceEmbeddings(load_source(model).input), BaseTokenizer.from_folder(model)
    rows = default_rows(lambda _: source, tokenizer) if run.rows == "default" else run.rows
    if not Path(rows).is_dir():
        raise DyntokError(
            f"rows {run.rows}: valid are the folder of a hypernetwork for {run.model}, and default "
            "where one ships for it"
        )
    if not belongs(Path(rows), source, tokenizer):
        raise DyntokError(f"rows {rows}: this hypernetwork was trained for another model")
    return Path(rows)


if __name__ == "__main__":
    main()
