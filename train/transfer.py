"""Zero-shot tokenizer transfer: a model with the rows of another tokenizer's vocabulary.

    python -m train.transfer --model smollm2-135m-instruct --rows HYPERNET --tokenizer NEW --out DIR

Minixhofer et al., Zero-Shot Tokenizer Transfer (2024, arXiv:2405.07883): the hypernetwork predicts
the rows of all tokens of a new vocabulary from the model's own rows (section 3), special tokens
keep theirs, and all other weights stay as they are. A fine-tuned model is transferred with the
hypernetwork of its base (section 5): it gets the rows predicted from the *base's* rows, special
tokens included, in place of its own, and keeps the weights and heads of fine-tuning; which token
ends a text is its own. So what fine-tuning did to the rows is not carried over. (The authors add a
part of the weights' change too where the base was trained on with its new tokenizer; nothing
is trained here, so there is none.) A decoder whose output rows are its input rows gets output rows
of its own where the hypernetwork has learned to predict them.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dyntok_jax.embed.providers import row_provider
from dyntok_jax.embed.shipped import language_row
from dyntok_jax.embed.source import BaseRowsRule, FvtRows, SourceEmbeddings
from dyntok_jax.files import new_folder
from dyntok_jax.model_store import resolve
from dyntok_jax.models.encoder import EncoderConfig
from dyntok_jax.models.hf_config import Architecture, read_architecture
from dyntok_jax.models.hf_names import name_table
from dyntok_jax.models.weights import load_source
from dyntok_jax.tensor_files import LazyTensor, stored_tensors, write_tensors
from dyntok_jax.text.base_tokens import BaseTokenizer
from dyntok_jax.types import DyntokError, Rows
from train.command import make_parser, run_command
from train.new_vocabulary import ROLES, Matched, TokenizerFolder, match, read_json

logger = logging.getLogger(__name__)

POSITIONS = "embeddings.position_embeddings.weight"
UNREAD_WEIGHTS = r"(pooler\.dense|cls\.seq_relationship)\.(weight|bias)"
"""Weights that no forward here reads, and other libraries do."""
TOKEN_LISTS = ("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens")
"""Settings of generation that hold ids of any tokens."""


def transfer(
    model: Path,
    rows: str,
    tokenizer: Path,
    out: Path,
    base: Path | None = None,
    language: int | None = None,
    base_rows: BaseRowsRule | None = None,
) -> Matched:
    """Write a model for another tokenizer, in Hugging Face layout.

    The tensors keep their names and dtypes; ``tokenizer.json`` is the new one byte for byte, the
    chat template the model's where it has one. ``generation_config.json`` is carried over with the
    new ids of special tokens, and without lists of other tokens.

    Args:
        model: folder of the model; of any architecture ``models`` reads, heads are kept.
        rows: name of a row provider, or folder of a hypernetwork.
        tokenizer: folder of the new tokenizer.
        out: folder that appears whole or not at all; new or empty.
        base: folder of the model that ``model`` was fine-tuned from; the model itself by default.
        language: row of the hypernetwork's language table.
        base_rows: see ``embed.providers.row_provider``.

    Returns:
        How the vocabularies were matched.

    Raises:
        DyntokError: folders that cannot be read or do not fit each other.
    """
    with new_folder(out) as folder:
        architecture = read_architecture(model)
        new, old = TokenizerFolder.read(tokenizer), TokenizerFolder.read(base or model)
        has_own = base and (model / "tokenizer.json").is_file()
        matched = match(new, old, TokenizerFolder.read(model) if has_own else None)
        config = _config(model, architecture, new, matched)
        own = SourceEmbeddings(*load_source(model), folder=model)
        source = SourceEmbeddings(*load_source(base), folder=base) if base else own
        if source.input.shape[1] != own.input.shape[1]:
            raise DyntokError(
                f"{base}: rows of width {source.input.shape[1]}, {model} has {own.input.shape[1]}: "
                "it was not fine-tuned from that"
            )
        untie = architecture.head == "causal_lm" and architecture.tied
        found = predict(rows, source, own, old.tokenizer, matched, untie, language, base_rows)
        if untie and found.output is not None:
            config["tie_word_embeddings"] = False
            own = replace(own, output=own.input)
        if matched.added:
            # Tokens that only fine-tuning has are nothing to the base.
            ids, values = list(matched.added), own.take([*matched.added.values()])
            jax.tree.map(lambda to, row: to.__setitem__(ids, row), found, values)
        write_tensors(folder / "model.safetensors", _tensors(model, architecture, found, config))
        _write_json(folder / "config.json", config)
        _write_generation_config(folder, model, new, matched)
        shutil.copyfile(tokenizer / "tokenizer.json", folder / "tokenizer.json")
        _write_tokenizer_config(folder, tokenizer, new, model, architecture.max_length)
    return matched


def predict(
    name: str,
    source: SourceEmbeddings,
    wanted: SourceEmbeddings,
    tokenizer: BaseTokenizer,
    matched: Matched,
    untie: bool,
    language: int | None = None,
    base_rows: BaseRowsRule | None = None,
) -> Rows:
    """Rows of a new vocabulary.

    Args:
        name: of the row provider, or a hypernetwork's folder.
        source: the base model's rows.
        wanted: the rows of the model that is to get them: with output rows and bias as these.
        tokenizer: the base model's.
        matched: the new vocabulary.
        untie: whether a model without output rows gets those that the provider has.
        language, base_rows: see ``embed.providers.row_provider``.

    Returns:
        (V', D) float32, and where wanted (V', D) output rows and (V',) bias. A bias that the
        provider does not give is the mean of the pieces'.

    Raises:
        DyntokError: a provider that does not fit the base, or a base without output rows that
            the model needs.
    """
    provider = row_provider(name, lambda _: source, tokenizer, language, base_rows)
    rows = provider.rows(matched.tokens)
    if wanted.bias is not None and rows.bias is None and source.bias is not None:
        means = FvtRows(source, tokenizer, base_rows or "own")
        rows = rows._replace(bias=means.rows(matched.tokens).bias)
    missing = [
        field
        for field in ("output", "bias")
        if getattr(wanted, field) is not None and getattr(rows, field) is None
    ]
    if missing:
        raise DyntokError(f"rows {name!r} of this base have no {missing[0]}, which the model has")
    rows = rows._replace(
        output=rows.output if untie or wanted.output is not None else None,
        bias=None if wanted.bias is None else rows.bias,
    )
    for field, table in rows._asdict().items():
        if table is not None and matched.gaps:
            tied = field == "output" and source.output is None
            own = source.input if tied else getattr(source, field)
            table[matched.gaps] = np.mean(own, 0, np.float32)
    return rows


def _config(
    model: Path, architecture: Architecture, new: TokenizerFolder, matched: Matched
) -> dict[str, Any]:
    """Content of config.json for the new vocabulary."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    roles = {"bos", "eos", "pad", *(role for role in ROLES if f"{role}_token_id" in config)}
    config |= _special_ids(config, roles, new, matched)
    config["vocab_size"] = len(matched.tokens)
    config.pop("tokenizer_class", None)
    shift = _position_shift(architecture, config)
    if shift:
        config["max_position_embeddings"] += shift
    return config


def _special_ids(
    config: dict[str, Any], roles: Collection[str], new: TokenizerFolder, matched: Matched
) -> dict[str, Any]:
    """The new ids of special tokens, under the names of a configuration."""
    ids: dict[str, Any] = {f"{role}_token_id": new.roles.get(role) for role in sorted(roles)}
    ends = config.get("eos_token_id")
    if isinstance(ends, list):  # some chat models have several
        matched_ids = (matched.kept | matched.added).items()
        ids["eos_token_id"] = [i for i, old in matched_ids if old in ends] or None
    return ids


def _write_generation_config(
    folder: Path, model: Path, new: TokenizerFolder, matched: Matched
) -> None:
    """Write the model's settings of generation, if it has any, for the new vocabulary."""
    config = read_json(model / "generation_config.json")
    if not config:
        return
    roles = [role for role in ROLES if f"{role}_token_id" in config]
    config |= _special_ids(config, roles, new, matched)
    lost = [name for name in TOKEN_LISTS if config.pop(name, None)]
    if lost:
        logger.warning("generation_config.json: %s, of old tokens, left out", ", ".join(lost))
    _write_json(folder / "generation_config.json", config)


def _position_shift(architecture: Architecture, config: dict[str, Any]) -> int:
    """How far the first position moves: RoBERTa's are counted from behind the padding's id."""
    encoder = architecture.config
    if not isinstance(encoder, EncoderConfig) or not encoder.position_offset:
        return 0
    if config["pad_token_id"] is None:
        raise DyntokError(
            f"{architecture.model_type} counts positions from the padding's id, and the new "
            "tokenizer has no padding: name a pad_token in its tokenizer_config.json"
        )
    return config["pad_token_id"] + 1 - encoder.position_offset


def _tensors(
    model: Path, architecture: Architecture, rows: Rows, config: dict[str, Any]
) -> dict[str, LazyTensor]:
    """All tensors of the model, the tables of its vocabulary replaced."""
    table = name_table(architecture)
    shift = _position_shift(architecture, config)
    tensors = {}
    for name, tensor in stored_tensors(model).items():
        plain = table.plain(name)
        field = table.source.get(table.second.get(plain, plain))
        shape, load = tensor.shape, tensor.read
        if field:
            values = getattr(rows, field)
            shape, load = values.shape, lambda values=values: values
        elif plain == POSITIONS and shift:
            shape = (shape[0] + shift, shape[1])
            load = lambda read=load: _shifted(read(), shift)  # noqa: E731
        elif re.fullmatch(table.ignored, plain) and not re.fullmatch(UNREAD_WEIGHTS, plain):
            continue
        tensors[name] = LazyTensor(shape, load, tensor.dtype)
        if field == "input" and architecture.tied and (output := rows.output) is not None:
            tensors["lm_head.weight"] = LazyTensor(
                shape, lambda values=output: values, tensor.dtype
            )
    return tensors


def _shifted(positions: np.ndarray, shift: int) -> np.ndarray:
    """The table with so many rows more, or less, before the first position."""
    if shift < 0:
        return positions[-shift:]
    return np.concatenate([np.zeros((shift, positions.shape[1]), positions.dtype), positions])


def _write_tokenizer_config(
    folder: Path, tokenizer: Path, new: TokenizerFolder, model: Path, length: int
) -> None:
    """Write the new tokenizer's configuration, as a tokenizer.json that is used as it stands.

    The class is the generic one: those of a model would rebuild the tokenizer in their own way.
    """
    config = new.config | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length}
    config.pop("auto_map", None)
    contents = {i: name for name, i in new.tokenizer.special_ids.items()}
    config |= {f"{role}_token": contents[i] for role, i in new.roles.items() if i in contents}
    has_own = (model / "tokenizer.json").is_file()
    template = BaseTokenizer.from_folder(model).chat_template if has_own else None
    template = template or new.tokenizer.chat_template
    if isinstance(template, str):
        config.pop("chat_template", None)
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = make_parser("transfer", __doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="name or folder of the model")
    add("--rows", required=True, metavar="fvt|default|DIR", help="as everywhere: see the README")
    add("--tokenizer", required=True, type=Path, metavar="DIR", help="the new tokenizer")
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write; new or empty")
    add("--base", metavar="NAME", help="what --model was fine-tuned from (itself)")
    add("--language", metavar="NAME|N", help="language of the hypernetwork's table, name or row")
    add("--base-rows", choices=("own", "predicted"), help="rows of tokens that the base has too")
    run_command(parser, _transfer, arguments, logging.WARNING)


def _transfer(options: argparse.Namespace) -> None:
    matched = transfer(
        resolve(options.model),
        options.rows,
        options.tokenizer,
        options.out,
        resolve(options.base) if options.base else None,
        language_row(options.rows, options.language),
        options.base_rows,
    )
    print(
        f"{options.out}: {len(matched.tokens)} tokens, {len(matched.kept)} of them with the rows "
        f"of the base's special tokens; {len(matched.unmatched)} special ones have no counterpart"
    )


if __name__ == "__main__":
    main()
