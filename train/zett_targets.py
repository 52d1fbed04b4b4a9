"""Tokenizers that are not sampled anew for each batch of a run of ZeTT's training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from dyntok_jax.model_store import resolve
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import DyntokError
from train.data import DataConfig, TextBatch, batches
from train.new_vocabulary import ROLES, TokenizerFolder, match, roles_of
from train.unigram import SamplerConfig, count_substrings, sample_tokenizer
from train.zett_batches import LanguageBatch, LanguagePreparation, Target, as_they_are, padded

logger = logging.getLogger(__name__)


def short_names(targets: Sequence[str]) -> dict[str, str]:
    """Of each target as many of its last path parts as tell all of them apart.

    Raises:
        DyntokError: two are the same.
    """
    parts = [Path(target).parts for target in targets]
    for count in range(1, 1 + max(map(len, parts))):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return dict(zip(targets, names, strict=True))
    raise DyntokError(f"zett.targets: one is named twice ({', '.join(targets)})")


def target_batches(
    names: Sequence[str],
    tokenizer: BaseTokenizer,
    prepare: LanguagePreparation,
    data: DataConfig,
    count: int,
    seed: int,
) -> dict[str, list[LanguageBatch]]:
    """Batches of the same held-out texts by each tokenizer.

    Args:
        names: sizes of Unigram vocabularies, which are sampled from the texts, and names or
            folders of tokenizers.
        tokenizer: the model's own.
        prepare: how batches are made.
        data: the texts.
        count: batches of each.
        seed: of the texts and of what is sampled.

    Raises:
        DyntokError: a tokenizer that cannot be had, or has no mask token where one is needed;
            a size that does not go with the texts.
    """
    enough = max(count, -(-prepare.sampler.texts // data.texts))
    stream = batches(replace(data, workers=0), as_they_are, seed=seed)
    drawn: list[TextBatch] = [loaded.batch for loaded in islice(stream, enough)]
    found = {}
    for name in names:
        if name.isdecimal():
            target = _sampled(int(name), drawn, prepare, seed)
        else:
            target = named(name, tokenizer, prepare.mask_id)
        room = padded(len(target.tokens))
        made = (prepare.batch(batch, target, room) for batch in drawn[:count])
        found[name] = [item[0] for item in made if item is not None]
    return found


def _sampled(
    size: int, drawn: Sequence[TextBatch], prepare: LanguagePreparation, seed: int
) -> Target:
    sampler: SamplerConfig = replace(prepare.sampler, mean=size, std=0, minimum=size, maximum=size)
    counts = [count_substrings(batch.texts, sampler) for batch in drawn]
    sampled = sample_tokenizer(counts, prepare.specials, sampler, seed)
    return Target.sampled(sampled, prepare.specials)


@dataclass(frozen=True)
class _Encode:
    """Texts to rows, in worker processes too."""

    tokenizer: BaseTokenizer
    rows: dict[int, int]

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        pieces = self.tokenizer.encode(list(texts))
        return [[self.rows[i] for i in piece.ids if i in self.rows] for piece in pieces]


def named(name: str, tokenizer: BaseTokenizer, mask_id: int | None) -> Target:
    """A tokenizer with its special tokens first, those of a role before others of the same row.

    Args:
        name: the tokenizer's name or folder.
        tokenizer: the model's own.
        mask_id: the mask token, as an id of the model; None where none is needed.

    Raises:
        DyntokError: it cannot be had, or has no mask token where one is needed.
    """
    new = TokenizerFolder.read(resolve(name))
    matched = match(new, TokenizerFolder(tokenizer, {}, roles_of(tokenizer, {})))
    gaps = set(matched.gaps)
    of_roles = [new.roles[role] for role in ROLES if role in new.roles]
    specials = [i for i in dict.fromkeys([*of_roles, *matched.kept]) if i in matched.kept]
    others = [i for i in range(len(matched.tokens)) if i not in matched.kept and i not in gaps]
    order = [i for i in specials if i not in gaps] + others
    tokens = [matched.tokens[i] for i in order]
    if mask_id is not None and mask_id not in tokens:
        raise DyntokError(f"objective zett: the tokenizer {name} has no mask token")
    around = {tokenizer.opening_id, tokenizer.closing_id, *tokenizer.prompt_ids}.difference(tokens)
    if lacking := [special for special, i in tokenizer.special_ids.items() if i in around]:
        said = "the tokenizer %s has no %s: texts stand without what the model knows around them"
        logger.warning(said, name, " and no ".join(lacking))
    return Target(tokens, _Encode(new.tokenizer, {i: row for row, i in enumerate(order)}))
