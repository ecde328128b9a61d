"""Models that pretend to be the reference, and the reference served differently (needs torch).

What logit verification must refuse, and what it must not, made of any loaded reference: for its tests, and
for `quasar-node bench --inference`, which reports by how much the two are apart.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, Final

import torch

from roles.inference.engine import Engine

GROUP: Final = 64
"""Weights that share a scale in the 4-bit model."""
FINE_TUNED: Final = 0.02
"""Change of every matrix by fine-tuning, relative to its size."""
LOW_RANK: Final = 8
BATCH: Final = 4


def int8(engine: Engine) -> Engine:
    """Weights rounded to 8 bits, one scale for each row."""
    return _with_matrices(engine, lambda weights, _random: _rounded(weights, 127))


def int4(engine: Engine) -> Engine:
    """Weights rounded to 4 bits, one scale for each group of a row."""

    def change(weights: torch.Tensor, _random: torch.Generator) -> torch.Tensor:
        rows, columns = weights.shape
        group = math.gcd(columns, GROUP)
        return _rounded(weights.reshape(-1, group), 7).reshape(rows, columns)

    return _with_matrices(engine, change)


def fine_tuned(engine: Engine) -> Engine:
    """Every matrix changed by a little of low rank, as adapters do."""

    def change(weights: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        rows, columns = weights.shape
        left = torch.randn(rows, LOW_RANK, generator=random)
        right = torch.randn(LOW_RANK, columns, generator=random)
        delta = (left @ right).to(weights.device)
        return weights + delta * (FINE_TUNED * weights.norm() / delta.norm())

    return _with_matrices(engine, change)


def truncated(engine: Engine) -> Engine:
    """The last layer left out."""
    model = copy.deepcopy(engine.model)
    model.model.layers = model.model.layers[:-1]
    model.config.num_hidden_layers -= 1
    return engine.with_model(model.to(torch.float16))


def bfloat16(engine: Engine) -> Engine:
    """Weights and sums in bfloat16: honest, but rounded more than the subnet allows."""
    return engine.with_model(copy.deepcopy(engine.model).to(torch.bfloat16))


def eager_attention(engine: Engine) -> Engine:
    """Another implementation of attention, in float16."""
    model = copy.deepcopy(engine.model).to(torch.float16)
    model.set_attn_implementation("eager")
    return engine.with_model(model)


def batched(engine: Engine) -> Engine:
    """The same text in a batch of several, in float16."""
    model = copy.deepcopy(engine.model).to(torch.float16)
    alone = model.forward

    def forward(input_ids: torch.Tensor, **options: Any) -> Any:
        return alone(input_ids=input_ids.expand(BATCH, -1), **options)

    model.forward = forward
    return engine.with_model(model)


def other_order(engine: Engine) -> Engine:
    """The sums of every MLP in another order, in float16, as another GPU adds them."""
    model = copy.deepcopy(engine.model).to(torch.float16)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.model.layers:
            mlp = layer.mlp
            order = torch.randperm(mlp.down_proj.in_features, generator=random).to(
                mlp.down_proj.weight.device
            )
            for matrix in (mlp.gate_proj, mlp.up_proj):
                matrix.weight.copy_(matrix.weight[order])
            mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order])
    return engine.with_model(model)


HONEST: Final[dict[str, Callable[[Engine], Engine]]] = {
    "eager attention": eager_attention,
    "in a batch of 4": batched,
    "other order of sums": other_order,
}
IMPOSTORS: Final[dict[str, Callable[[Engine], Engine]]] = {
    "int8": int8,
    "int4": int4,
    "fine-tuned": fine_tuned,
    "last layer left out": truncated,
}


def _with_matrices(engine: Engine, change: Callable[[torch.Tensor, torch.Generator], torch.Tensor]) -> Engine:
    """Changed matrices in the layers, served in float16; embeddings and the head stay, as when quantised."""
    model = copy.deepcopy(engine.model)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(change(module.weight.float(), random))
    return engine.with_model(model.to(torch.float16))


def _rounded(weights: torch.Tensor, levels: int) -> torch.Tensor:
    scale = weights.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / levels
    return (weights / scale).round() * scale
