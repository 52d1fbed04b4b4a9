"""Compile for a TPU v4-32 that is not there, and print what each program needs, as JSON lines.

    python tests/tpu_compilation.py CASE...        (run by test_compile_tpu.py)

libtpu reads its environment when it is loaded, so this is a program of its own. A case is a
function of the mesh that lowers something; add it to CASES.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-32",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
if "TPU_LIBRARY_PATH" not in os.environ:
    package = importlib.util.find_spec("libtpu")
    folders = (package and package.submodule_search_locations) or []
    # `make dev` puts it beside the packages, where jax does not look for it.
    found = [Path(folder) for folder in [*folders, f"{sys.prefix}/tpu_compiler/libtpu"]]
    os.environ["TPU_LIBRARY_PATH"] = str(
        next((folder / "libtpu.so" for folder in found if (folder / "libtpu.so").is_file()), "")
    )
if not Path(os.environ["TPU_LIBRARY_PATH"]).is_file():
    sys.exit("no libtpu: `make dev` installs it on Linux x86-64")

# ``train`` is not installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from dyntok_jax.config import load_config, read_config
from dyntok_jax.dynamic_model import step_layout
from dyntok_jax.generation import lookup, programs
from dyntok_jax.large_vocabulary.exact import ExactIndex
from dyntok_jax.merging.device import merge_device
from dyntok_jax.merging.device_tokens import empty_tokens
from dyntok_jax.models.classifier import Classifier
from dyntok_jax.models.decoder import Decoder, DecoderConfig
from dyntok_jax.models.decoder_step import UnrolledDecoder, step_shapes, unrolled
from dyntok_jax.models.encoder import Encoder, EncoderConfig
from dyntok_jax.models.kv_cache import KeyValues
from dyntok_jax.models.layers import abstract_params
from dyntok_jax.models.lora import abstract_lora
from dyntok_jax.sampling import Plan, Sampling
from dyntok_jax.sharding import (
    batch_sharding,
    compiled_forward,
    gathered,
    make_mesh,
    param_shardings,
    replicated,
)
from dyntok_jax.tasks.registry import TASKS
from train.lora_config import LoraRun
from train.lora_task import LoraTask
from train.optim import make_optimizer, optimizer_shardings
from train.step import State, make_step
from train.task_batches import TaskBatch

ROOT = Path(__file__).parents[1]
CONFIG = load_config(ROOT / "configs" / "tpu.yaml")


def shapes_of_params(module: Any, mesh: Any) -> Any:
    """Shapes and shardings of a module's parameters."""
    return shapes_of(abstract_params(module), mesh)


def shapes_of(abstract: Any, mesh: Any) -> Any:
    """Shapes and shardings of parameters."""
    return jax.tree.map(
        lambda box, sharding: jax.ShapeDtypeStruct(box.value.shape, jnp.float32, sharding=sharding),
        abstract,
        param_shardings(abstract, mesh),
        is_leaf=lambda leaf: hasattr(leaf, "names"),
    )


def lower_forward(module: Any, mesh: Any, batch: int, length: int, unique: int) -> Any:
    """The sharded forward of a module at these sizes, from shapes alone."""
    params = shapes_of_params(module, mesh)
    width, whole, split = module.config.width, replicated(mesh), batch_sharding(mesh)
    return compiled_forward(module, mesh, gathered).lower(
        params,
        jax.ShapeDtypeStruct((unique, width), jnp.float32, sharding=whole),
        jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=split),
        jax.ShapeDtypeStruct((batch, length), jnp.bool_, sharding=split),
        (),
    )


def xlm_r_base(mesh: Any) -> Any:
    """The encoder forward at full size."""
    module = Encoder(EncoderConfig(), jnp.dtype(CONFIG.dtype), CONFIG.remat)
    return lower_forward(module, mesh, batch=256, length=128, unique=8192)


