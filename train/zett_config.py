"""Settings of ZeTT's training, and what they must agree with."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dyntok_jax.config import at_least
from dyntok_jax.embed.hypernet import HypernetConfig
from dyntok_jax.models.weights import LoadedModel
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import DyntokError
from train.data import DataConfig
from train.optim import OptimizerConfig
from train.unigram import SamplerConfig

logger = logging.getLogger(__name__)

MASK_NAMES = ("<mask>", "[MASK]")


@dataclass(frozen=True)
class ZettConfig:
    """The objective; defaults are the published ones for XLM-R.

    Attributes:
        identity_steps: first steps, in which the hypernetwork learns the model's own rows.
        identity_rows: tokens of such a step, as far as the vocabulary has them.
        identity_only: there are no other steps; any model will do, one without a head too.
        sequences: B of all later steps.
        length: T of these.
        packed: texts stand behind each other in a sequence; else each is one, and cut off there.
        overlap_weight: of the loss that keeps rows near others.
        overlap_with: which: of tokens of the model's vocabulary near the model's own, or, with a
            ``tokenizer``, all near those that the hypernetwork begins with (n-shot transfer).
        train_backbone: train the model as well (n-shot transfer); without weight decay, or without
            identity steps, in which only that would change it.
        tokenizer: name or folder of the tokenizer of all later steps (n-shot transfer); by default
            one is sampled for each.
        sampler: the sampled tokenizers; of no effect on training with a ``tokenizer``.
        language_table: give the hypernetwork a row for each of several languages; one that is
            started from keeps its own table.
        evaluation_batches: batches of held-out text.
        targets: tokenizers by which held-out text is read as well, the same in every evaluation:
            names or folders, and sizes of Unigram vocabularies, which are sampled once from it.
    """

    identity_steps: int = 10_000
    identity_rows: int = 16_384
    identity_only: bool = False
    sequences: int = 128
    length: int = 128
    packed: bool = True
    overlap_weight: float = 0.5
    overlap_with: Literal["own", "start"] = "own"
    train_backbone: bool = False
    tokenizer: str | None = None
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    language_table: bool = True
    evaluation_batches: int = 4
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least(self, identity_steps=0, identity_rows=1, sequences=1, overlap_weight=0)
        at_least(self, evaluation_batches=1)


def mask_id(tokenizer: BaseTokenizer) -> int | None:
    """Id of the token that stands for a hidden one, if the tokenizer has it."""
    names = tokenizer.special_ids
    return next((names[name] for name in MASK_NAMES if name in names), None)


def check(
    config: ZettConfig,
    shape: HypernetConfig,
    model: LoadedModel,
    tokenizer: BaseTokenizer,
    data: DataConfig,
    held_out: DataConfig | None,
    languages: Sequence[str],
    parts: int,
) -> None:
    """Compare the settings of a run with each other.

    Args:
        config: the objective.
        shape: of the hypernetwork.
        model: the base model.
        tokenizer: its own.
        data: texts of training.
        held_out: texts of evaluations.
        languages: names of the rows of the table of languages.
        parts: devices over which a batch is cut.

    Raises:
        DyntokError: all that does not fit, in one line.
    """
    problems = []
    if len(model.source.input) < shape.vocab_size:
        rows = len(model.source.input)
        problems.append(f"the tokenizer has {shape.vocab_size} ids, the model {rows} rows")
    if not config.identity_only:
        problems += _language_problems(config, model, tokenizer, parts)
        if shape.languages:
            problems += _table_problems(shape.languages, languages, data, held_out)
    if held_out is not None and config.identity_only:
        problems.append("held_out is of texts, and with identity_only there are none")
    if config.targets and held_out is None:
        problems.append("targets are for held-out texts, and there are none")
    if config.train_backbone and config.identity_only:
        problems.append("train_backbone trains on texts, and with identity_only there are none")
    if config.overlap_with == "start":
        if not config.tokenizer:
            problems.append("overlap_with start is of one tokenizer's rows: give it by tokenizer")
        sources = [*data.sources, *(held_out.sources if held_out else ())]
        if languages and len({source.language for source in sources}) > 1:
            problems.append("overlap_with start is of one language's rows, and texts have several")
        if config.identity_steps:
            problems.append("overlap_with start keeps rows as identity_steps found them: give 0")
    if config.tokenizer and config.identity_only:
        problems.append("tokenizer reads texts, and with identity_only there are none")
    if problems:
        raise DyntokError(f"objective zett: {'; '.join(problems)}")


def check_steps(config: ZettConfig, steps: int, optimizer: OptimizerConfig) -> None:
    """Compare the first steps with the run's length and its optimizer.

    Args:
        config: the objective.
        steps: of the run.
        optimizer: of the run.

    Raises:
        DyntokError: texts are never reached, or the optimizer would change what it should not.
    """
    first = config.identity_steps
    if config.identity_only or not first:
        return
    if steps <= first:
        raise DyntokError(
            f"zett.identity_steps: all of the run's {steps} steps are among these {first}, none "
            "is of texts; set zett.identity_only: true if that is meant"
        )
    if first % optimizer.accumulate:
        raise DyntokError(
            f"zett.identity_steps: {first} are no multiple of optimizer.accumulate, "
            f"{optimizer.accumulate}: an update would be of both kinds of batches"
        )
    if config.train_backbone and optimizer.weight_decay:
        raise DyntokError(
            "zett.train_backbone: optimizer.weight_decay would shrink the model in steps that do "
            "not train it; set zett.identity_steps: 0 or no decay"
        )
    if first not in itertools.accumulate(phase.steps for phase in optimizer.phases):
        logger.warning(
            "zett.identity_steps: no phase of the optimizer ends after these %d steps", first
        )


def _language_problems(
    config: ZettConfig, model: LoadedModel, tokenizer: BaseTokenizer, parts: int
) -> Iterator[str]:
    longest = model.architecture.max_length
    if config.sequences % parts:
        yield f"{config.sequences} sequences do not split over data×fsdp = {parts} devices"
    if not 4 <= config.length <= longest:
        yield f"length {config.length}: the model reads 4 to {longest} tokens"
    if model.kind == "encoder" and model.architecture.head != "masked_lm":
        yield "an encoder needs a masked-language-modelling head, or identity_only: true"
    elif model.kind == "encoder" and mask_id(tokenizer) is None:
        yield f"the tokenizer has no mask token ({' or '.join(MASK_NAMES)})"


def _table_problems(
    rows: int, languages: Sequence[str], data: DataConfig, held_out: DataConfig | None
) -> Iterator[str]:
    """What keeps batches from having a row of the table of languages."""
    if len(languages) != rows:
        yield f"hypernet.start has {rows} languages and does not say which"
        return
    for name, texts in (("data", data), ("held_out", held_out)):
        found = {source.language for source in texts.sources} if texts else set()
        if texts and len(found) > 1 and not texts.one_language:
            yield f"a table of languages needs {name}.one_language: true"
        if found - set(languages):
            missing = ", ".join(sorted(found - set(languages)))
            yield f"{name} is of {missing}, which the table of languages lacks"
