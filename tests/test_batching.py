"""Buckets, tables of unique tokens, and padding on either side."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from dyntok_jax.batching import (
    BATCH_TOKENS,
    PROMPT_BUCKETS,
    TOKEN_BUCKETS,
    UNIQUE_BUCKETS,
    bucket,
    by_length,
    make_batch,
    padded_length,
)


def test_ids_point_into_the_table_of_unique_tokens():
    batch = make_batch([[0, "a", "b", "a", 2], [0, "b", 2]], "right", 4, 99)
    assert batch.tokens == [0, "a", "b", 2]
    assert batch.ids.shape == batch.mask.shape == (4, 8)
    assert batch.ids[0, :5].tolist() == [0, 1, 2, 1, 3]
    assert batch.mask.sum(axis=1).tolist() == [5, 3, 0, 0]
    assert batch.mask[1, :3].all() and not batch.mask[1, 3:].any()
    assert batch.unique_bucket == UNIQUE_BUCKETS[0]


def test_decoders_are_padded_left():
    batch = make_batch([["a", "b"], ["b"]], "left", 2, 99)
    assert batch.mask[:, -1].all() and batch.mask.sum() == 3
    assert batch.ids[:, -2:].tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(("side", "wanted"), [("right", [3, 1, 0]), ("left", [0, 3, 1])])
def test_numbers_of_tokens_stand_where_the_tokens_do(side, wanted):
    batch = make_batch([["a", "b"], ["c", "d", "e"]], side, 4, 3)
    spread = batch.spread([np.array([3, 1]), np.array([1, 2, 2])])
    assert spread.tolist() == [wanted, [1, 2, 2], [0] * 3, [0] * 3]


def test_no_bucket_exceeds_what_the_model_reads():
    assert make_batch([["a"] * 33], "right", 1, 40).ids.shape == (1, 40)
    assert make_batch([["a"] * 31], "right", 1, 40).ids.shape == (1, 32)


def test_a_special_token_is_not_its_spelling():
    assert make_batch([[1, "1"]], "right", 1, 99).tokens == [1, "1"]


def test_table_is_filled_up_to_its_bucket():
    batch = make_batch([["a", "b", "c"]], "right", 1, 99)
    table = batch.table_ids(np.array([7, 5, 9], np.int32))
    assert table.shape == (UNIQUE_BUCKETS[0],)
    assert table[batch.ids[0, :3]].tolist() == [7, 5, 9]


@pytest.mark.parametrize(("size", "wanted"), [(0, 8), (8, 8), (9, 16), (33, 48), (129, 192)])
def test_bucket_is_the_smallest_that_holds_it(size, wanted):
    assert bucket(size, TOKEN_BUCKETS) == wanted


def test_buckets_waste_at_most_half():
    ratios = [b / a for a, b in pairwise(TOKEN_BUCKETS[2:])]
    assert max(ratios) <= 1.5 and list(TOKEN_BUCKETS) == sorted(set(TOKEN_BUCKETS))


def test_prompts_from_32_tokens_are_padded_by_a_quarter_at_most():
    ratios = [b / a for a, b in pairwise(PROMPT_BUCKETS) if a >= 32]
    assert max(ratios) == 1.25 and set(TOKEN_BUCKETS) <= set(PROMPT_BUCKETS)
    assert padded_length(129, 512, PROMPT_BUCKETS) == 160
    assert padded_length(129, 130, PROMPT_BUCKETS) == 130


def test_batches_of_long_sequences_are_smaller():
    batches = by_length([512] * 9 + [BATCH_TOKENS * 2], 32)
    assert [len(batch) for batch in batches] == [1, 4, 4, 1]
    # 4096 tokens would be 21 sequences of 192, which is rounded down to a power of two.
    assert len(by_length([192] * 40, 32)[0]) == 16


def test_batches_of_similar_length_hold_everything_once():
    lengths = [3, 50, 7, 7, 1, 20]
    batches = by_length(lengths, 2)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert [lengths[i] for batch in batches for i in batch] == [50, 20, 7, 7, 3, 1]