def xlm_r_base_lora_step(mesh: Any) -> Any:
    """A step of an adapter's training by its config, of 32 sentences of 128 tokens."""
    os.environ["UNER"] = "uner"
    run = read_config(LoraRun, ROOT / "configs" / "lora" / "uner_xlmr.yaml")
    mesh = make_mesh(run.compute.mesh, mesh.devices.flatten())
    labels, dtype = len(TASKS[run.task].labels), jnp.dtype(run.compute.dtype)
    module = Classifier(EncoderConfig(), "token", labels, dtype, run.compute.remat)
    abstract: Any = abstract_params(module)
    paths = ["stack/layers/attention/query", "stack/layers/attention/value"]
    lora = abstract_lora(abstract["model"], paths, run.lora.rank)
    abstract_trained = {"lora": lora, "head": abstract["head"]}
    trained, where = shapes_of(abstract_trained, mesh), param_shardings(abstract_trained, mesh)
    optimizer, schedule = make_optimizer(run.training.optimizer, 1000)
    whole: Any = replicated(mesh)

    def placed(leaf: Any, sharding: Any = whole) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    moments = optimizer_shardings(optimizer, trained, where, mesh)
    state = State(
        trained,
        jax.tree.map(placed, jax.eval_shape(optimizer.init, trained), moments),
        placed(jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))),
        placed(jnp.int32(0)),
    )
    split, text = batch_sharding(mesh), (run.sequences, run.max_length)
    kinds = (jnp.int32, jnp.bool_, jnp.int32)
    arrays: list[Any] = [jax.ShapeDtypeStruct(text, kind, sharding=split) for kind in kinds]
    rows: Any = jax.ShapeDtypeStruct((2048, module.config.width), jnp.float32, sharding=whole)
    # What the loss reads of its task, without weights and examples.
    task: Any = SimpleNamespace(run=run, module=module, mesh=mesh)
    task.loss = partial(LoraTask.loss, task)
    step: Any = make_step(task, optimizer, schedule, State(where, moments, whole, whole))
    frozen = {"model": shapes_of(abstract["model"], mesh)}
    return step.lower(state, placed(jnp.bool_(True)), frozen, TaskBatch(rows, *arrays))


def mistral_7b(mesh: Any) -> Any:
    """The decoder forward at full size."""
    module = Decoder(DecoderConfig(), jnp.dtype(CONFIG.dtype), CONFIG.remat)
    return lower_forward(module, mesh, batch=8, length=2048, unique=4096)


def mistral_7b_prefill(mesh: Any, tokens: int = 2048) -> Any:
    """Reading 8 prompts, by default of 2048 tokens, with room for as many more."""
    module = Decoder(DecoderConfig(), jnp.dtype(CONFIG.dtype))
    split, width = batch_sharding(mesh), module.config.width
    return programs.prefill.lower(
        shapes_of_params(module, mesh),
        jax.ShapeDtypeStruct((8192, width), jnp.float32, sharding=replicated(mesh)),
        jax.ShapeDtypeStruct((8, tokens), jnp.int32, sharding=split),
        jax.ShapeDtypeStruct((8, tokens), jnp.bool_, sharding=split),
        module=module,
        mesh=mesh,
        room=2 * tokens,
    )


