"""RMSNorm over the head dimension times a sigmoid gate, in one pass and in place."""

import torch

from kernels.backend import input_guard, tl, triton

NORM_EPS = 1e-5
BLOCK_ROWS = 64


@triton.jit
def _gated_norm_kernel(x, gate, weight, rows, eps, D: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, BD)
    mask = (row < rows)[:, None] & (column < D)[None, :]
    offset = row[:, None] * D + column[None, :]
    value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    opening = tl.load(gate + offset, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)
    inverse_norm = 1.0 / tl.sqrt(tl.sum(value * value, axis=1) / D + eps)
    normalised = value * inverse_norm[:, None] * scale[None, :] / (1.0 + tl.exp(-opening))
    tl.store(x + offset, normalised.to(x.dtype.element_ty), mask=mask)


def gated_norm_(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Replace x [..., D] by RMSNorm(x) * weight * sigmoid(gate) and return it; x is contiguous."""
    if not x.is_contiguous():
        raise ValueError(f"x must be contiguous to be changed in place, not strided {x.stride()}")
    _launch(x, gate, weight)
    return x


@input_guard
def _launch(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> None:
    dim = x.shape[-1]
    rows = x.numel() // dim
    if rows:
        grid = (triton.cdiv(rows, BLOCK_ROWS),)
        _gated_norm_kernel[grid](
            x, gate, weight, rows, NORM_EPS, dim, triton.next_power_of_2(dim), BLOCK_ROWS
        )
