"""Sampled tokenizers: size, bytes, reproducibility, and what the scores are."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dyntok_jax.text.byte_level import BYTE_TO_CHAR, to_text
from dyntok_jax.types import DyntokError
from train.unigram import SamplerConfig, count_substrings, sample_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind at all.",
    "Der Großvater erzählte den Kindern jeden Abend Geschichten über ferne Länder.",
    "Старый мост через реку построили более ста лет назад, и он стоит до сих пор.",
    "เด็กๆ กำลังเล่นอยู่ในสวนสาธารณะใกล้บ้าน",
]
SPECIALS = {"<s>": 0, "</s>": 2, "<mask>": 900}
SMALL = SamplerConfig(mean=600, std=0, minimum=500, maximum=700)


def sample(seed: int, config: SamplerConfig = SMALL):
    return sample_tokenizer([count_substrings(TEXTS, config)], SPECIALS, config, seed)


def test_scores_are_counts_times_lengths_of_substrings_at_every_fourth_character():
    scores = count_substrings(["walked walked", "ждать"], SamplerConfig())
    # The space is spelled by a character of two bytes.
    assert scores["Ġwalked"] == 2 * 8
    assert scores["Ġwa"] == 2 * 4
    assert scores["ked"] == 2 * 3
    assert "walked" not in scores
    # The fifth character of " ждать" begins at byte 1 + 3 * 2.
    assert scores["ÑĤÑĮ"] == 8
    assert max(map(len, scores)) == 11


def test_substrings_are_shorter_than_16_bytes():
    scores = count_substrings(["a" * 40], SamplerConfig())
    assert max(map(len, scores)) == 15


@pytest.mark.parametrize("seed", range(3))
def test_has_the_requested_size_and_covers_all_bytes(seed):
    tokenizer = sample(seed)
    assert tokenizer.get_vocab_size() == 600
    assert set(BYTE_TO_CHAR.values()) <= tokenizer.get_vocab().keys()
    assert [tokenizer.token_to_id(name) for name in SPECIALS] == [0, 1, 2]


@pytest.mark.parametrize("text", [*TEXTS, "\x00 £ \U0001f600\n\n\tx", "literal <s> and <mask>"])
def test_spells_any_text_without_special_tokens(text):
    encoding = sample(0).encode(text)
    assert to_text(encoding.tokens) == " " + text
    assert min(encoding.ids) >= len(SPECIALS)


def test_differs_from_step_to_step_and_reproduces_under_a_seed():
    vocabularies = [sample(seed).to_str() for seed in (1, 2, 1)]
    assert vocabularies[0] == vocabularies[2] != vocabularies[1]


def test_size_is_drawn_within_its_bounds():
    config = SamplerConfig(mean=600, std=100, minimum=550, maximum=650)
    sizes = [sample(seed, config).get_vocab_size() for seed in range(12)]
    assert min(sizes) >= 550 and max(sizes) <= 650 and len(set(sizes)) > 4


def test_without_noise_the_best_substrings_are_taken_with_their_probabilities():
    config = SamplerConfig(mean=500, minimum=500, maximum=500, noise=0)
    scores = count_substrings(TEXTS, config)
    tokenizer = sample_tokenizer([scores], SPECIALS, config, 0)
    fixed = len(SPECIALS) + 256
    ranked = [t for t in sorted(scores, key=lambda t: -scores[t]) if len(t) > 1]
    chosen = [tokenizer.id_to_token(i) or "" for i in range(fixed, 500)]
    runs = [token for token in chosen if set(token) <= set("ĠĊĉ")]
    assert len(runs) == 3 * 3 * 15
    found = [token for token in chosen if token not in runs]
    assert min(scores[t] for t in found) >= scores[ranked[len(found)]]
    logs = dict(map(tuple, json.loads(tokenizer.to_str())["model"]["vocab"]))
    best = found[0]
    assert np.isclose(logs[best], np.log(scores[best] / sum(scores.values())))
    assert {logs[run] for run in runs} == {0.0}


def test_earlier_texts_count_too():
    config = SamplerConfig(mean=440, minimum=440, maximum=440, noise=0)
    now = count_substrings(["zebra"], config)
    earlier = count_substrings(["quagga " * 50, *TEXTS], config)
    tokenizer = sample_tokenizer([now, earlier], SPECIALS, config, 0)
    assert tokenizer.token_to_id("Ġquagga") is not None


def test_substrings_whose_noisy_probability_is_not_positive_come_last():
    substrings = len([t for t in count_substrings(TEXTS, SMALL) if len(t) > 1])
    size = 3 + 256 + 3 * 3 * 15 + substrings - 20
    config = SamplerConfig(mean=size, minimum=size, maximum=size, noise=1, noise_spread=0)
    logs = [score for _, score in json.loads(sample(0, config).to_str())["model"]["vocab"]]
    chosen = logs[3 + 256 + 3 * 3 * 15 :]
    assert chosen == sorted(chosen, reverse=True)
    assert 0.4 < np.mean(np.array(chosen) == -100_000.0) < 0.6


def test_says_what_does_not_fit():
    with pytest.raises(DyntokError, match="no room for special tokens"):
        sample(0, SamplerConfig(mean=300, minimum=300, maximum=300))
    with pytest.raises(DyntokError, match="give more texts or smaller sizes"):
        sample(0, SamplerConfig())
    with pytest.raises(DyntokError, match="maximum: 4 is not at least 5"):
        SamplerConfig(minimum=5, maximum=4)
    with pytest.raises(DyntokError, match="stride: 0 is not at least 1"):
        SamplerConfig(stride=0)
    with pytest.raises(DyntokError, match="noise: inf is no finite number"):
        SamplerConfig(noise=math.inf)
