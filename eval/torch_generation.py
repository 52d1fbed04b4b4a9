"""Generation in torch, to be measured against: by transformers, and by the original's scheme.

Only for where torch is installed; ``eval.bench_generation`` imports it there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Int
from transformers import AutoModelForCausalLM

NO_END = -1
"""A token that no vocabulary has: texts get their full length."""


class TorchGeneration:
    """A decoder that takes the best token each time."""

    def __init__(self, folder: Path, dtype: str):
        """Loads the model.

        Args:
            folder: of the model.
            dtype: ``float32`` or ``bfloat16``.
        """
        kind = getattr(torch, dtype)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()

    def generate(self, ids: Int[np.ndarray, "B T"], new: int) -> Int[np.ndarray, "B new"]:
        """What transformers generates, with its cache of keys and values."""
        prompts = torch.from_numpy(ids.astype(np.int64))
        with torch.inference_mode():
            found = self.model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                max_new_tokens=new,
                eos_token_id=NO_END,
                pad_token_id=0,
            )
        return found[:, ids.shape[1] :].numpy()

    def recompute(
        self,
        ids: Int[np.ndarray, " T"],
        new: int,
        input_rows: Float[np.ndarray, "V D"],
        output_rows: Float[np.ndarray, "V D"],
    ) -> list[int]:
        """What the original's scheme generates: the whole prefix is read for every token.

        Args:
            ids: of the prompt, in the vocabulary of the rows.
            new: tokens.
            input_rows, output_rows: of the vocabulary; all products are computed.
        """
        taken = [*map(int, ids)]
        output = torch.from_numpy(output_rows).to(self.model.dtype)
        with torch.inference_mode():
            for _ in range(new):
                rows = torch.from_numpy(np.asarray(input_rows[taken], np.float32))
                hidden = self.model.model(
                    inputs_embeds=rows[None].to(self.model.dtype), use_cache=False
                ).last_hidden_state[0, -1]
                taken.append(int((output @ hidden).argmax()))
        return taken[len(ids) :]
