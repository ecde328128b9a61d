"""The gate alpha = (1 - exp(-beta |k|^2)) / |k|^2 of every token and head."""

import torch

from kernels.backend import input_guard, tl, triton

BLOCK_ROWS = 64


@triton.jit
def gate_of(squared_norm, beta):
    """Return alpha for squared key norms, exact in the limit of a vanishing key."""
    x = squared_norm * beta
    # 1 - exp(-x) cancels for small x; the series to x^5 is exact to float32 below 1/8.
    is_small = x < 0.125
    y = tl.where(is_small, x, 0.0)
    series = 1.0 + y * (-1 / 2 + y * (1 / 6 + y * (-1 / 24 + y * (1 / 120 - y / 720))))
    ratio = (1.0 - tl.exp(-x)) / tl.where(is_small, 1.0, x)
    return beta * tl.where(is_small, series, ratio)


@triton.jit
def _gate_of_norm_kernel(squared_norms, beta, alpha, rows, H: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    squared_norm = tl.load(squared_norms + row, mask=inside, other=0.0).to(tl.float32)
    rate = tl.load(beta + row % H, mask=inside, other=1.0).to(tl.float32)
    tl.store(alpha + row, gate_of(squared_norm, rate).to(alpha.dtype.element_ty), mask=inside)


@input_guard
def fused_quasar_gate(
    lambda_t: torch.Tensor, beta: torch.Tensor, output_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return alpha [..., H, 1] for squared key norms lambda_t [..., H, 1] and beta [H].

    The name under which the layer in a fork imports the gate.

    Raises:
        ValueError: lambda_t does not end in [H, 1].
    """
    heads = beta.numel()
    if lambda_t.dim() < 2 or tuple(lambda_t.shape[-2:]) != (heads, 1):
        raise ValueError(f"lambda_t must be [..., {heads}, 1], not {list(lambda_t.shape)}")
    alpha = torch.empty(lambda_t.shape, dtype=output_dtype, device=lambda_t.device)
    rows = lambda_t.numel()
    if rows:
        grid = (triton.cdiv(rows, BLOCK_ROWS),)
        _gate_of_norm_kernel[grid](lambda_t, beta, alpha, rows, heads, BLOCK_ROWS)
    return alpha
