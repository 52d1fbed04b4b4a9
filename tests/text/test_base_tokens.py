"""Texts to base tokens, for each family of tokenizers: the model's own ids, spelled in bytes."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
from model_text import model_text
from tokenizers import Tokenizer

from dyntok_jax.model_store import list_models, pull
from dyntok_jax.text.base_tokens import BaseTokenizer, Pieces
from dyntok_jax.text.byte_level import to_byte_chars, to_text
from dyntok_jax.types import DyntokError

FAMILIES = ("byte_bpe", "fallback_bpe", "unigram", "wordpiece")
TEXTS = [
    "The dogs' jump over 24 lazy foxes; Großväter über Straßen.",
    "  two  spaces, a\ttab and a line break\r\n\n and trailing white space \u3000 ",
    "孩子 ต好☃ каждый день 👩‍👩‍👧 e\u0301 ﬁ ½ ① Ａ",
    "\x00\x01 control \x7f\u200b\ufeff\u202e characters",
    "def f(x): return {'a': [1, 2]}  # ▁ Ġ ## <0x0A> '",
    "a",
    " ",
    "",
]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def content(family: str, tiny_tokenizers) -> dict[str, Any]:
    """A tokenizer.json that a test may change."""
    return copy.deepcopy(tiny_tokenizers[family].json)


def own(content: dict[str, Any], text: str) -> list[int]:
    """The ids that the tokenizers library gives."""
    return Tokenizer.from_str(json.dumps(content)).encode(text, add_special_tokens=False).ids


def spelled_text(content: dict[str, Any], text: str) -> str:
    return model_text(content, Tokenizer.from_str(json.dumps(content)), text)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_the_models_own_and_tokens_spell_the_text(content: dict, text: str):
    tokenizer = BaseTokenizer(content)
    (pieces,) = tokenizer.encode([text])
    assert pieces.ids == own(content, text)
    assert len(pieces.tokens) == len(pieces.ids)
    assert to_text(pieces.tokens) == spelled_text(content, text)
    assert "" not in pieces.tokens


def test_texts_of_a_batch_do_not_touch_each_other(content: dict):
    tokenizer = BaseTokenizer(content)
    assert tokenizer.encode(TEXTS) == [tokenizer.encode([text])[0] for text in TEXTS]
    assert tokenizer.encode([]) == []


def test_spelling_by_hand(tiny_tokenizers):
    def tokens(family: str, text: str) -> list[str]:
        return BaseTokenizer(tiny_tokenizers[family].json).encode([text])[0].tokens

    assert tokens("byte_bpe", "The dog\n☃") == ["The", "Ġdog", "Ċ", "â", "ĺ", "ĥ"]
    # The token of "e" and a space straddles two words; the snowman is three byte tokens.
    assert tokens("fallback_bpe", "The dog\n☃") == ["Ġ", "Th", "eĠ", "dog", "Ċ", "â", "ĺ", "ĥ"]
    # Unknown: the snowman and the Thai letter beside it are one token.
    assert tokens("unigram", "The ☃ต dog") == ["Ġ", "T", "he", "Ġ", "âĺĥà¸ķ", "Ġdog"]
    # Unknown words are spelled as they reach the model: no accents, spaces around Chinese.
    assert tokens("wordpiece", "The dog☃É 好") == ["Ġthe", "Ġdogâĺĥe", "Ġå¥½"]


def test_unknown_words_keep_their_place(tiny_tokenizers):
    tokenizer = BaseTokenizer(tiny_tokenizers["wordpiece"].json)
    (pieces,) = tokenizer.encode(["好the☃ \x00 好 " + "q" * 101])
    assert pieces.tokens == ["Ġå¥½", "Ġtheâĺĥ", "Ġå¥½", "Ġ" + "q" * 101]
    assert pieces.ids == [tokenizer.unk_id] * 4


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("normalizer", [None, {"type": "NFKC"}])
def test_unknown_characters_of_bpe_without_byte_tokens(tiny_tokenizers, fuse: bool, normalizer):
    """``㍿`` becomes four characters under NFKC, of which 株 is made known here."""
    content = copy.deepcopy(tiny_tokenizers["fallback_bpe"].json)
    model = content["model"]
    pieces = [piece for piece in model["vocab"] if not piece.startswith("<0x")] + ["社"]
    model |= {
        "vocab": {piece: i for i, piece in enumerate(pieces)},
        "byte_fallback": False,
        "fuse_unk": fuse,
    }
    if normalizer:
        content["normalizer"]["normalizers"].append(normalizer)
    tokenizer = BaseTokenizer(content)
    for text in ["☃ต", "a ☃ต b好", "㍿", "x㍿☃ ☃"]:
        (found,) = tokenizer.encode([text])
        assert found.ids == own(content, text)
        assert to_text(found.tokens) == spelled_text(content, text)
    start = time.perf_counter()
    (found,) = tokenizer.encode(["the☃ต\n" * 50_000])
    assert time.perf_counter() - start < 30  # one word for the model: no pre-tokenizer
    assert to_text(found.tokens) == " " + "the☃ต\n" * 50_000
    (found,) = tokenizer.encode(["☃ต the"])
    unknown = ["âĺĥà¸ķ"] if fuse else ["âĺĥ", "à¸ķ"]
    assert found.tokens[: 1 + len(unknown)] == ["Ġ", *unknown]


def test_literal_special_tokens_are_text(content: dict):
    tokenizer = BaseTokenizer(content)
    names = [*tokenizer.special_ids, "<s>", "</s>", "[CLS]", "<|im_end|>"]
    for name in names:
        for text in (name, f"the {name} dog", f"{name}{name}", f"the{name}"):
            (pieces,) = tokenizer.encode([text])
            specials = set(tokenizer.special_ids.values()) - {tokenizer.unk_id}
            assert specials.isdisjoint(pieces.ids), text
            assert to_text(pieces.tokens) == spelled_text(without_specials(content), text)


def test_a_word_of_wordpiece_is_no_special_token(tiny_tokenizers):
    """Where nothing cuts at the brackets."""
    content = copy.deepcopy(tiny_tokenizers["wordpiece"].json)
    content |= {"normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    tokenizer = BaseTokenizer(content)
    (pieces,) = tokenizer.encode(["the [CLS] [SEP]dog [UNK]"])
    assert pieces.ids == own(content, "the") + [tokenizer.unk_id] * 3
    assert pieces.tokens == ["Ġthe", "Ġ[CLS]", "Ġ[SEP]dog", "Ġ[UNK]"]


def without_specials(content: dict[str, Any]) -> dict[str, Any]:
    return content | {"added_tokens": []}


def test_special_tokens(tiny_tokenizers):
    byte_bpe, fallback_bpe, unigram, wordpiece = (
        BaseTokenizer(*tiny_tokenizers[family]) for family in FAMILIES
    )
    # Named by the configuration; the tokenizer itself adds nothing.
    assert (byte_bpe.opening_id, byte_bpe.closing_id, byte_bpe.prompt_ids) == (1, 2, [])
    assert (byte_bpe.pad_id, byte_bpe.unk_id, byte_bpe.vocab_size) == (2, None, 480)
    # By its own template it only opens.
    assert (fallback_bpe.opening_id, fallback_bpe.closing_id) == (1, 2)
    assert (fallback_bpe.prompt_ids, fallback_bpe.pad_id, fallback_bpe.unk_id) == ([1], 2, 0)
    assert (unigram.opening_id, unigram.closing_id, unigram.prompt_ids) == (0, 2, [0])
    assert (unigram.pad_id, unigram.unk_id) == (1, 3)
    assert (wordpiece.opening_id, wordpiece.closing_id, wordpiece.prompt_ids) == (2, 3, [2])
    assert (wordpiece.pad_id, wordpiece.unk_id) == (0, 1)
    assert unigram.special_ids == {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}


def test_special_tokens_without_a_configuration(tiny_tokenizers):
    tokenizer = BaseTokenizer(tiny_tokenizers["byte_bpe"].json)
    assert (tokenizer.opening_id, tokenizer.closing_id) == (0, 0)  # <|endoftext|>, as GPT-2
    assert tokenizer.chat_template is None
    named = {"bos_token": {"content": "<|im_start|>"}, "pad_token": "<|endoftext|>"}
    tokenizer = BaseTokenizer(tiny_tokenizers["byte_bpe"].json, named)
    assert (tokenizer.opening_id, tokenizer.pad_id) == (1, 0)


def test_added_tokens_that_are_not_special_are_kept(content: dict):
    """They stand behind a special token, as in many chat models, and keep their ids."""
    size = Tokenizer.from_str(json.dumps(content)).get_vocab_size()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = {"<|extra|>": True, "<tool>": False, "  ü": False, "日": False}
    content["added_tokens"] += [
        {"id": size + i, "content": name, **flags, "special": special}
        for i, (name, special) in enumerate(added.items())
    ]
    tokenizer = BaseTokenizer(content)
    text = "the <tool>dog  ü日 x"
    (pieces,) = tokenizer.encode([text])
    assert pieces.ids == own(content, text)
    assert {size + 1, size + 2, size + 3} < set(pieces.ids)
    space = " " if content["model"]["type"] == "WordPiece" else ""
    for rank, name in enumerate(["<tool>", "  ü", "日"]):
        spelled = pieces.tokens[pieces.ids.index(size + 1 + rank)]
        assert to_text([spelled]) == space + name
        assert tokenizer.id_of(spelled) == size + 1 + rank
        assert spelled in tokenizer.vocabulary()
    assert tokenizer.vocab_size == size + 4
    assert tokenizer.special_ids["<|extra|>"] == size
    (pieces,) = tokenizer.encode(["the <|extra|> dog"])
    assert not any(i >= size for i in pieces.ids)


def test_lone_surrogates_are_replacement_characters(content: dict):
    tokenizer = BaseTokenizer(content)
    assert tokenizer.encode(["a\ud800b\udfff"]) == tokenizer.encode(["a\ufffdb\ufffd"])
    assert tokenizer.encode(["\ud83d\ude00"]) == tokenizer.encode(["\ufffd\ufffd"])


@pytest.mark.parametrize("text", ["The dog jumps. ", "好"])
def test_a_line_of_a_megabyte(content: dict, text: str):
    tokenizer = BaseTokenizer(content)
    line = text * (1_000_000 // len(text.encode("utf-8")))
    start = time.perf_counter()
    (pieces,) = tokenizer.encode([line])
    assert time.perf_counter() - start < 30
    assert sum(map(len, pieces.tokens)) == len(spelled_text(content, line).encode("utf-8"))


def test_ids_of_tokens(content: dict):
    tokenizer = BaseTokenizer(content)
    for text in TEXTS:
        (pieces,) = tokenizer.encode([text])
        for i, token in zip(pieces.ids, pieces.tokens, strict=True):
            assert tokenizer.id_of(token) == (None if i == tokenizer.unk_id else i), token
    assert tokenizer.id_of(to_byte_chars("no such token")) is None
    for name in tokenizer.special_ids:
        assert tokenizer.id_of(to_byte_chars(name)) is None
    vocabulary = tokenizer.vocabulary()
    assert len(vocabulary) == tokenizer.vocab_size - len(tokenizer.special_ids)


def test_decompose(tiny_tokenizers):
    """By the model alone, without pre-tokenization."""

    def pieces(family: str, token: str) -> list[str]:
        content = tiny_tokenizers[family].json
        names = {i: name for name, i in Tokenizer.from_str(json.dumps(content)).get_vocab().items()}
        return [names[i] for i in BaseTokenizer(content).decompose(to_byte_chars(token))]

    assert pieces("byte_bpe", "The dog!") == ["The", "Ġdog", "!"]
    assert pieces("fallback_bpe", "The\r") == ["Th", "e", "<0x0D>"]
    assert pieces("unigram", "The dog☃") == ["T", "he", "▁dog", "<unk>"]
    # Behind the first space a word begins, before it one goes on.
    assert pieces("wordpiece", "dog the") == ["##d", "##og", "the"]
    assert pieces("wordpiece", " dog☃") == ["[UNK]"]
    for family in FAMILIES:
        assert pieces(family, "") == []


def test_decompose_reads_bytes_outside_utf8(tiny_tokenizers):
    fallback = BaseTokenizer(tiny_tokenizers["fallback_bpe"].json)
    assert fallback.decompose("å¥a") == [3 + 0xE5, 3 + 0xA5, *fallback.decompose("a")]
    unigram = BaseTokenizer(tiny_tokenizers["unigram"].json)
    assert unigram.decompose("å¥a") == [3, 3, *unigram.decompose("a")]
    assert fallback.id_of("å") == 3 + 0xE5
    assert unigram.id_of("å") is None


def test_a_folder(content: dict, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    plain = BaseTokenizer.from_folder(tmp_path)
    assert plain.encode(TEXTS) == BaseTokenizer(content).encode(TEXTS)
    assert plain.chat_template is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "one"}', "utf-8")
    assert BaseTokenizer.from_folder(tmp_path).chat_template == "one"
    (tmp_path / "chat_template.jinja").write_text("two", "utf-8")
    assert BaseTokenizer.from_folder(tmp_path).chat_template == "two"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no tokenizer.json there"),
        ("{", "not a tokenizer of the tokenizers library"),
        ('{"model": {"type": "BPE"}}', "not a tokenizer of the tokenizers library"),
    ],
)
def test_a_folder_that_cannot_be_read(tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content, "utf-8")
    with pytest.raises(DyntokError) as error:
        BaseTokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", ["{", "[]"])
def test_a_config_that_cannot_be_read_is_named(content: dict, tmp_path: Path, config: str):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(config, "utf-8")
    with pytest.raises(DyntokError, match=r"tokenizer_config.json: not a tokenizer's config"):
        BaseTokenizer.from_folder(tmp_path)


def test_a_tokenizer_that_loses_spaces_is_refused(tiny_tokenizers, tmp_path: Path):
    content = copy.deepcopy(tiny_tokenizers["byte_bpe"].json)
    content["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(DyntokError, match="does not mark spaces"):
        BaseTokenizer.from_folder(tmp_path)


def cached(name: str) -> Path:
    entry = next(entry for entry in list_models() if entry.name == name)
    if not entry.cached:
        pytest.skip(f"{name} is not on this machine (dyntok models pull {name})")
    return pull(name)


def ntrex_lines(shared: Path, number: int) -> list[str]:
    languages = ("en", "de", "sw", "zh", "th", "ar", "ru", "hi")
    return [
        line
        for language in languages
        for line in (shared / "data" / "text" / "ntrex" / f"{language}.txt")
        .read_text("utf-8")
        .splitlines()[: number // len(languages)]
    ]


@pytest.mark.parametrize("name", ["multilingual-e5-small", "smollm2-135m-instruct"])
def test_real_tokenizers_on_real_lines(shared: Path, name: str):
    folder = cached(name)
    lines = ntrex_lines(shared, 200)
    assert len(lines) == 200
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokenizer = BaseTokenizer.from_folder(folder)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoded = tokenizer.encode(lines)
    for line, found in zip(lines, encoded, strict=True):
        assert isinstance(found, Pieces)
        assert found.ids == library.encode(line, add_special_tokens=False).ids
        assert to_text(found.tokens) == model_text(content, library, line)
    with_specials = tokenizer.encode([f"{name} {lines[0]}" for name in tokenizer.special_ids])
    specials = set(tokenizer.special_ids.values())
    assert all(specials.isdisjoint(found.ids) for found in with_specials)
