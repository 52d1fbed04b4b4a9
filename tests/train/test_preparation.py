"""Stretches of text that decoders are trained on: how they open, and what finds no room."""

from __future__ import annotations

import numpy as np
import pytest

from dyntok_jax.text.layouts import prompt_layout
from dyntok_jax.types import DyntokError
from train.data import DataConfig, TextBatch, batches
from train.preparation import Preparation
from train.text_sources import TextSource

LENGTH = 16
SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "In 1999 there were 24 lighthouses on this coast; today only 7 of them are lit.",
    "Two old trams still climb the hill behind the harbour every quarter of an hour.",
]
TEXTS = TextBatch(SENTENCES, ["en"] * len(SENTENCES), 0)


@pytest.fixture
def prepare(folders):
    """Makes the preparation of a decoder with a tokenizer of some family."""

    def make(family: str, sequences: int = 100) -> Preparation:
        return Preparation(
            folders[family], False, sequences, LENGTH, "", (100.0, 100.0), (1.0, 1.0), 0.0, 6, 0
        )

    return make


@pytest.mark.parametrize(("family", "opening"), [("byte_bpe", []), ("fallback_bpe", [1])])
def test_every_stretch_opens_as_a_prompt_does(prepare, family, opening):
    """Without an opening token stretches are the text's own; with one they go on behind it."""
    preparation, room = prepare(family), LENGTH - len(opening)
    whole = prompt_layout(preparation._tokenizer, ["\n".join(SENTENCES)])[0]
    ids = whole.ids[len(opening) :]
    base, dropped = preparation._base(TEXTS)
    assert len(base) == len(ids) // room > 2 and dropped == len(ids) % room
    for sequence, start in zip(base, range(0, len(ids), room), strict=False):
        np.testing.assert_array_equal(sequence.ids, [*opening, *ids[start : start + room]])
        place = start + len(opening)
        assert sequence.tokens == opening + whole.tokens[place : place + room]
        assert not opening or sequence.units[0] < sequence.units[1]
    made = preparation(TEXTS)
    assert made is not None
    batch, tokens, *_ = made
    assert tokens == LENGTH * len(base)
    np.testing.assert_array_equal(batch.base_ids[: len(base)], [part.ids for part in base])
    if opening:  # it stays as it is, and what follows merges
        assert (batch.own[batch.ids[: len(base), 0]] == opening).all()
        assert (batch.last[: len(base), 0] == 0).all()
        assert batch.mask[: len(base)].sum(1).max() < LENGTH


@pytest.mark.parametrize("workers", [0, 1])
def test_too_few_texts_for_a_stretch_are_named(prepare, tmp_path, workers):
    (tmp_path / "en.txt").write_text("the lazy dog\n", "utf-8")
    source = TextSource("en", files=str(tmp_path / "en.txt"))
    preparation = prepare("fallback_bpe")
    count = len(preparation._tokenizer.encode(["the lazy dog\nthe lazy dog"])[0].ids)
    message = rf"its 2 texts have {count} tokens, .* distill\.max_length={LENGTH}: more texts"
    with pytest.raises(DyntokError, match=f"100 batches in a row .*{message}"):
        next(batches(DataConfig((source,), texts=2, workers=workers), preparation, seed=0))


def test_what_finds_no_room_is_of_the_text(prepare):
    base, dropped = prepare("fallback_bpe", sequences=2)._base(TEXTS)
    ids = prepare("fallback_bpe")._tokenizer.encode(["\n".join(SENTENCES)])[0].ids
    assert len(base) == 2 and dropped == len(ids) - 2 * (LENGTH - 1)
