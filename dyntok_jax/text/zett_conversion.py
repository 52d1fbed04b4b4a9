"""A fast tokenizer -> its byte-level form as ZeTT hypernetworks know it.

Only for ZeTT hypernetworks and comparisons with the original implementation: the result segments
text differently from the tokenizer it was made of (normalization is lost, a space is put in front),
so models tokenize by `text.base_tokens` instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dyntok_jax.text.byte_level import BYTE_TO_CHAR, CHAR_TO_BYTE, SPLIT_PATTERN, to_byte_chars
from dyntok_jax.types import DyntokError

_ADDED_BYTE_SCORE = -100000.0
# 0xFF is left out as the original leaves it out: released hypernetworks count on its vocabulary.
_FALLBACK_CHARS = {f"<0x{byte:02X}>": BYTE_TO_CHAR[byte] for byte in range(255)}

Merge = tuple[str, str]


def convert_to_byte_level(tokenizer_json: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Convert a tokenizer.json as ZeTT does (Minixhofer et al., 2024, section 4).

    Every token is spelled in byte characters under its old id; bytes without a token are appended,
    in order; text gets a space in front and is split by the original's pattern. Added tokens
    become plain vocabulary: a literal ``<s>`` in a text is text. In a BPE, a character of several
    bytes that no merge produces is now put together by extra merges, ahead of all others.

    The extra merges are sorted: those at a character's first byte before those inside one, so
    that no character's merge is taken away by another's. (The original's order depends on the
    seed of Python's string hashes, so a few segmentations of Chinese differ from run to run.)

    Args:
        tokenizer_json: content of a tokenizer.json: BPE with byte fallback, byte-level BPE or
            Unigram. Not changed.

    Returns:
        The content of the new tokenizer.json, and how many tokens were appended
        (``hn_n_extra_tokens`` in a hypernetwork's config).

    Raises:
        DyntokError: another kind of model, or two tokens with the same bytes.
    """
    model = tokenizer_json["model"]
    affixes = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    if model.get("type") not in ("BPE", "Unigram") or any(affixes):
        raise DyntokError(
            f"tokenizer model {model.get('type')!r} with affixes {affixes} has no byte-level form; "
            "valid are BPE and Unigram without affixes"
        )
    old = _vocabulary(tokenizer_json)
    spelled = old if _spells_bytes(tokenizer_json) else _spell_vocabulary(old)
    if model["type"] == "Unigram":
        new_model, count = _convert_unigram(model, spelled)
    else:
        respell = str if spelled is old else _spell
        specials = {respell(token["content"]) for token in _added_tokens(tokenizer_json)}
        merges = [(respell(left), respell(right)) for left, right in _merges(model)]
        new_model, count = _convert_bpe(model, spelled, merges, specials)
    return {**tokenizer_json, **_byte_level_parts(), "model": new_model}, count


def _convert_unigram(model: dict[str, Any], spelled: dict[str, int]) -> tuple[dict[str, Any], int]:
    tokens = sorted(spelled, key=spelled.__getitem__)
    if sorted(spelled.values()) != list(range(len(tokens))):
        raise DyntokError("tokenizer model 'Unigram': the ids of its added tokens leave a gap")
    scores = [score for _, score in model["vocab"]]
    scores += [0.0] * (len(tokens) - len(scores))
    vocab = [[token, score] for token, score in zip(tokens, scores, strict=True)]
    missing = _missing_bytes(spelled)
    vocab += [[char, _ADDED_BYTE_SCORE] for char in missing]
    return {**model, "vocab": vocab}, len(missing)


