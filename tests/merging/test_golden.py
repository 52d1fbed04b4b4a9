"""Every merge that the original implementation recorded, and its rules for pairs and pre-tokens.

Where this project follows the paper instead, tables say from which merge on and why.
"""

from __future__ import annotations

import gzip
import json
import unicodedata
from bisect import bisect_right
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from dyntok_jax.merging import device_tokens
from dyntok_jax.merging.batch import DynamicBatch, merge
from dyntok_jax.merging.budget import Budget
from dyntok_jax.merging.naive import merge_naive
from dyntok_jax.merging.punctuation import PunctuationRule
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary, unit_numbers
from dyntok_jax.text.byte_level import SPLIT_PATTERN, to_byte_chars, to_bytes
from dyntok_jax.text.layouts import (
    BaseTokens,
    pair_layout,
    prompt_layout,
    text_layout,
    words_layout,
)
from dyntok_jax.types import Token

EVERYTHING = 2**31 - 1

# In the original, bytes that are not UTF-8 merge with whatever stands beside them (B1), two tokens
# of white space merge across pre-tokens and two line breaks never do (B24), and white space at
# the end of a word (a carriage return, U+3000) belongs to it, because it asks whether the *joined
# string* is one word. Here boundaries are positions. The number is that of the first other merge.
DEPARTURES = {
    "mlm_mistral_zh": (247, "B1"),
    "mlm_xlmrlike_zh": (212, "B1"),
    "nli_mistral_zh": (131, "B1"),
    "edge_mlm_mistral": (3, "B24, B1"),
    "edge_mlm_xlmrlike": (4, "B24, B1"),
    "edge_word_mistral": (54, "joined string, B1"),
    "edge_word_hyphen_xlmrlike": (27, "joined string, B1"),
}
# The original's `sentence` never crosses a space (B2): its recorded merges are those of words.
BOUNDARIES = {
    "pretokens": Boundary.PRETOKEN,
    "word": Boundary.WORD,
    "word_hyphen": Boundary.WORD_HYPHEN,
    "sentence": Boundary.WORD,
}
FILES = [
    *(
        f"mlm_{name}_{lang}"
        for name in ("mistral", "xlmrlike")
        for lang in ("en", "de", "tr", "zh")
    ),
    "mlm_focus_de_de",
    *(f"nli_xlmrlike_{lang}" for lang in ("en", "de", "tr")),
    *(f"nli_mistral_{lang}" for lang in ("en", "zh")),
    *(f"ner_xlmrlike_{lang}" for lang in ("en", "de", "pt", "zh", "tr")),
    "ner_mistral_en",
    *(
        f"boundary_{boundary}_{name}_{lang}"
        for boundary in ("word", "word_hyphen", "sentence")
        for name in ("mistral", "xlmrlike")
        for lang in ("en", "tr")
    ),
    *("mmlu_mistral_list", "mmlu_xlmrlike_list", "mmlu_mistral_dict_maxlen100"),
    *("order_reversed_xlmrlike_en", "order_first4_xlmrlike_en", "big128_mistral_en"),
    *("edge_mlm_mistral", "edge_mlm_xlmrlike", "edge_ner_mistral", "edge_ner_xlmrlike"),
    *("edge_word_mistral", "edge_word_hyphen_xlmrlike"),
]


@pytest.fixture(scope="module")
def recorded(shared: Path) -> Callable[[str], Any]:
    """Content of a recorded file, by name."""

    def read(name: str) -> Any:
        with gzip.open(shared / "golden" / "merges" / f"{name}.json.gz") as file:
            return json.load(file)

    return read


@pytest.fixture(scope="module")
def byte_level(shared: Path, tmp_path_factory: pytest.TempPathFactory):
    """The frozen byte-level tokenizers (mistral, xlmrlike, focus_de), by name."""

    @cache
    def load(name: str) -> BaseTokenizer:
        source = shared / "golden" / "tokenizers" / f"{name}_byte" / "tokenizer.json.gz"
        folder = tmp_path_factory.mktemp(name)
        (folder / "tokenizer.json").write_bytes(gzip.decompress(source.read_bytes()))
        return BaseTokenizer.from_folder(folder)

    return load


