import json
import shutil

import numpy as np
import pytest

from dyntok_jax.dynamic_model import load
from dyntok_jax.generation.opening import open_vocabulary
from dyntok_jax.large_vocabulary.vocabulary import (
    MANIFEST,
    TOKENS,
    LargeVocabulary,
    base_tokens,
    ids_by_spelling,
    write_vocabulary,
)
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.layouts import messages_layout, text_layout
from dyntok_jax.types import DyntokError, Rows

NEW = ["Ġquick", "ĠquickĠ", "ox", "Ġj", "ĠGroÃŁ"]


@pytest.fixture
def written(tmp_path, tiny_tokenizers):
    """A vocabulary on the tiny byte-level tokenizer, and that tokenizer."""
    tokenizer = BaseTokenizer(*tiny_tokenizers["byte_bpe"])
    write_vocabulary(tmp_path / "large", tokenizer, NEW, "tiny", {"min_frequency": 2})
    return tmp_path / "large", tokenizer


def test_the_models_own_tokens_come_first(written):
    folder, tokenizer = written
    large = LargeVocabulary.load(folder, tokenizer)
    size = tokenizer.vocab_size
    assert large.base_size == size and large.tokens[size:] == NEW
    assert {i for i in large.tokens if isinstance(i, int)} == set(tokenizer.special_ids.values())
    for i, token in enumerate(large.tokens[:size]):
        assert token == i if isinstance(token, int) else tokenizer.id_of(token) == i
    assert large.row_tokens == large.tokens
    assert large.manifest["min_frequency"] == 2


def test_texts_with_special_tokens_are_read(written):
    folder, tokenizer = written
    large = LargeVocabulary.load(folder, tokenizer)
    size = tokenizer.vocab_size
    (base,) = text_layout(tokenizer, ["The quick brown fox, Großvater"])
    ids = large.tokenize(base)
    opening, closing = tokenizer.opening_id, tokenizer.closing_id
    assert (ids[0], ids[-1]) == (opening, closing)
    assert "".join(str(large.tokens[i]) for i in ids[1:-1]) == "TheĠquickĠbrownĠfox,ĠGroÃŁvater"
    assert size + NEW.index("Ġquick") in ids and size + NEW.index("ĠGroÃŁ") in ids
    assert len(ids) < len(base.ids)
    (chat,) = messages_layout(tokenizer, [[{"role": "user", "content": "<|im_start|> quick"}]])
    found = large.tokenize(chat)
    assert found.count(opening) == list(chat.ids).count(opening) == 2


def test_of_tokens_of_the_same_bytes_the_tokenizers_own_is_found(tiny_tokenizers):
    tokenizer = BaseTokenizer(*tiny_tokenizers["fallback_bpe"])
    own = base_tokens(tokenizer)
    ids = ids_by_spelling([*own, "ĠnewĠtoken", 7, "ĠnewĠtoken"], tokenizer)
    spelled = [token for token in own if isinstance(token, str)]
    assert len(set(spelled)) < len(spelled)
    assert all(ids[token] == tokenizer.id_of(token) for token in spelled)
    assert ids["ĠnewĠtoken"] == len(own) and 7 not in ids


def test_second_tokens_of_the_same_bytes_keep_rows_of_their_own(tiny_tokenizers, tmp_path):
    tokenizer = BaseTokenizer(*tiny_tokenizers["fallback_bpe"])
    write_vocabulary(tmp_path / "large", tokenizer, ["ĠTheĠ"], "tiny", {})
    large = LargeVocabulary.load(tmp_path / "large", tokenizer)
    byte = tokenizer.tokenizer_json["model"]["vocab"]["<0x61>"]
    letter = tokenizer.tokenizer_json["model"]["vocab"]["a"]
    assert large.tokens[byte] == large.tokens[letter] == "a"
    assert (large.row_tokens[byte], large.row_tokens[letter]) == (byte, "a")
    ids = large.tokenize(text_layout(tokenizer, ["a"])[0])
    assert byte not in ids


def test_the_same_tokens_give_the_same_files(written, tmp_path):
    folder, tokenizer = written
    write_vocabulary(tmp_path / "again", tokenizer, NEW, "tiny", {"min_frequency": 2})
    write_vocabulary(tmp_path / "other", tokenizer, NEW[::-1], "tiny", {"min_frequency": 2})
    for name in (TOKENS, MANIFEST):
        again, other = ((tmp_path / f / name).read_bytes() for f in ("again", "other"))
        assert (folder / name).read_bytes() == again != other


@pytest.mark.parametrize("at", [5, -1])
def test_an_edited_file_is_refused(written, at):
    folder, tokenizer = written
    tokens = json.loads((folder / TOKENS).read_text("utf-8"))
    tokens[at] += "x"
    (folder / TOKENS).write_text(json.dumps(tokens), "utf-8")
    with pytest.raises(DyntokError, match=r"vocabulary\.json: edited"):
        LargeVocabulary.load(folder, tokenizer)


def test_damage_and_other_models_are_refused(written, tiny_tokenizers, tmp_path):
    folder, tokenizer = written
    other = BaseTokenizer(*tiny_tokenizers["fallback_bpe"])
    with pytest.raises(DyntokError, match="built for tiny"):
        LargeVocabulary.load(folder, other)
    with pytest.raises(DyntokError, match="no large vocabulary there"):
        LargeVocabulary.load(tmp_path, tokenizer)
    with pytest.raises(DyntokError, match="is no empty folder"):
        write_vocabulary(folder, tokenizer, NEW, "tiny", {})
    for name in (TOKENS, MANIFEST):
        damaged = tmp_path / f"damaged {name}"
        shutil.copytree(folder, damaged)
        (damaged / name).write_text("[1, 2")
        with pytest.raises(DyntokError, match="damaged vocabulary"):
            LargeVocabulary.load(damaged, tokenizer)


def test_ids_without_a_token_are_their_ids(tiny_tokenizers):
    tokenizer_json = json.loads(json.dumps(tiny_tokenizers["byte_bpe"].json))
    last = tokenizer_json["added_tokens"][-1]
    tokenizer_json["added_tokens"].append(last | {"id": 600, "content": "<|far|>"})
    tokens = base_tokens(BaseTokenizer(tokenizer_json))
    gaps = np.flatnonzero([isinstance(t, int) for t in tokens])
    assert {540, 600} <= set(gaps.tolist()) and all(tokens[i] == i for i in gaps)


@pytest.mark.parametrize("size", ["many", None, [3]])
def test_a_manifest_without_a_size_is_damaged(written, size):
    folder, tokenizer = written
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    (folder / MANIFEST).write_text(json.dumps(manifest | {"base_size": size}), "utf-8")
    with pytest.raises(DyntokError, match="damaged vocabulary"):
        LargeVocabulary.load(folder, tokenizer)


def test_rows_of_a_model_of_other_width_are_refused(written, decoder):
    folder, _ = written
    model = load(str(decoder), "fvt")
    large = LargeVocabulary.load(folder, model.tokenizer)
    table = np.zeros((len(large.tokens), 3), np.float32)
    large.rows_file.predict(large.row_tokens, _Table(table), {"model": "wide"})
    with pytest.raises(DyntokError, match=r"rows of 3 numbers, made for wide; .* have 16"):
        open_vocabulary(folder, model)


class _Table:
    def __init__(self, table):
        self.table = table

    def rows(self, tokens):
        return Rows(self.table[: len(tokens)])