def mistral_7b_decode(mesh: Any, draft: int = 0, large: int = 0) -> Any:
    """The loop of steps of 8 sequences over 4096 tokens each, drawing from the whole vocabulary.

    With drafts without penalties, which do not go together; from a large vocabulary by its exact
    index, among 64 candidates.
    """
    module = UnrolledDecoder(DecoderConfig(), jnp.dtype(CONFIG.dtype))
    config, split = module.config, batch_sharding(mesh)

    def batched(shape: tuple[int, ...], dtype: Any, sharding: Any = split) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    cut = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "model"))
    heads = 8, config.kv_heads
    past = KeyValues(
        batched((*heads, config.head_width, 4096), module.dtype, cut),
        batched((*heads, 4096, config.head_width), module.dtype, cut),
    )
    vocabulary = NamedSharding(mesh, PartitionSpec("model"))
    size = large or config.vocab_size
    rows = batched((size, config.width), jnp.float32, vocabulary)
    search = programs.WholeVocabulary(rows)
    if large:
        search = ExactIndex(rows, None, None, large, mesh)
    state = programs.State(
        (past,) * config.layers,
        batched((8,), jnp.int32),
        batched((8,), jnp.int32),
        batched((8,), jnp.bool_),
        batched((8, 0 if draft else size), jnp.bool_),
        batched((8,), jax.eval_shape(jax.random.key, 0).dtype),
        batched((), jnp.int32, replicated(mesh)),
    )
    ends = batched((1,), jnp.int32, replicated(mesh))
    count = batched((), jnp.int32, replicated(mesh))
    inputs = (
        _step_shapes(module, mesh),
        rows,
        search,
        programs.Rules(Sampling(0.7, 0.9, 0.1, 1.1, 0.0), ends),
        state,
    )
    plan = Plan(greedy=False, top_k=50, nucleus=True, penalized=not draft)
    how: dict[str, Any] = {"module": module, "mesh": mesh, "plan": plan, "chunk": 16}
    how["k"] = 64 if large else 1
    if not draft:
        return programs.several.lower(*inputs, count, **how)
    history = lookup.History(batched((8, 8192), jnp.int32), batched((8,), jnp.int32))
    return lookup.several.lower(*inputs, history, count, count, **how, size=draft)


def mistral_7b_step_params(mesh: Any) -> Any:
    """Laying parameters out for the steps."""
    module = UnrolledDecoder(DecoderConfig(), jnp.dtype(CONFIG.dtype))
    return step_layout(module, mesh).lower(shapes_of_params(Decoder(module.config), mesh))


def _step_shapes(module: UnrolledDecoder, mesh: Any) -> Any:
    """Shapes and shardings of a step's parameters."""
    abstract = step_shapes(module)
    made = jax.eval_shape(
        lambda params: unrolled(params, module.config, module.dtype),
        shapes_of_params(Decoder(module.config), mesh),
    )
    plain = nn.meta.unbox(abstract)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, plain, made))
    return jax.tree.map(
        lambda leaf, cut: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=cut),
        made,
        param_shardings(abstract, mesh),
    )


def merge_samples(mesh: Any) -> Any:
    """The merge step over rows that are merged by themselves, split over the mesh."""
    return _lower_merge(256, 128, batch_sharding(mesh))


def merge_batch(mesh: Any) -> Any:
    """The merge step over a whole batch as one row, on every chip."""
    return _lower_merge(1, 32 * 128, replicated(mesh))


def _lower_merge(rows: int, length: int, sharding: Any) -> Any:
    tokens = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        empty_tokens(rows, length),
    )
    limit = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=sharding)
    return merge_device.lower(tokens, limit, limit)


CASES: dict[str, Callable[[Any], Any]] = {
    "xlm_r_base": xlm_r_base,
    "xlm_r_base_lora_step": xlm_r_base_lora_step,
    "mistral_7b": mistral_7b,
    "mistral_7b_prefill": mistral_7b_prefill,
    "mistral_7b_prefill_long": partial(mistral_7b_prefill, tokens=16_384),
    "mistral_7b_decode": mistral_7b_decode,
    "mistral_7b_lookup": partial(mistral_7b_decode, draft=7),
    "mistral_7b_large": partial(mistral_7b_decode, large=1_000_000),
    "mistral_7b_step_params": mistral_7b_step_params,
    "merge_samples": merge_samples,
    "merge_batch": merge_batch,
}


def main(names: list[str]) -> None:
    """Compile the named cases."""
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name="v4:2x2x4", chip_config_name="megacore"
    )
    mesh = make_mesh(CONFIG.mesh, topology.devices)
    for name in names:
        start = time.perf_counter()
        memory = CASES[name](mesh).compile().memory_analysis()
        found = {
            "case": name,
            "devices": mesh.size,
            "kind": topology.devices[0].device_kind,
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "seconds": round(time.perf_counter() - start, 1),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
