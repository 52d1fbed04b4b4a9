"""Prompts that do not fit, and choices in batches."""

from __future__ import annotations

import numpy as np

from dyntok_jax.scoring import cut_left, right_aligned
from dyntok_jax.text.layouts import BaseTokens


def test_a_prompt_is_cut_at_its_beginning_behind_what_stands_before_it():
    base = BaseTokens(
        np.array([1, 10, 11, 12, 13], np.int32),
        [1, "a", "b", "c", "d"],
        np.array([0, 1, 1, 2, 2], np.int32),
    )
    cut = cut_left(base, prefix=1, room=3)
    assert cut.tokens == [1, "c", "d"] and cut.ids.tolist() == [1, 12, 13]
    assert cut.units.tolist() == [0, 2, 2] and cut.truncated == 2
    assert cut_left(base, prefix=1, room=5) is base


def test_targets_stand_at_the_end():
    assert right_aligned([[5], [6, 7], []]).tolist() == [
        [-1, -1, -1, 5],
        [-1, -1, 6, 7],
        [-1, -1, -1, -1],
    ]
    assert right_aligned([[5], [6]]).tolist() == [[5], [6]]
