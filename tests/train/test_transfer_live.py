"""Transferred models in transformers' own classes, where torch is installed."""

from __future__ import annotations

import numpy as np
import pytest
import transformers
from test_transfer import TEXT, run
from transferred import make_model

from train.transfer import transfer

torch = pytest.importorskip("torch", reason="the live comparison needs torch")

KINDS = {
    "llama_tied": "AutoModelForCausalLM",
    "mistral": "AutoModelForCausalLM",
    "xlm_roberta_masked_lm": "AutoModelForMaskedLM",
    "bert_sequence": "AutoModelForSequenceClassification",
}


@pytest.mark.parametrize("name", KINDS)
def test_transformers_opens_the_result_and_computes_the_same(
    name, tiny_tokenizers, new_tokenizer, tmp_path
):
    family = tiny_tokenizers["unigram" if name.startswith("xlm") else "byte_bpe"]
    padding = {"pad_token_id": 1} if name.startswith("xlm") else {}
    base, out = make_model(name, tmp_path / "base", family, **padding), tmp_path / "out"
    transfer(base, "fvt", new_tokenizer, out)
    theirs = getattr(transformers, KINDS[name]).from_pretrained(out).eval()
    ids = transformers.AutoTokenizer.from_pretrained(out)(TEXT, add_special_tokens=False).input_ids
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(run(out), wanted, atol=1e-4)