def _convert_bpe(
    model: dict[str, Any], spelled: dict[str, int], merges: list[Merge], specials: set[str]
) -> tuple[dict[str, Any], int]:
    if model.get("byte_fallback"):
        spelled = {
            token if (char := _FALLBACK_CHARS.get(token, token)) in spelled else char: index
            for token, index in spelled.items()
        }
    produced = {left + right for left, right in merges}
    atoms = spelled.keys() - produced - specials - _FALLBACK_CHARS.keys()
    extra = character_merges(atoms, produced)
    parts = {left + right for left, right in extra} - spelled.keys()
    appended = [*_missing_bytes(spelled), *sorted(parts)]
    start = max(spelled.values()) + 1
    vocab = spelled | {token: start + rank for rank, token in enumerate(appended)}
    all_merges = [list(merge) for merge in [*extra, *merges]]
    return {**model, "vocab": vocab, "merges": all_merges}, len(appended)


def character_merges(atoms: Iterable[str], produced: set[str]) -> list[Merge]:
    """Merges that put `atoms` together from single bytes, in the order of their ranks.

    An atom is cut after its largest power of two of bytes, and so are its parts: three bytes are
    2 + 1, four are 2 + 2.

    Args:
        atoms: tokens in byte characters.
        produced: tokens that other merges put together already.
    """
    merges: set[Merge] = set()
    todo = [atom for atom in atoms if len(atom) > 1]
    while todo:
        token = todo.pop()
        cut = 1 << ((len(token) - 1).bit_length() - 1)
        merge = token[:cut], token[cut:]
        merges.add(merge)
        todo += [part for part in merge if len(part) > 1 and part not in produced]
    return sorted(merges, key=lambda merge: (_starts_inside_character(merge), *merge))


def _starts_inside_character(merge: Merge) -> bool:
    # UTF-8 continuation bytes are 10xxxxxx.
    return CHAR_TO_BYTE.get(merge[0][0], 0) & 0xC0 == 0x80


def _added_tokens(tokenizer_json: dict[str, Any]) -> list[dict[str, Any]]:
    return tokenizer_json.get("added_tokens") or []


def _vocabulary(tokenizer_json: dict[str, Any]) -> dict[str, int]:
    vocab = tokenizer_json["model"]["vocab"]
    if isinstance(vocab, list):
        vocab = {token: index for index, (token, _) in enumerate(vocab)}
    return vocab | {token["content"]: token["id"] for token in _added_tokens(tokenizer_json)}


def _merges(model: dict[str, Any]) -> list[list[str]]:
    # Older files hold a merge as one string.
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]


def _spell(token: str) -> str:
    return to_byte_chars(token.replace("▁", " "))


def _spell_vocabulary(vocabulary: dict[str, int]) -> dict[str, int]:
    spelled = {_spell(token): index for token, index in vocabulary.items()}
    if len(spelled) < len(vocabulary):
        lost = next(t for t, index in vocabulary.items() if spelled[_spell(t)] != index)
        raise DyntokError(f"tokenizer: token {lost!r} has the same bytes as another one")
    return spelled


def _missing_bytes(vocabulary: dict[str, int]) -> list[str]:
    return [char for char in BYTE_TO_CHAR.values() if char not in vocabulary]


def _spells_bytes(tokenizer_json: dict[str, Any]) -> bool:
    step = tokenizer_json.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    return any(part.get("type") == "ByteLevel" for part in steps)


def _byte_level_parts() -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "trim_offsets": True}
    split = {
        "type": "Split",
        "pattern": {"Regex": SPLIT_PATTERN},
        "behavior": "Removed",
        "invert": True,
    }
    to_bytes = {**byte_level, "add_prefix_space": False, "use_regex": False}
    return {
        "added_tokens": [],
        "normalizer": {"type": "Prepend", "prepend": " "},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
    }


def is_converted(tokenizer_json: dict[str, Any]) -> bool:
    """Whether a tokenizer.json has been converted already: it splits by the original's pattern."""
    parts = (tokenizer_json.get("pre_tokenizer") or {}).get("pretokenizers", [])
    return any(part.get("pattern") == {"Regex": SPLIT_PATTERN} for part in parts)