@pytest.fixture(scope="module")
def punctuation(byte_level):
    return cache(lambda name: PunctuationRule(byte_level(name).vocabulary()))


@pytest.fixture(scope="module", autouse=True)
def few_lengths():
    """Two padded lengths for all files, so that few programs are compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_tokens, "LENGTHS", (1024, 4096, 2**16))
        yield


def lay_out(
    tokenizer: BaseTokenizer, given: Any, options: dict[str, Any], boundary: Boundary
) -> list[BaseTokens]:
    """Our layout for the original's options, which it takes as rows or as columns."""
    keys = {"mmlu": ["prompt"], "ner": ["tokens"], "nli": ["premise", "hypothesis"]}
    task = next((task for task in ("mmlu", "ner", "nli") if options.get(task)), "mlm")
    columns = []
    for key in keys.get(task, ["text"]):
        rows = given[key] if isinstance(given, dict) else given
        columns.append([row[key] if isinstance(row, dict) else row for row in rows])
    # The original does not truncate pairs before merging (B6).
    length = None if task == "nli" else options["max_length"]
    layout = {"mmlu": prompt_layout, "ner": words_layout, "nli": pair_layout}.get(task, text_layout)
    return layout(tokenizer, *columns, boundary, length)


def spelled(tokens: list[Token], tokenizer: BaseTokenizer) -> list[str]:
    """Tokens as the original writes them: special ones by name."""
    names = {i: name for name, i in tokenizer.special_ids.items()}
    return [names[token] if isinstance(token, int) else token for token in tokens]


def word_numbers(merged: DynamicBatch) -> list[list[int | None]]:
    """The word of each token, as the original writes it: None for special tokens."""
    numbers = [np.asarray(sequence.word_ids).tolist() for sequence in merged.sequences]
    return [[None if number < 0 else number for number in sequence] for sequence in numbers]


def unit_lists(sequences: list[BaseTokens]) -> list[list[str]]:
    """The tokens of each unit that holds a pair, in reading order."""
    lists: list[list[str]] = []
    for sequence in sequences:
        last = None
        for token, unit in zip(sequence.tokens, sequence.units.tolist(), strict=True):
            if isinstance(token, int):
                continue
            if unit != last:
                lists.append([])
            lists[-1].append(token)
            last = unit
    return [tokens for tokens in lists if len(tokens) > 1]


def test_no_recorded_file_is_left_out(shared: Path):
    manifest = json.loads((shared / "golden" / "merges" / "manifest.json").read_text("utf-8"))
    assert sorted(f"{name}.json.gz" for name in FILES) == sorted(manifest["files"])


@pytest.mark.parametrize("name", FILES)
def test_recorded_merges(name: str, recorded, byte_level, punctuation):
    record = recorded(name)
    tokenizer = byte_level(record["tokenizer"])
    boundary = BOUNDARIES[record["boundary"]]
    rule = punctuation(record["tokenizer"]) if boundary is Boundary.WORD_HYPHEN else None
    sequences = lay_out(tokenizer, record["input"], record["call_kwargs"], boundary)
    assert [spelled(s.tokens, tokenizer) for s in sequences] == record["base_tokens"]

    allowed = rule.allows if rule else None
    _, naive = merge_naive(unit_lists(sequences), EVERYTHING, EVERYTHING, allowed)
    host = merge(sequences, Budget(), rule=rule, backend="host", trace=True)
    device = merge(sequences, Budget(), rule=rule, backend="device", trace=True)
    assert host.merges == device.merges == [naive]
    expected = [(left, right, count) for left, right, count, _ in record["merges"]]
    same, _ = DEPARTURES.get(name, (len(expected), ""))
    assert naive[:same] == expected[:same]
    if name in DEPARTURES:
        assert naive[same] != expected[same]
    else:
        assert len(naive) == len(expected)

    compared = 0
    for m, output in record["outputs"].items():
        if name in DEPARTURES and int(m) > same:
            continue
        compared += 1
        for backend in ("host", "device"):
            merged = merge(sequences, Budget(merges=int(m)), rule=rule, backend=backend)
            tokens = [spelled(sequence.tokens, tokenizer) for sequence in merged.sequences]
            assert tokens == output["tokens"], (m, backend)
            assert [len(sequence.tokens) for sequence in merged.sequences] == output["seq_lengths"]
            if record["call_kwargs"].get("ner"):
                assert word_numbers(merged) == output["word_ids"], (m, backend)
    assert compared >= 1


