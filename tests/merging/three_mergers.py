"""The naive, the host and the device merger on the same units, which must agree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import jax
import numpy as np

from dyntok_jax.merging.device import DeviceMerges, merge_device
from dyntok_jax.merging.device_tokens import device_tokens, read_merges
from dyntok_jax.merging.host import merge_host
from dyntok_jax.merging.naive import merge_naive
from dyntok_jax.merging.punctuation import PunctuationRule
from dyntok_jax.types import Merge

UNLIMITED = 2**31 - 1
Units = Sequence[Sequence[str]]


def merge_three_ways(
    units: Units,
    max_merges: int = UNLIMITED,
    target_saving: int = UNLIMITED,
    rule: PunctuationRule | None = None,
) -> tuple[list[list[str]], list[Merge]]:
    """The merged units and the merges, after a check that all three mergers give both."""
    allowed = rule.allows if rule else None
    naive, merges = merge_naive(units, max_merges, target_saving, allowed)
    tokens, numbers = flat(units)
    kept, host_merges = merge_host(tokens, numbers, max_merges, target_saving, allowed)
    assert host_merges == merges
    assert cut(units, kept) == naive
    merged = on_device([units], [max_merges], [target_saving], rule)
    assert read_merges(merged, 0, tokens) == merges
    begins = np.asarray(merged.begins[0])
    assert cut(units, begins) == naive
    assert begins[len(tokens) :].all()
    return naive, merges


def on_device(
    rows: Sequence[Units],
    max_merges: Sequence[int],
    target_saving: Sequence[int],
    rule: PunctuationRule | None = None,
) -> DeviceMerges:
    """The rows merged independently of each other on the device, as numpy arrays."""
    tokens = device_tokens([flat(units) for units in rows], rule)
    limits = np.asarray(max_merges, np.int32), np.asarray(target_saving, np.int32)
    return jax.device_get(merge_device(tokens, *limits))


def flat(units: Units) -> tuple[list[str], np.ndarray]:
    """The tokens in reading order, and the number of each one's unit."""
    numbers = np.repeat(np.arange(len(units)), [len(unit) for unit in units])
    return [token for unit in units for token in unit], numbers.astype(np.int32)


def cut(units: Units, kept: np.ndarray) -> list[list[str]]:
    """The units with their tokens joined from each True to the next."""
    cut_units, start = [], 0
    for unit in units:
        begins = [*np.flatnonzero(kept[start : start + len(unit)]).tolist(), len(unit)]
        assert begins[0] == 0
        cut_units.append(["".join(unit[a:b]) for a, b in pairwise(begins)])
        start += len(unit)
    return cut_units
