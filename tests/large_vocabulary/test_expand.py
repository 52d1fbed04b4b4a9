import gzip
import json
from collections import Counter
from itertools import pairwise

import pytest
from real_sentences import sentences
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from dyntok_jax.large_vocabulary.expand import new_tokens, pretokens, trainer_tokenizer
from dyntok_jax.large_vocabulary.vocabulary import base_tokens
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.text.boundaries import Boundary, unit_numbers
from dyntok_jax.text.byte_level import BYTE_TO_CHAR, CHAR_TO_BYTE
from dyntok_jax.types import DyntokError

TEXTS = [
    "low lower lowest, newer wider",
    "the lower the newer the wider: low  widest 1999 don't",
    "Straße Straßen größer, größte",
    "मौसम अच्छा है। आज मौसम",
]


def by_hand(words, own, count):
    """Byte pair encoding from its definition: the most frequent pair, ties by the order of ids."""
    alphabet = sorted(BYTE_TO_CHAR.values())
    ids = {char: i for i, char in enumerate(alphabet)}
    splits = {word: list(word) for word in words}
    new = [char for char in alphabet if char not in own]
    count += len(new)
    while len(new) < count:
        pairs = Counter()
        for word, split in splits.items():
            for pair in pairwise(split):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda p: (-pairs[p], ids[p[0]], ids[p[1]]))
        if pairs[best] < 2:
            break
        token = best[0] + best[1]
        ids.setdefault(token, len(ids))
        if token not in own and token not in new:
            new.append(token)
        for split in splits.values():
            at = 0
            while at < len(split) - 1:
                if (split[at], split[at + 1]) == best:
                    split[at : at + 2] = [token]
                at += 1
    return new


@pytest.mark.parametrize("family", ["byte_bpe", "fallback_bpe", "unigram"])
def test_new_tokens_are_the_merges_that_the_model_lacks(family, tiny_tokenizers):
    tokenizer = BaseTokenizer(*tiny_tokenizers[family])
    texts = TEXTS if family == "byte_bpe" else TEXTS[:1]
    own = {token for token in base_tokens(tokenizer) if isinstance(token, str)}
    lacking, count = len(BYTE_TO_CHAR.keys() - set(map(CHAR_TO_BYTE.get, own))), 3
    words = Counter(w for t in texts for w in pretokens(trainer_tokenizer(tokenizer), t))
    found = new_tokens(texts, tokenizer, tokenizer.vocab_size + lacking + count)
    assert found == by_hand(words, own, count)


def test_bytes_that_the_model_cannot_read_are_in_no_token():
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted({BYTE_TO_CHAR[byte] for text in TEXTS for byte in text.encode()})
    trainer = trainers.BpeTrainer(vocab_size=0, initial_alphabet=alphabet, show_progress=False)
    own.train_from_iterator([], trainer)
    tokenizer = BaseTokenizer(json.loads(own.to_str()))
    found = new_tokens(TEXTS, tokenizer, len(alphabet) + 40, 1)
    assert len(found) == 40 and all(set(token) <= set(alphabet) for token in found)


def units(tokenizer, text):
    """The units that merging sees."""
    (pieces,) = tokenizer.encode([text])
    joined = {}
    numbers = unit_numbers(pieces.tokens, Boundary.PRETOKEN).tolist()
    for number, token in zip(numbers, pieces.tokens, strict=True):
        joined[number] = joined.get(number, "") + token
    return list(joined.values())


def test_the_trainer_reads_the_pretokens_of_merging(tiny_tokenizers):
    tokenizer = BaseTokenizer(*tiny_tokenizers["byte_bpe"])
    trained = trainer_tokenizer(tokenizer)
    for text in [*TEXTS, "  x = {'a': 1}\n\n\tif  ok:\r\n", "我们 去公园。ไป"]:
        assert pretokens(trained, text) == units(tokenizer, text)
    sentencepiece = BaseTokenizer(*tiny_tokenizers["fallback_bpe"])
    assert pretokens(trainer_tokenizer(sentencepiece), "low lower") == ["Ġlow", "Ġlower"]


def test_a_real_sentencepiece_tokenizer_reads_as_the_trainer(shared):
    path = shared / "golden" / "tokenizers" / "mistral_orig" / "tokenizer.json.gz"
    tokenizer = BaseTokenizer(json.loads(gzip.decompress(path.read_bytes())))
    trained = trainer_tokenizer(tokenizer)
    texts = sentences(shared / "data" / "text" / "ntrex")
    for text, pieces in zip(texts, tokenizer.encode(texts), strict=True):
        assert "".join(pretokens(trained, text)) == "".join(pieces.tokens)
    assert pretokens(trained, texts[0])[:3] == ["ĠWelsh", "ĠAMs", "Ġworried"]


def test_options(tiny_tokenizers):
    tokenizer = BaseTokenizer(*tiny_tokenizers["byte_bpe"])
    size = tokenizer.vocab_size + 7
    every = new_tokens(TEXTS, tokenizer, size, 1)
    short = new_tokens(TEXTS, tokenizer, size, 1, max_token_bytes=2)
    assert max(map(len, short)) == 2 < max(map(len, every))
    with pytest.raises(DyntokError, match=r"the texts give \d+ new tokens, 9000 are needed"):
        new_tokens(TEXTS, tokenizer, tokenizer.vocab_size + 9000)
    with pytest.raises(DyntokError, match=f"has {tokenizer.vocab_size} tokens"):
        new_tokens(TEXTS, tokenizer, 100)


def test_a_tokenizer_that_changes_words_is_refused(tiny_tokenizers):
    tokenizer = BaseTokenizer(*tiny_tokenizers["wordpiece"])
    with pytest.raises(DyntokError, match="cannot follow"):
        new_tokens(TEXTS, tokenizer, tokenizer.vocab_size + 8)