def is_utf8(token: str) -> bool:
    try:
        to_bytes(token).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("name", ["mistral", "xlmrlike"])
def test_recorded_pairs(name: str, recorded, punctuation):
    record = recorded("is_valid_pair")[name]
    specials = set(record["special_token_map"])
    rule = punctuation(name)
    assert rule.tokens == set(record["punctuation_tokens"]) - specials

    # Special tokens are never text here, and bytes that are not UTF-8 are B1.
    rows = [row for row in record["rows"] if specials.isdisjoint(row[:2])]
    rows = [row for row in rows if is_utf8(row[0] + row[1])]
    assert len(rows) > 2000

    def joined(a: str, b: str, boundary: Boundary) -> bool:
        units = unit_numbers([a, b], boundary)
        return bool(units[0] == units[1])

    for a, b, pretoken, word, word_hyphen, *_ in rows:
        text = to_bytes(a + b).decode("utf-8")
        refused_white_space = text.isspace() and ignores_white_space(a + b)
        assert joined(a, b, Boundary.PRETOKEN) == bool(pretoken) or refused_white_space, (a, b)
        if refused_white_space:  # B24
            assert joined(a, b, Boundary.PRETOKEN) and not pretoken
        ours = joined(a, b, Boundary.WORD)
        ours_hyphen = ours and rule.allows(a, b)
        if text.isspace():
            # No word at all: the original refuses it. Here white space begins a word wherever a
            # character of it begins; the one pair cuts a separator of three bytes in two.
            assert not word and ours == (not is_utf8(a))
        elif starts_with_space(b):
            # The joined string, which the original asks, may still be one word.
            assert not ours and not ours_hyphen
        else:
            assert (ours, ours_hyphen) == (bool(word), bool(word_hyphen)), (a, b)


def ignores_white_space(joined: str) -> bool:
    """The original's first rule, by which some pairs never merge."""
    return any(c in "ĉĠĊ" for c in joined[1:]) and (
        joined == "ĊĊ" or any(c not in "ĉĠĊ" for c in joined)
    )


def starts_with_space(token: str) -> bool:
    return to_bytes(token).decode("utf-8", errors="replace")[:1].isspace()


def test_recorded_pretokens(recorded):
    def pretokens(text: str) -> list[str]:
        characters = [to_byte_chars(character) for character in text]
        units = unit_numbers(characters, Boundary.PRETOKEN)
        starts = [0, *(np.flatnonzero(np.diff(units)) + 1).tolist(), len(characters)]
        return ["".join(characters[a:b]) for a, b in pairwise(starts) if a < b]

    rows = recorded("pretokenize")["rows"]
    assert len(rows) == 380
    for text, plain, with_space in rows:
        assert pretokens(text) == plain, text
        assert pretokens(" " + text if text else text) == with_space, text


TRUNCATED = [
    *(("mlm_list", "mlm"), ("mlm_dict", "mlm"), ("none_dict", "none")),
    *(("nli_list", "nli"), ("nli_dict", "nli")),
    *(("ner_list", "ner"), ("ner_dict", "ner"), ("ner_longword_dict", "ner")),
    *(("mmlu_list", "mmlu"), ("mmlu_dict", "mmlu"), ("mmlu_and_nli(list of str)", "mmlu")),
    ("mlm_and_ner", "error"),
]


