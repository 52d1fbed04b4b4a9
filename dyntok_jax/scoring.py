"""Log-probabilities of choices after a dynamically tokenized prompt, with a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dyntok_jax.batching import bucket, by_length
from dyntok_jax.dynamic_model import DynamicModel
from dyntok_jax.merging.budget import Budget
from dyntok_jax.models.heads import logits
from dyntok_jax.sharding import gathered
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import BaseTokens, keep_last, opened, prompt_layout
from dyntok_jax.types import DyntokError, PromptError, Token

CHOICE_BUCKETS = tuple(4**k for k in range(11))
"""Scored tokens of a choice: 1, 4, 16, and so on."""

SCORED_ROWS = 64
"""Positions whose scores of all V tokens are in memory together."""


@dataclass(frozen=True)
class Scored:
    """Scores of one prompt's choices.

    Attributes:
        scores: sum of the log-probabilities (nats) of each choice's base tokens.
        tokens_static, tokens_dynamic: length of the prompt in base and in dynamic tokens.
        truncated: base tokens cut off the prompt's beginning, to leave room for the longest choice.
    """

    scores: list[float]
    tokens_static: int
    tokens_dynamic: int
    truncated: int


class TargetScores(NamedTuple):
    """How well the model continues each sequence by its last tokens.

    Attributes:
        log_probs: (B,) float32 sum of the tokens' log-probabilities (nats).
        greedy: (B,) bool, whether each of the tokens is the most probable one.
    """

    log_probs: Float[Any, " B"]
    greedy: Bool[Any, " B"]


def score(
    model: DynamicModel,
    items: Sequence[tuple[str, Sequence[str]]],
    reduction: float = 100,
    *,
    boundary: Boundary = Boundary.PRETOKEN,
    kept_words: int = 1,
    batch_size: int = 8,
    max_length: int | None = None,
) -> list[Scored]:
    """Scores (prompt, choices): the prompt is merged alone, the choices are base tokens.

    Prompt and choice are tokenized separately, and no space is put between them. Before the
    prompt stands what the model's own tokenizer puts there; where that is nothing and the prompt
    is empty, a choice follows the opening token, since it must follow something.

    Args:
        model: a decoder.
        items: prompts and their choices.
        reduction: percent of the largest possible saving of the prompt's tokens.
        boundary: what merges do not cross.
        kept_words: so many words at the prompt's end stay in base tokens, see ``keep_last``.
        batch_size: sequences in a batch of the network.
        max_length: cuts prompts; by default, and at most, what the model can read.

    Raises:
        DyntokError: an encoder; see ``DynamicModel.merge``.
        PromptError: a choice that fills the whole length; an empty prompt without an opening token.
    """
    if model.kind != "decoder":
        raise DyntokError(f"{model.name} is an encoder: score needs a decoder (encode takes it)")
    longest = min(max_length or model.max_length, model.max_length)
    scored: list[Scored] = []
    sequences: list[list[Token]] = []
    targets: list[list[int]] = []
    for place, (prompt, choices) in enumerate(items):
        pieces = model.tokenizer.encode_continuations(choices)
        room = longest - max((len(choice.ids) for choice in pieces), default=0)
        if room <= len(model.tokenizer.prompt_ids):
            raise PromptError(
                place,
                f"a choice of {longest - room} tokens leaves no room for a prompt in {longest}",
            )
        (base,) = prompt_layout(model.tokenizer, [prompt], boundary)
        base = cut_left(base, len(model.tokenizer.prompt_ids), room)
        merging = [keep_last(base, kept_words)]
        merged = model.merge(merging, Budget(reduction=reduction), boundary, per_sample=True)
        before = opened(model.tokenizer, merged.sequences[0].tokens, place)
        sequences += [[*before, *choice.tokens] for choice in pieces]
        targets += [choice.ids for choice in pieces]
        static, dynamic = len(base.tokens), len(merged.sequences[0].tokens)
        scored.append(Scored([0.0] * len(pieces), static, dynamic, base.truncated))
    sums = iter(target_scores(model, sequences, targets, batch_size).log_probs.tolist())
    for item in scored:
        item.scores[:] = [next(sums) for _ in item.scores]
    return scored


def cut_left(base: BaseTokens, prefix: int, room: int) -> BaseTokens:
    """Drops a prompt's first tokens: what follows it goes on from its end.

    Args:
        base: the prompt.
        prefix: tokens at its beginning that stay.
        room: tokens that stay in all, at most.
    """
    excess = len(base.tokens) - room
    if excess <= 0:
        return base
    kept = np.r_[0:prefix, prefix + excess : len(base.tokens)]
    tokens = [base.tokens[i] for i in kept]
    return BaseTokens(base.ids[kept], tokens, base.units[kept], truncated=excess)


def target_scores(
    model: DynamicModel,
    sequences: Sequence[Sequence[Token]],
    targets: Sequence[Sequence[int]],
    batch_size: int,
) -> TargetScores:
    """Scores of each sequence's last tokens, on the host.

    Args:
        model: a decoder.
        sequences: dynamic tokens, the scored ones included.
        targets: ids of each sequence's last tokens in the base vocabulary.
        batch_size: sequences in a batch of the network.
    """
    found = TargetScores(np.zeros(len(sequences), np.float32), np.zeros(len(sequences), bool))
    for place in by_length([len(tokens) for tokens in sequences], batch_size):
        batch = model.batch([sequences[i] for i in place])
        wanted = [targets[i] for i in place] + [[]] * (len(batch.ids) - len(place))
        scores = model.forward(batch, choice_scores, right_aligned(wanted), model.output_rows)
        for all_of_them, values in zip(found, jax.device_get(scores), strict=True):
            all_of_them[place] = values[: len(place)]
    return found


def right_aligned(targets: Sequence[Sequence[int]]) -> Int[np.ndarray, "B C"]:
    """Targets padded left with -1."""
    width = bucket(max(map(len, targets)), CHOICE_BUCKETS)
    table = np.full((len(targets), width), -1, np.int32)
    for row, ids in zip(table, targets, strict=True):
        row[width - len(ids) :] = ids
    return table


def choice_scores(
    module: nn.Module,
    rows: Float[Array, "U D"],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    targets: Int[Array, "B C"],
    output_rows: Float[Array, "V D"],
) -> TargetScores:
    """Scores of the sequence's last tokens.

    Args:
        module: a decoder.
        rows, ids, mask: as in ``sharding.forward``; padding is left.
        targets: ids of the last C tokens in the output vocabulary, -1 where a token is not scored.
        output_rows: rows of the output vocabulary.
    """
    return scores_of_hidden(gathered(module, rows, ids, mask), targets, output_rows)


def scores_of_hidden(
    hidden: Float[Array, "B T D"], targets: Int[Array, "B C"], output_rows: Float[Array, "V D"]
) -> TargetScores:
    """Scores of the last tokens, from the hidden states of all."""
    width = targets.shape[1]
    # The token before the first target may lie outside a batch that is all targets.
    hidden = jnp.pad(hidden, ((0, 0), (max(width + 1 - hidden.shape[1], 0), 0), (0, 0)))
    hidden = hidden[:, -width - 1 : -1]

    def at_position(hidden_and_target):
        hidden, target = hidden_and_target
        scores = logits(hidden, output_rows)
        chosen = jnp.take_along_axis(scores, jnp.maximum(target, 0)[:, None], axis=-1)[:, 0]
        log_probs = chosen - jax.nn.logsumexp(scores, axis=-1)
        padding = target < 0
        return jnp.where(padding, 0.0, log_probs), padding | (chosen >= scores.max(axis=-1))

    # A few positions at a time, the batch kept whole, so that it stays split over the mesh.
    together = max(1, SCORED_ROWS // len(hidden))
    positions = (hidden.swapaxes(0, 1), targets.T)
    log_probs, greedy = lax.map(at_position, positions, batch_size=together)
    return TargetScores(log_probs.sum(axis=0), greedy.all(axis=0))
