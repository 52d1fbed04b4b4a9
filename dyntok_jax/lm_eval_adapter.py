"""A model for lm-evaluation-harness, ``dyntok``; importing this file registers it there.

    dyntok lm-eval --model dyntok --model_args model=NAME,reduction=50 --tasks ...

Contexts are merged, each alone; what is scored stays in base tokens. Texts are tokenized by
transformers, and cut into context and continuation as the harness does for its own ``hf`` models,
so that scores at a reduction of 0 are theirs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401  # pyright: ignore
from lm_eval.api.model import TemplateLM  # pyright: ignore
from lm_eval.api.registry import register_model  # pyright: ignore
from lm_eval.models.utils import (  # pyright: ignore
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # pyright: ignore
from tqdm import tqdm
from transformers import AutoTokenizer

from dyntok_jax.config import load_config
from dyntok_jax.dynamic_model import load
from dyntok_jax.generate import GenerationConfig, generate
from dyntok_jax.generation.opening import open_vocabulary
from dyntok_jax.large_vocabulary.opening import EXACT
from dyntok_jax.merging.budget import Budget
from dyntok_jax.model_store import resolve
from dyntok_jax.scoring import target_scores
from dyntok_jax.text.boundaries import Boundary
from dyntok_jax.text.layouts import ids_layout, keep_last
from dyntok_jax.types import DyntokError, did_you_mean

TOGETHER = 32
"""Batches between two steps of the progress bar, among which sequences are sorted by length."""

MAX_NEW_TOKENS = 256
"""Generated where a task does not say how many, as the harness has it."""

ANSWERED_TOGETHER = 256
"""Requests whose places among one another decide their draws, whatever the batch size."""

TOP_K = 50
"""Tokens to draw from where a task does not say how many, as transformers has it."""

RULES = ("top_k", "top_p", "min_p", "repetition_penalty")
"""Generation arguments with the meaning they have for transformers."""

_log = logging.getLogger(__name__)

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""What the harness shall cache a score under, if anything; ids of context and continuation."""


