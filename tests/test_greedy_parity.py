"""Greedy texts of the real SmolLM2, against transformers (fixtures/record_greedy.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dyntok_jax.dynamic_model import load
from dyntok_jax.generate import GenerationConfig, generate
from dyntok_jax.model_store import list_models
from dyntok_jax.text.layouts import prompt_layout

REAL = "smollm2-135m-instruct"
RECORD = Path(__file__).parent / "fixtures" / "greedy_smollm2.json"


@pytest.mark.slow
def test_greedy_texts_are_those_of_transformers():
    if not any(entry.name == REAL and entry.cached for entry in list_models()):
        pytest.skip(f"{REAL} is not there (dyntok models pull {REAL})")
    recorded = json.loads(RECORD.read_text("utf-8"))
    assert len(recorded) == 50 and sum(len(new) for _, new in recorded) > 2500
    model = load(REAL)
    prompts = prompt_layout(model.tokenizer, [prompt for prompt, _ in recorded])
    how = GenerationConfig(max_new_tokens=64, reduction=0, batch_size=8)
    found = generate(model, prompts, how)
    different = {
        prompt: (text.ids, new)
        for (prompt, new), text in zip(recorded, found, strict=True)
        if text.ids != new
    }
    assert not different