@pytest.mark.parametrize(("form", "task"), TRUNCATED)
def test_recorded_truncation(form: str, task: str, recorded, byte_level):
    cases = [case for case in recorded("truncation_matrix")["cases"] if case["form"] == form]
    assert len(cases) == 12
    if task == "error":  # two tasks at once: an assertion there, two layouts here
        assert all(case["output"].get("tokens") is None for case in cases)
        return
    for case in cases:
        tokenizer = byte_level(case["tokenizer"])
        length, output = case["kwargs"]["max_length"], case["output"]
        sequences = lay_out(tokenizer, case["input"], case["kwargs"], Boundary.PRETOKEN)
        merged = merge(sequences, Budget(merges=case["m"]))
        tokens = [spelled(sequence.tokens, tokenizer) for sequence in merged.sequences]
        whole = lay_out(tokenizer, case["input"], {**case["kwargs"], "max_length": 10**6},
                        Boundary.PRETOKEN)  # fmt: skip
        assert [s.truncated for s in sequences] == [
            len(w.ids) - len(s.ids) for w, s in zip(whole, sequences, strict=True)
        ]
        if form in ("mlm_dict", "none_dict"):
            # B4: these forms return nothing. Here they are the rows of mlm_list.
            assert output["tokens"] == []
            assert all(len(s.ids) <= length and s.ids[-1] == 2 for s in sequences)
        elif task == "mlm" and length < 128:
            # B5: a cut there takes the closing token, and so other merges follow.
            assert any(s.truncated for s in sequences)
            if case["m"] == 0:
                closed = [[*t[:-1], "</s>"] for t in output["tokens"]]
                assert tokens == closed
        else:
            # B6: pairs are not cut, whatever the length; so lay_out does not ask for it.
            assert tokens == output["tokens"]
            if task == "ner":
                assert word_numbers(merged) == output["word_ids"]
            if task == "nli" and length < 128:
                assert any(len(s.ids) > length for s in sequences)


def test_recorded_character_classes(shared: Path):
    """The split engine's classes; only code points that Unicode has named since may differ."""
    path = shared / "golden" / "merges" / "unicode_classes.json"
    runs = json.loads(path.read_text("utf-8"))["runs"]
    points = [*range(0x32400), *range(0xE0000, 0xE0200), *range(0xFFFFE, 0x100002), 0x10FFFF]
    run_starts = [start for start, _ in runs]
    recorded_classes = {
        point: runs[bisect_right(run_starts, point) - 1][1]
        for point in points
        if not 0xD800 <= point < 0xE000
    }
    points = list(recorded_classes)
    classes = character_classes(points)
    others = [point for point in points if classes[point] != recorded_classes[point]]
    assert {recorded_classes[point] for point in others} <= {"O"}
    assert {classes[point] for point in others} <= {"L", "N"}
    if unicodedata.unidata_version == "14.0.0":
        assert {unicodedata.category(chr(point)) for point in others} <= {"Cn"}
    # Unicode has grown by some thousand characters a version.
    assert len(others) < 0.1 * len(points)


def character_classes(points: list[int]) -> dict[int, str]:
    """L, N, S, O or SPACE for each code point, by where the split pattern cuts around it.

    Letters join to the ``a`` before them, numbers to the ``1``, others to the ``!`` after them,
    and so does a space; white space stands alone.
    """
    split = Split(Regex(SPLIT_PATTERN), behavior="removed", invert=True)

    def joined(before: str, points: list[int]) -> list[tuple[bool, bool]]:
        """Whether each is joined to the character before it, and to the ``!`` after it."""
        text = "".join(f"{before}{chr(point)}!" for point in points)
        starts = {start for _, (start, _) in split.pre_tokenize_str(text)}
        return [(i + 1 not in starts, i + 2 not in starts) for i in range(0, len(text), 3)]

    names = {(True, False): "L", (False, True): "O", (False, False): "N or S"}
    classes = {p: names[ends] for p, ends in zip(points, joined("a", points), strict=True)}
    undecided = [point for point in points if classes[point] == "N or S"]
    ends = zip(undecided, joined("1", undecided), strict=True)
    classes |= {point: "N" if number else "S" for point, (number, _) in ends}
    assert classes[0x20] == "O"
    return classes | {0x20: "SPACE"}
