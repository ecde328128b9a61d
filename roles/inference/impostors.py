"""Models that pretend to be the reference, and the reference served differently (needs torch).

What logit verification must refuse, and what it must not, made of any loaded model: for its tests, and for
`quasar-node bench --inference`, which reports by how much the two are apart.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, Final

import torch

GROUP: Final = 64
"""Weights that share a scale in the 4-bit model."""
FINE_TUNED: Final = 0.02
"""Change of every matrix by fine-tuning, relative to its size."""
LOW_RANK: Final = 8

Model = Any


def int8(model: Model) -> Model:
    """Weights rounded to 8 bits, one scale for each row."""
    return _with_matrices(model, lambda weights, _random: _rounded(weights, 127))


def int4(model: Model) -> Model:
    """Weights rounded to 4 bits, one scale for each group of a row."""

    def change(weights: torch.Tensor, _random: torch.Generator) -> torch.Tensor:
        rows, columns = weights.shape
        group = math.gcd(columns, GROUP)
        return _rounded(weights.reshape(-1, group), 7).reshape(rows, columns)

    return _with_matrices(model, change)


def fine_tuned(model: Model) -> Model:
    """Every matrix changed by a little of low rank, as adapters do."""

    def change(weights: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        rows, columns = weights.shape
        left = torch.randn(rows, LOW_RANK, generator=random)
        right = torch.randn(LOW_RANK, columns, generator=random)
        delta = (left @ right).to(weights.device)
        return weights + delta * (FINE_TUNED * weights.norm() / delta.norm())

    return _with_matrices(model, change)


def truncated(model: Model) -> Model:
    """The last layer left out."""
    short = copy.deepcopy(model)
    short.model.layers = short.model.layers[:-1]
    short.config.num_hidden_layers -= 1
    return short


def bfloat16(model: Model) -> Model:
    """Weights and sums in bfloat16."""
    return copy.deepcopy(model).to(torch.bfloat16)


def float16(model: Model) -> Model:
    """Weights and sums in float16, as the subnet asks of a GPU."""
    return copy.deepcopy(model).to(torch.float16)


def eager_attention(model: Model) -> Model:
    """Another implementation of attention, in float16."""
    other = float16(model)
    other.set_attn_implementation("eager")
    return other


HONEST: Final[dict[str, Callable[[Model], Model]]] = {"float16": float16, "eager attention": eager_attention}
IMPOSTORS: Final[dict[str, Callable[[Model], Model]]] = {
    "int8": int8,
    "int4": int4,
    "fine-tuned": fine_tuned,
    "last layer left out": truncated,
}


def _with_matrices(
    model: Model, change: Callable[[torch.Tensor, torch.Generator], torch.Tensor]
) -> Model:
    """A copy with the matrices of its layers changed; embeddings and the head stay, as in quantised models."""
    changed = copy.deepcopy(model)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in changed.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(change(module.weight.float(), random))
    return changed


def _rounded(weights: torch.Tensor, levels: int) -> torch.Tensor:
    scale = weights.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / levels
    return (weights / scale).round() * scale
