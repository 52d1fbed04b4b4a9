"""Glossary of axes and the types that pass between the stops of the pipeline.

Axes, used alike in shape annotations, einsum letters and logical sharding axes:

    B batch            T tokens of a sequence      U unique tokens of a batch
    S surface-form length; in attention, slots of keys
    N attention heads  K key/value heads           H head width; the hypernetwork's width
    D model width      E width of rows as a hypernetwork or an index reads them
    F feed-forward     I, O width into and out of a linear map
    V vocabulary       C classes; choices, a prompt's own tokens
    L layers           R LoRA rank; in a step of decoding, slots of the newest keys
    M merges, merged tokens           J pairs of a rotation
    P positions of a loss             Q queries of an index
    W words            A tokens that are always among the choices

Letters that a docstring explains are local to it. As logical axes of parameters NH and KH are query
and key/value heads times their width.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

Token = str | int
"""A dynamic token: its bytes spelled in byte characters (see ``text.byte_level``), or, for a
special token, its id in the model's vocabulary. Literal ``<s>`` in a user's text is the string;
the model's own opening token is the int."""


class Rows(NamedTuple):
    """Embedding rows of U tokens.

    Attributes:
        input: (U, D) float32, fed to the model.
        output: (U, D) float32 rows of the output layer, or None where they are the input rows.
        bias: (U,) float32 output bias, or None where the model has none.
    """

    input: np.ndarray
    output: np.ndarray | None = None
    bias: np.ndarray | None = None


class DyntokError(Exception):
    """A mistake in what the user gave: one line that says what, where and what is valid."""


class PromptError(DyntokError):
    """A mistake in one of several prompts.

    Attributes:
        place: the prompt's among all, from 0.
        problem: the mistake, without the place, for those who know the prompt by another name.
    """

    def __init__(self, place: int, problem: str):
        super().__init__(place, problem)  # what a copy is made with
        self.place, self.problem = place, problem

    def __str__(self) -> str:
        return f"prompt {self.place + 1}: {self.problem}"


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` with the valid name nearest to a wrong one; nothing if none is."""
    near = difflib.get_close_matches(name.lower(), list(valid), n=1, cutoff=0.4)
    return f" (did you mean {near[0]!r}?)" if near else ""


class Merge(NamedTuple):
    """One merge of a batch: the pair, and how often it stood there when it was chosen.

    Attributes:
        left, right: the tokens, spelled in byte characters.
        count: adjacent occurrences in the batch, overlapping ones counted (``a a a`` holds two).
    """

    left: str
    right: str
    count: int