@register_model("dyntok")
class DyntokLM(TemplateLM):
    """A decoder that reads merged contexts.

    Attributes:
        model: the decoder with its rows.
        tokenizer: transformers' own.
        max_length: base tokens of a sequence at most; contexts lose their beginning.
    """

    def __init__(
        self,
        model: str,
        rows: str = "default",
        reduction: float = 100,
        boundary: str = "pretoken",
        batch_size: int | str = 1,
        max_length: int | None = None,
        kept_words: int = 1,
        vocabulary: str | None = None,
        index: str = EXACT,
        adapter: str | None = None,
        config: str | None = None,
        seed: int = 0,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        """Loads the model.

        Args:
            model: name or folder.
            rows: see ``embed.providers.row_provider``.
            reduction: percent of the largest possible saving of a context's tokens.
            boundary: what merges do not cross.
            batch_size: sequences in a batch of the network.
            max_length: by default, and at most, what the model can read.
            kept_words: so many words at a context's end stay in base tokens, see
                ``layouts.keep_last``.
            vocabulary: folder of a large one to generate in; scores are the model's own always.
            index: how its tokens are searched, see ``large_vocabulary.opening.open_index``.
            adapter: see ``DynamicModel.with_adapter``; by default none.
            config: YAML file with dtype and mesh.
            seed: of the draws, where a task samples; the harness gives models none of its own.
            max_batch_size, device: the harness always gives them, and they are not read: there is
                no ``auto`` batch size, and devices are JAX's.

        Raises:
            DyntokError: an encoder, a value that is not valid; as ``dynamic_model.load``.
        """
        super().__init__()
        del max_batch_size, device
        self.budget = _budget(reduction)
        self.boundary = _boundary(boundary)
        self.kept_words = _number("kept_words", kept_words, 0)
        self.batch_size = _number("batch_size", batch_size)
        if not isinstance(seed, int):
            raise DyntokError(f"seed {seed!r}: valid is a whole number")
        self.seed = seed
        if index != EXACT and vocabulary is None:
            raise DyntokError(f"index {index}: it is of a large vocabulary; give vocabulary too")
        if adapter is not None and self.budget.reduction == 0:
            raise DyntokError(f"adapter {adapter}: nothing is merged at a reduction of 0")
        compute = load_config(Path(config) if config else None)
        self.model = load(model, rows, compute, adapter=adapter)
        if self.model.kind != "decoder":
            raise DyntokError(f"{model} is an encoder: the harness needs a decoder")
        self.vocabulary = open_vocabulary(vocabulary, self.model, index) if vocabulary else None
        self.tokenizer = AutoTokenizer.from_pretrained(resolve(model))
        longest = self.model.max_length
        wanted = longest if max_length is None else _number("max_length", max_length)
        self.max_length = min(wanted, longest)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> DyntokLM:
        """The model of ``--model_args``, which win over options of the same name.

        Raises:
            DyntokError: an argument that there is not, or no model.
        """
        given = {**(additional_config or {}), **arg_dict}
        valid = list(signature(cls).parameters)
        for name in given.keys() - set(valid):
            hint = did_you_mean(name, valid)
            raise DyntokError(f"model_args: unknown {name!r}{hint}; valid: {', '.join(valid)}")
        if not isinstance(given.get("model"), str):
            raise DyntokError("model_args: a model's name or folder is needed, model=NAME")
        return super().create_from_arg_obj({}, given)

    @property
    def eot_token_id(self) -> int:
        """The closing token."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What a continuation without a context follows."""
        opening = self.tokenizer.bos_token_id
        return self.eot_token_id if opening is None else opening

    @property
    def tokenizer_name(self) -> str:
        """Names the chat template in the harness's caches."""
        return self.model.name.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as a text, special tokens spelled out; ``tok_encode`` reads them."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Ids of a text, what the tokenizer puts before it included, unless it stands there."""
        if add_special_tokens is None:
            opening = self.tokenizer.decode(self.prefix_token_id)
            add_special_tokens = not has_bos_prefix(string, opening)
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in the harness's windows.

        Every token is scored, so that only what a last window repeats as its context is merged.
        """
        texts = [request.args for request in requests]
        windows = [[*map(make_disjoint_window, self._windows(text))] for (text,) in texts]
        flat: list[Request] = [(None, *window) for of_text in windows for window in of_text]
        scores = iter(self._loglikelihood_tokens(flat, disable_tqdm))
        totals = [sum(next(scores)[0] for _ in of_text) for of_text in windows]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", text, total)
        return totals

    def _windows(self, text: str) -> Iterable[tuple[list[int], list[int]]]:
        return get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether greedy decoding would give it."""
        targets = [continuation for _, _, continuation in requests]
        # The network does not read the last token of all.
        rooms = [self.max_length + 1 - len(target) for target in targets]
        if min(rooms, default=1) < 1:
            longest = max(map(len, targets))
            raise DyntokError(f"a continuation of {longest} tokens; valid are {self.max_length}")
        contexts = [*map(tuple, _ends([context for _, context, _ in requests], rooms))]
        different = list(dict.fromkeys(contexts))  # choices of one question share theirs
        base = ids_layout(self.model.tokenizer, different, self.boundary)
        base = [keep_last(context, self.kept_words) for context in base]
        batch = self.model.merge(base, self.budget, self.boundary, per_sample=True)
        merged = {ids: s.tokens for ids, s in zip(different, batch.sequences, strict=True)}
        endings = [base.tokens for base in ids_layout(self.model.tokenizer, targets)]
        sequences = [[*merged[c], *e] for c, e in zip(contexts, endings, strict=True)]
        found: list[tuple[float, bool]] = []
        with tqdm(total=len(requests), disable=disable_tqdm, desc="loglikelihood") as bar:
            for start in range(0, len(requests), TOGETHER * self.batch_size):
                part = slice(start, start + TOGETHER * self.batch_size)
                scores = target_scores(self.model, sequences[part], targets[part], self.batch_size)
                found += zip(scores.log_probs.tolist(), scores.greedy.tolist(), strict=True)
                bar.update(len(sequences[part]))
        for (name, *_), answer in zip(requests, found, strict=True):
            if name is not None:
                self.cache_hook.add_partial("loglikelihood", name, answer)
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to a stop string."""
        alike: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
        found = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generate_until") as bar:
            for places in alike.values():
                settings = self._settings(requests[places[0]].args[1])
                contexts = [self.tok_encode(requests[place].args[0]) for place in places]
                room = self.max_length - settings.max_new_tokens
                base = ids_layout(
                    self.model.tokenizer, _ends(contexts, [room] * len(contexts)), self.boundary
                )
                for start in range(0, len(places), ANSWERED_TOGETHER):
                    part = slice(start, start + ANSWERED_TOGETHER)
                    # A prompt that comes again in another part is to be answered anew.
                    seeded = replace(settings, seed=self.seed + places[start])
                    answers = generate(self.model, base[part], seeded, self.vocabulary)
                    for place, answer in zip(places[part], answers, strict=True):
                        found[place] = answer.text
                        self.cache_hook.add_partial(
                            "generate_until", requests[place].args, answer.text
                        )
                    bar.update(len(answers))
        return found

    def _settings(self, arguments: dict[str, Any]) -> GenerationConfig:
        """How a task wants texts generated."""
        given: dict[str, Any] = dict(normalize_gen_kwargs(arguments, MAX_NEW_TOKENS))
        new, stop = given.pop("max_gen_toks"), handle_stop_sequences(given.pop("until"), None)
        sampled, temperature = given.pop("do_sample"), given.pop("temperature", 0)
        if sampled:
            given.setdefault("top_k", TOP_K)
        unknown = given.keys() - set(RULES)
        if unknown:
            valid = f"until, max_gen_toks, do_sample, temperature, {', '.join(RULES)}"
            raise DyntokError(
                f"generation arguments {', '.join(sorted(unknown))}: valid are {valid}"
            )
        if new >= self.max_length:
            raise DyntokError(
                f"max_gen_toks {new}: a sequence has {self.max_length} tokens at most"
            )
        return GenerationConfig(
            max_new_tokens=new,
            reduction=self.budget.reduction,
            boundary=self.boundary,
            kept_words=self.kept_words,
            batch_size=self.batch_size,
            temperature=float(temperature) if sampled else 0.0,
            stop=tuple(text for text in stop if text),
            **given,
        )


def _ends(contexts: Sequence[list[int]], rooms: Sequence[int]) -> list[list[int]]:
    """The ends of contexts that are longer than their rooms."""
    lost = [len(ids) - room for ids, room in zip(contexts, rooms, strict=True) if len(ids) > room]
    if lost:
        _log.warning("%d tokens cut off the beginnings of %d contexts", sum(lost), len(lost))
    return [ids[-room:] for ids, room in zip(contexts, rooms, strict=True)]


def _budget(reduction: float | str) -> Budget:
    try:
        return Budget(reduction=float(reduction))
    except (ValueError, TypeError) as error:
        raise DyntokError(f"reduction {reduction!r}: valid is 0 to 100 percent") from error


def _boundary(name: str) -> Boundary:
    valid = [boundary.value for boundary in Boundary]
    if name not in valid:
        hint = did_you_mean(str(name), valid)
        raise DyntokError(f"unknown boundary {name!r}{hint}; valid: {', '.join(valid)}")
    return Boundary(name)


def _number(name: str, value: int | str, least: int = 1) -> int:
    if not str(value).isdecimal() or int(value) < least:
        raise DyntokError(f"{name} {value!r}: valid is a number from {least}")
    return int(value)
