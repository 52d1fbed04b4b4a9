"""Letters and answers scored behind prompts, of which the tokens are already chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dyntok_jax.batching import by_length
from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.embed.hypernet_rows import CHUNK_SIZES
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary, base_tokens, hash_of
from dyntok_jax.merging.budget import Budget
from dyntok_jax.models.heads import logits
from dyntok_jax.scoring import right_aligned, scores_of_hidden
from dyntok_jax.sharding import gathered
from dyntok_jax.tasks.mmlu import LETTERS
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.layouts import BaseTokens
from dyntok_jax.types import DyntokError, Token
from eval.mmlu_config import OWN
from eval.timing import clocks


def letter_ids(tokenizer: BaseTokenizer) -> list[int]:
    """Ids of the letters with a space before them, without it where that is no single token.

    Raises:
        DyntokError: letters that are no single tokens.
    """
    for texts in ([f" {letter}" for letter in LETTERS], list(LETTERS)):
        found = [pieces.ids for pieces in tokenizer.encode_continuations(texts)]
        if all(len(ids) == 1 for ids in found):
            return [ids[0] for ids in found]
    raise DyntokError("the letters A to D are no single tokens of this model's tokenizer")


class Letters(NamedTuple):
    """Output rows (4, D) and biases (4,) float32 of the letters."""

    rows: Float[np.ndarray, "C D"]
    bias: Float[np.ndarray, " C"]

    @classmethod
    def own(cls, model: DynamicModel, ids: Sequence[int]) -> Letters:
        """The model's own output rows."""
        rows = model.source.take(ids)
        found = rows.input if rows.output is None else rows.output
        return cls(found, np.zeros(len(ids), np.float32))

    @classmethod
    def predicted(cls, model: DynamicModel, ids: Sequence[int]) -> Letters:
        """What the model's row provider predicts for them.

        Raises:
            DyntokError: a model with separate output rows, of which the provider predicts none.
        """
        spelled = model.tokenizer.spelled()
        slots = model.cache.lookup([spelled[i] for i in ids])
        found = jax.tree.map(lambda table: np.asarray(table[slots]), model.cache.tables)
        if found.output is None and model.source.output is not None:
            raise DyntokError(
                f"rows {model.rows}: they predict no output rows, which {model.name} has apart "
                "from its input rows"
            )
        bias = np.zeros(len(ids), np.float32) if found.bias is None else found.bias
        return cls(found.input if found.output is None else found.output, bias)


def vocabulary(name: str, tokenizer: BaseTokenizer) -> LargeVocabulary:
    """The vocabulary of longest prefixes: the model's own (``own``), or that of a folder.

    Raises:
        DyntokError: see ``LargeVocabulary.load``.
    """
    if name != OWN:
        return LargeVocabulary.load(name, tokenizer)
    own = base_tokens(tokenizer)
    return LargeVocabulary(Path(), own, len(own), hash_of(own), {}, tokenizer)


def rehearse(model: DynamicModel, prompts: Sequence[BaseTokens]) -> None:
    """Has rows of merged tokens predicted in groups of every size, which compiles what does it."""
    if model.rows == "base":
        return
    merged = model.merge(prompts[: CHUNK_SIZES[0]], Budget(), per_sample=True).sequences
    tokens = list(dict.fromkeys(token for part in merged for token in part.tokens))
    begin = 0
    for size in CHUNK_SIZES:
        model.cache.lookup(tokens[begin : begin + size])
        begin += size


def answer_scores(
    model: DynamicModel,
    sequences: Sequence[Sequence[Token]],
    targets: Sequence[Sequence[int]],
    letters: Letters,
    batch_size: int,
    compiled: set[tuple[Any, ...]],
) -> tuple[Float[np.ndarray, "N 4"], Float[np.ndarray, " N"], Float[np.ndarray, " 2"]]:
    """Scores of the letters behind each prompt, and the log-probability of the answer's text.

    Args:
        model: a decoder.
        sequences: each prompt with its answer's tokens.
        targets: ids of each answer's tokens in the base vocabulary.
        letters: output rows of the letters.
        batch_size: sequences in a batch of the network.
        compiled: shapes that have run before; new ones run once more, so that the time has no
            compiling in it.

    Returns:
        Scores of the letters, nats of the answers, and the seconds of looking up or predicting rows
        and of the network, as ``timing.clocks`` counts.
    """
    scores = np.zeros((len(sequences), len(LETTERS)), np.float32)
    nats = np.zeros(len(sequences), np.float32)
    seconds = np.zeros(2)
    for place in by_length([len(tokens) for tokens in sequences], batch_size):
        batch = model.batch([sequences[i] for i in place])
        wanted = right_aligned([targets[i] for i in place] + [[]] * (len(batch.ids) - len(place)))
        inputs = wanted, *letters, model.output_rows
        shape = (*batch.ids.shape, batch.unique_bucket, wanted.shape[1])
        if shape not in compiled:
            # With other rows, that cost nothing and leave the cache as it is.
            other = model.with_rows("fvt")
            jax.block_until_ready(other.forward(batch, letters_and_answer, *inputs))
            compiled.add(shape)
        start = clocks()
        found = jax.device_get(model.forward(batch, letters_and_answer, *inputs))
        seconds += clocks() - start
        scores[place], nats[place] = (values[: len(place)] for values in found)
    return scores, nats, seconds


def letters_and_answer(
    module: nn.Module,
    rows: Float[Array, "U D"],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    targets: Int[Array, "B C"],
    letter_rows: Float[Array, "4 D"],
    letter_bias: Float[Array, " 4"],
    output_rows: Float[Array, "V D"],
) -> tuple[jax.Array, Any]:
    """(B, 4) scores of the letters at the prompt's last token, and (B,) nats of what follows.

    Args:
        module: a decoder.
        rows, ids, mask: as in ``sharding.forward``; padding is left.
        targets: ids of the answer's tokens, right-aligned, -1 before them.
        letter_rows, letter_bias: of the letters.
        output_rows: the model's own.
    """
    hidden = gathered(module, rows, ids, mask)
    last = hidden.shape[1] - 1 - (targets >= 0).sum(axis=1)
    at_last = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    scores = logits(at_last, letter_rows, letter_bias)
    return scores, scores_of_hidden(hidden, targets, output_rows).log_probs
