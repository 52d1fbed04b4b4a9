"""The distillation step of an encoder as one writes it plainly in torch, to be measured against.

Only for where torch is installed; ``eval.bench_distill`` imports it there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file
from torch import nn  # pyright: ignore[reportMissingImports]
from transformers import AutoModel, RobertaConfig, RobertaModel

from dyntok_jax.embed.hypernet import HypernetConfig
from dyntok_jax.types import DyntokError
from train.distill_config import DistillConfig
from train.optim import OptimizerConfig, make_schedule
from train.preparation import DistillBatch
from train.step import Products


class TorchBatch(NamedTuple):
    """A ``DistillBatch`` without the padding that only compilation asks for."""

    base_ids: Any
    base_mask: Any
    owner: Any
    ids: Any
    mask: Any
    own: Any
    forms: Any
    form_mask: Any


def torch_batch(batch: DistillBatch, pad_id: int) -> TorchBatch:
    """Cut to the sequences, positions and rows in use; all forms in one table of S pieces."""
    rows = batch.base_mask.any(1)
    base, width = batch.base_mask[rows].sum(1).max(), batch.mask[rows].sum(1).max()
    short = np.full((len(batch.short), batch.long.shape[1]), pad_id, np.int32)
    short[:, : batch.short.shape[1]] = batch.short
    forms = np.concatenate([short, batch.long])
    used = forms[:, 0] != pad_id
    anew = np.append(np.arange(len(batch.own)), len(batch.own) + np.cumsum(used) - 1)
    arrays = TorchBatch(
        batch.base_ids[rows, :base],
        batch.base_mask[rows, :base],
        np.minimum(batch.owner[rows, :base], width),
        anew[batch.ids[rows, :width]],
        batch.mask[rows, :width],
        batch.own,
        forms[used],
        forms[used] != pad_id,
    )
    return TorchBatch(*(torch.from_numpy(_wide(array)) for array in arrays))


def _wide(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == bool else array.astype(np.int64)


class Projector(nn.Module):
    """Two dense layers beside the identity, then LayerNorm."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.dense1, self.dense2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        """Project."""
        inner = F.gelu(self.dense1(x), approximate="tanh")
        return self.ln(F.gelu(self.dense2(inner), approximate="tanh") + x)


class Rescale(nn.Module):
    """Every coordinate times a factor plus a shift; both stay as they are."""

    def __init__(self, width: int):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, width), requires_grad=False)
        self.b = nn.Parameter(torch.zeros(1, width), requires_grad=False)

    def forward(self, x):
        """Scale and shift."""
        return x * self.w + self.b


class TorchHypernet(nn.Module):
    """A hypernetwork of input rows, with the names of its safetensors file."""

    def __init__(self, config: HypernetConfig, file: Path):
        super().__init__()
        c = self.config = config
        body = RobertaConfig(
            vocab_size=c.pad_id + 1,
            hidden_size=c.hidden,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            intermediate_size=c.feed_forward,
            max_position_embeddings=c.max_positions,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=c.pad_id,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = RobertaModel(body, add_pooling_layer=False)
        self.fallback_embeddings = nn.Embedding(max(c.extra_tokens, 1), c.source_width)
        self.input_projection = nn.Sequential(
            nn.Linear(c.source_width, c.hidden), Projector(c.hidden, c.feed_forward)
        )
        self.output_projection = nn.Sequential(
            Projector(c.hidden, c.feed_forward), nn.Linear(c.hidden, c.width)
        )
        if c.rescale:
            self.in_scaler, self.scaler = Rescale(c.source_width), Rescale(c.width)
        self.load_state_dict(load_file(file))
        self.fallback_embeddings.requires_grad_(False)
        self.model.embeddings.word_embeddings.requires_grad_(False)

    def forward(self, source, forms, mask):
        """(M, D) rows of M tokens."""
        rows = source[forms]
        x = self.input_projection(self.in_scaler(rows) if self.config.rescale else rows)
        places = torch.arange(forms.shape[1])[None]
        hidden = self.model(inputs_embeds=x, attention_mask=mask.long(), position_ids=places)
        found = self.output_projection(hidden.last_hidden_state[:, 0])
        found = self.scaler(found) if self.config.rescale else found
        if self.config.residual:
            found = found + _mean(rows, mask)
        return found


class TorchStep:
    """Loss, gradient and update, batch after batch.

    Attributes:
        done: steps so far.
    """

    def __init__(
        self,
        model: Path,
        hypernet: HypernetConfig,
        file: Path,
        loss: DistillConfig,
        optimizer: OptimizerConfig,
        steps: int,
        products: Products = "float32",
    ):
        """Reads model and hypernetwork.

        Args:
            model: folder of an encoder.
            hypernet: shape of the hypernetwork.
            file: its parameters at step 0, safetensors.
            loss: weights of the loss.
            optimizer: AdamW.
            steps: of the whole run, for the schedule.
            products: of the forward and backward passes; bfloat16 is torch's autocast.

        Raises:
            DyntokError: settings that this step does not know.
        """
        c = optimizer
        other = hypernet.separate_output or hypernet.model_layers
        if c.name != "adamw" or c.weight_decay or c.accumulate > 1 or other:
            raise DyntokError(
                "against torch, bench_distill knows adamw without weight decay and accumulation, "
                "and hypernetworks of input rows that read no layers of the model"
            )
        self.network = AutoModel.from_pretrained(
            model, dtype=torch.float32, add_pooling_layer=False
        ).eval()
        self.network.requires_grad_(False)
        if loss.layers is not None:
            self.network.encoder.layer = self.network.encoder.layer[: loss.layers]
        self.table = self.network.get_input_embeddings().weight
        self.hypernet, self.weights = TorchHypernet(hypernet, file), loss
        self.trained = [p for p in self.hypernet.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, betas=c.betas, eps=c.eps, weight_decay=0.0)
        self.clip, self.schedule = c.clip, make_schedule(c.phases, steps)
        self.done, self.products = 0, products

    def loss(self, batch: TorchBatch) -> Any:
        """As ``train.distill.Distillation.loss`` for encoders."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.products == "bfloat16"):
            return self._loss(batch)

    def _loss(self, batch: TorchBatch) -> Any:
        predicted = self.hypernet(self.table, batch.forms, batch.form_mask)
        rows = torch.cat([self.table[batch.own], predicted])
        student = self.network(
            inputs_embeds=rows[batch.ids], attention_mask=batch.mask.long()
        ).last_hidden_state
        with torch.no_grad():
            teacher = self.network(
                batch.base_ids, attention_mask=batch.base_mask.long()
            ).last_hidden_state
            width = batch.mask.shape[1]
            belongs = F.one_hot(batch.owner, width + 1)[..., :width].float()
            sums = torch.einsum("bsd,bst->btd", teacher, belongs)
            counts = belongs.sum(1)
            aligned = sums / counts[..., None].clamp(min=1)
            pooled = _mean(teacher, batch.base_mask)
        error = (student - aligned).square().sum(-1) / aligned.square().sum(-1).clamp(min=1e-6)
        hidden = error[batch.mask].mean()
        center = pooled.mean(0)
        vectors, wanted, weights = _mean(student, counts) - center, pooled - center, self.weights
        cosine = F.cosine_similarity(vectors, wanted)
        lacking = 1 - (vectors * wanted).sum() / wanted.square().sum()
        of_vectors = weights.pooled * (1 - cosine).mean() + weights.shortfall * lacking.square()
        return weights.hidden * hidden + of_vectors

    def __call__(self, batch: TorchBatch) -> float:
        """One step; its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = float(np.asarray(self.schedule(self.done)))
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip > 0:
            nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.optimizer.step()
        self.done += 1
        return float(loss.detach())


def _mean(values: Any, mask: Any) -> Any:
    """Mean over the second axis where the mask is True, or by counts."""
    total = (values * mask[..., None]).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)
