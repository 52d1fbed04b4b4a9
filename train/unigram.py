"""Tokenizers sampled for a training step: Unigram vocabularies of substrings of its texts.

From ZeTT (Minixhofer et al., 2024, section 3.2). A vocabulary is all 256 bytes, runs of white
space, the special tokens of the model, and of all substrings the ones with the highest noisy
probability. Nothing here needs a device, so it runs in worker processes.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from dyntok_jax.config import at_least
from dyntok_jax.text.byte_level import BYTE_TO_CHAR, SPLIT_PATTERN, to_byte_chars
from dyntok_jax.types import DyntokError

NEVER = -100_000.0
"""Log-probability of a substring whose noisy probability is not positive."""

_WHITE_SPACE = "ĠĊĉ"  # space, line break, tab
_SPLIT = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="removed", invert=True)

Scores = Mapping[str, int]
"""Substring in byte characters -> how often it occurs times its length."""


@dataclass(frozen=True)
class SamplerConfig:
    """How tokenizers are sampled; defaults are the published ones.

    Attributes:
        mean, std: of the normal distribution of the vocabulary's size, special tokens counted.
        minimum, maximum: bounds of the size.
        texts: texts whose substrings are counted: those of a step and, as far as these are
            fewer, of the steps before it.
        longest: bytes of the longest substring.
        stride: substrings start at every so many characters of a pre-token.
        noise, noise_spread: the standard deviation of the noise on the probabilities is
            log-normal, with this median and this deviation of its logarithm.
    """

    mean: float = 32_768
    std: float = 0
    minimum: int = 32_768
    maximum: int = 32_768
    texts: int = 2_048
    longest: int = 15
    stride: int = 4
    noise: float = 1e-5
    noise_spread: float = 4

    def __post_init__(self) -> None:
        at_least(self, minimum=1, maximum=self.minimum, texts=1, longest=1, stride=1)
        at_least(self, std=0, noise=0, noise_spread=0)
        for name in ("mean", "std", "noise", "noise_spread"):
            if not math.isfinite(getattr(self, name)):
                raise DyntokError(f"{name}: {getattr(self, name)} is no finite number")


def count_substrings(texts: Iterable[str], config: SamplerConfig) -> Counter[str]:
    """Scores of the substrings of texts; a text is read with a space in front.

    A substring's score is how often it is there times the length in UTF-8 of the characters that
    spell its bytes, as in the published code: two of each byte that is no visible ASCII.
    """
    words: Counter[str] = Counter()
    for text in texts:
        words.update([word for word, _ in _SPLIT.pre_tokenize_str(" " + text)])
    scores: Counter[str] = Counter()
    for word, count in words.items():
        spelled = to_byte_chars(word)
        ends = [0, *itertools.accumulate(len(char.encode()) for char in spelled)]
        for start in _starts(word, config.stride):
            room = min(config.longest, len(spelled) - start)
            for end in range(start + 1, start + room + 1):
                scores[spelled[start:end]] += count * (ends[end] - ends[start])
    return scores


def _starts(word: str, stride: int) -> list[int]:
    """At which byte every so many-th character begins."""
    if word.isascii():
        return list(range(0, len(word), stride))
    starts, at = [], 0
    for i in range(0, len(word), stride):
        starts.append(at)
        at += len(word[i : i + stride].encode("utf-8"))
    return starts


def sample_tokenizer(
    scores: Sequence[Scores], specials: Mapping[str, int], config: SamplerConfig, seed: int
) -> Tokenizer:
    """A Unigram tokenizer in byte-level form, as ``text.zett_conversion`` makes them.

    Special tokens come first, in the order of their ids in the model; a text never spells them.

    Args:
        scores: from :func:`count_substrings`, of the step's texts and of earlier ones.
        specials: the model's special tokens and their ids.
        config: how to sample.
        seed: of size and noise; the same seed gives the same tokenizer.

    Raises:
        DyntokError: a size that leaves no room for bytes and white space, or that the texts do
            not have substrings for.
    """
    rng = np.random.default_rng(seed)
    size = int(np.clip(round(rng.normal(config.mean, config.std)), config.minimum, config.maximum))
    sigma = config.noise * math.exp(rng.normal(0, config.noise_spread))
    total: Counter[str] = Counter()
    for part in scores:
        total.update(part)
    fixed = [(name, 0.0) for name in sorted(specials, key=specials.__getitem__)]
    least = min(total.values(), default=1) / max(sum(total.values()), 1)
    fixed += [(char, math.log(least)) for char in sorted(BYTE_TO_CHAR.values())]
    fixed += [(run, 0.0) for run in _white_space_runs(config.longest)]
    if size < len(fixed):
        raise DyntokError(
            f"sampler: a vocabulary of {size} has no room for special tokens, bytes and white "
            f"space, which are {len(fixed)}"
        )
    taken = {token for token, _ in fixed}
    chosen = _best(total, sigma, taken, size - len(fixed), rng)
    return _unigram(fixed + chosen)


def _white_space_runs(longest: int) -> list[str]:
    """One white-space character, then one or more of one kind; all of them score 0."""
    return list(
        dict.fromkeys(
            first + rest * length
            for rest in _WHITE_SPACE
            for length in range(1, longest + 1)
            for first in _WHITE_SPACE
        )
    )


def _best(
    total: Scores, sigma: float, taken: set[str], count: int, rng: np.random.Generator
) -> list[tuple[str, float]]:
    """The substrings with the highest noisy probability, with its logarithm."""
    values = np.fromiter(total.values(), np.float64, len(total))
    noisy = values / max(values.sum(), 1) + rng.normal(0, sigma, len(values))
    logs = np.full(len(values), NEVER)
    np.log(noisy, out=logs, where=noisy > 0)
    keys = list(total)
    chosen: list[tuple[str, float]] = []
    for i in np.argsort(-logs, kind="stable"):
        if len(chosen) == count:
            break
        token = keys[i]
        if token not in taken and sum(map(token.count, _WHITE_SPACE)) < 2:
            chosen.append((token, float(logs[i])))
    if len(chosen) < count:
        raise DyntokError(
            f"sampler: the texts have {len(chosen)} substrings for a vocabulary that needs "
            f"{count} of them: give more texts or smaller sizes"
        )
    return chosen


def _unigram(vocabulary: list[tuple[str, float]]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram(vocabulary, byte_fallback=False))
    tokenizer.normalizer = normalizers.Prepend(" ")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_SPLIT, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
