"""Fixtures shared by all tests: where real data and models are, if they are there."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

# Most programs here run a few times on tiny arrays: their compilation is what takes time.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jaxtyping import install_import_hook
from shape_checks import CHECKED
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

install_import_hook(CHECKED, "shape_checks.checked")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of recorded outputs and evaluation data (environment variable DYNTOK_SHARED)."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("DYNTOK_SHARED", default))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no recorded outputs at {folder} (set DYNTOK_SHARED)")
    return folder


@pytest.fixture(scope="module")
def optimized() -> Iterator[None]:
    """XLA's optimizations, where large models run for longer than they are compiled."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind at all.",
    "In 1999 there were 24 lighthouses on this coast; today only 7 of them are lit.",
    "Der Großvater erzählte den Kindern jeden Abend Geschichten über ferne Länder.",
    "Die Straßenbahn fährt heute nicht, weil die Brücke über den Fluss gesperrt ist.",
    "Habari ya asubuhi? Watoto wanacheza mpira nje ya nyumba ya babu yao.",
    "def add(a, b):\n\treturn a + b  # (a, b) -> sum\n",
    "Старый мост через реку построили более ста лет назад, и он стоит до сих пор.",
    "孩子们每天早上都去学校学习中文。今天天气很好,我们去公园散步吧!",
    "เด็กๆ กำลังเล่นอยู่ในสวนสาธารณะใกล้บ้าน",
    "كان الأطفال يلعبون في الحديقة بعد المدرسة كل يوم.",
]
LATIN = SENTENCES[:6]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ bos_token + message['role'] + '\n' + message['content'] }}"
    "{{ eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token + 'assistant\n' }}{% endif %}"
)


class TinyTokenizer(NamedTuple):
    """The content of a tokenizer.json and of a tokenizer_config.json."""

    json: dict[str, Any]
    config: dict[str, Any]


@pytest.fixture(scope="session")
def tiny_tokenizers() -> dict[str, TinyTokenizer]:
    """Small tokenizers, one of each family: byte_bpe, fallback_bpe, unigram, wordpiece."""
    return {
        "byte_bpe": TinyTokenizer(_byte_bpe(), _config("<|im_start|>", "<|im_end|>")),
        "fallback_bpe": TinyTokenizer(_fallback_bpe(), _config("<s>", "</s>")),
        "unigram": TinyTokenizer(_unigram(), _config("<s>", "</s>")),
        "wordpiece": TinyTokenizer(_wordpiece(), _config("[CLS]", "[SEP]")),
    }


def _config(opening: str, closing: str) -> dict[str, Any]:
    return {"bos_token": opening, "eos_token": closing, "chat_template": CHAT_TEMPLATE}


def _byte_bpe() -> dict[str, Any]:
    """Byte-level BPE that adds nothing around a text, as SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return json.loads(tokenizer.to_str())


def _fallback_bpe() -> dict[str, Any]:
    """BPE with ``▁`` and byte tokens and no pre-tokenizer, as Mistral.

    Its tokens may hold the end of one word and the start of the next.
    """
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=160, show_progress=False)
    tokenizer.train_from_iterator(["▁" + text.replace(" ", "▁") for text in LATIN], trainer)
    trained = json.loads(tokenizer.to_str())
    pieces = sorted(trained["model"]["vocab"], key=trained["model"]["vocab"].__getitem__)
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    ids = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", *byte_pieces, *pieces])}
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    options = {"vocab": ids, "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    return trained | {
        "added_tokens": _specials("<unk>", "<s>", "</s>"),
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]},
        "post_processor": _template(["<s>"], [], ids),
        "model": trained["model"] | options,
    }


def _unigram() -> dict[str, Any]:
    """Unigram with ``▁``, as XLM-R; it knows no Thai."""
    words = [f"▁{word}" for text in SENTENCES if "เ" not in text for word in text.split()]
    counts = _spans(words)
    total = sum(counts.values())
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    vocab = [[name, 0.0] for name in specials]
    vocab += [[piece, math.log(count / total)] for piece, count in sorted(counts.items())]
    ids = {piece: i for i, (piece, _) in enumerate(vocab)}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _specials(*specials),
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": metaspace,
        "post_processor": _template(["<s>"], ["</s>"], ids),
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False},
    }


def _wordpiece() -> dict[str, Any]:
    """WordPiece over words in lower case and without accents, as BERT; it knows Latin letters."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece({name: 0 for name in specials}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    lower = [tokenizer.normalizer.normalize_str(text) for text in LATIN]
    words = [word for text in lower for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    first, others = _spans([f" {word}" for word in words]), _spans([word[1:] for word in words])
    pieces = specials + sorted(piece[1:] for piece in first if piece[0] == " " and len(piece) > 1)
    pieces += [f"##{piece}" for piece in sorted(others)]
    ids = {piece: i for i, piece in enumerate(pieces)}
    content = json.loads(tokenizer.to_str())
    return content | {
        "added_tokens": _specials(*specials),
        "post_processor": _template(["[CLS]"], ["[SEP]"], ids),
        "model": content["model"] | {"vocab": ids},
    }


def _spans(words: list[str]) -> dict[str, int]:
    """How often each stretch of the words occurs: letters, and longer ones that occur again.

    It stands in for training, in which the library's results differ from run to run.
    """
    ends = ((word, i, j) for word in words for i, j in combinations(range(len(word) + 1), 2))
    counts = Counter(word[i:j] for word, i, j in ends)
    return {
        piece: count
        for piece, count in counts.items()
        if len(piece) == 1 or (count > 1 and len(piece) < 8)
    }


def _specials(*names: str) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [{"id": i, "content": name, **flags, "special": True} for i, name in enumerate(names)]


def _template(before: list[str], after: list[str], ids: dict[str, int]) -> dict[str, Any]:
    def around(sequence: str) -> list[dict[str, Any]]:
        ends = [
            [{"SpecialToken": {"id": name, "type_id": 0}} for name in e] for e in (before, after)
        ]
        return [*ends[0], {"Sequence": {"id": sequence, "type_id": 0}}, *ends[1]]

    return {
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": around("A") + around("B"),
        "special_tokens": {
            name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in before + after
        },
    }
