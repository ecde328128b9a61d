"""The layer in plain PyTorch, differentiable: what the fused one is checked against."""

from itertools import pairwise

import torch
import torch.nn.functional as F

from kernels.layer import Operator, QuasarAttention
from kernels.reference import chunked


def plain_layer(
    layer: QuasarAttention,
    x: torch.Tensor,
    cu_seqlens: torch.Tensor | None = None,
    *,
    operator: Operator = chunked,
) -> torch.Tensor:
    """Apply the layer's parameters to x [B, T, hidden], every sequence by itself, around `operator`."""
    if cu_seqlens is not None:
        borders = [(start, end) for start, end in pairwise(cu_seqlens.tolist()) if start < end]
        parts = [plain_layer(layer, x[:, start:end], operator=operator) for start, end in borders]
        return torch.cat(parts, dim=1)
    o, _ = operator(*operator_inputs(layer, x))
    return layer_output(layer, x, o)


def operator_inputs(
    layer: QuasarAttention, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q, k, v [B, T, H, D] and beta [H], what the layer makes of x [B, T, hidden] for its operator."""
    projected = F.pad(layer.qkv_proj(x).transpose(1, 2), (3, 0))
    activated = F.silu(F.conv1d(projected, layer.conv_weight, groups=len(layer.conv_weight))).transpose(1, 2)
    size = (*x.shape[:2], layer.num_heads, layer.head_dim)
    q, k, v = (part.reshape(size) for part in activated.chunk(3, dim=-1))
    return q, k, v, F.softplus(layer.beta_log)


def layer_output(layer: QuasarAttention, x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
    """Return [B, T, hidden], what the layer makes of its operator's o [B, T, H, D]."""
    normalised = F.rms_norm(o, (layer.head_dim,), layer.norm_weight, 1e-5)
    gate = torch.sigmoid(layer.gate_proj(x).view(o.shape))
    y: torch.Tensor = layer.o_proj((normalised * gate).flatten(-2))
    return y
