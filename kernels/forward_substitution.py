"""Inverse of a unit lower triangular matrix on chip: stable as forward substitution, made of products."""

import torch

from kernels.backend import tl, triton

BLOCK = 16


@triton.jit
def forward_substitution_kernel(lower, C: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """Return (I + lower)^-1 for a strictly lower triangular tile [C, C] in float32.

    X <- I - L X makes row i exact once the rows above it are, whatever the others hold: after n - 1 steps it
    *is* forward substitution. First within all diagonal blocks of BLOCK rows at once, then over the blocks.
    """
    index = tl.arange(0, C)
    identity = tl.where(index[:, None] == index[None, :], 1.0, 0.0)
    same_block = (index // BLOCK)[:, None] == (index // BLOCK)[None, :]
    diagonal = tl.where(same_block, lower, 0.0)
    blocks = identity - diagonal
    for _ in range(BLOCK - 2):
        blocks = identity - tl.dot(diagonal, blocks, input_precision=PRECISION)
    inverse = blocks
    if C > BLOCK:
        between = tl.dot(blocks, tl.where(same_block, 0.0, lower), input_precision=PRECISION)
        for _ in range(C // BLOCK - 1):
            inverse = blocks - tl.dot(between, inverse, input_precision=PRECISION)
    return inverse


@triton.jit
def _inverse_kernel(lower, inverse, C: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    index = tl.arange(0, C)
    offset = tl.program_id(0).to(tl.int64) * C * C + index[:, None] * C + index[None, :]
    tile = tl.where(index[:, None] > index[None, :], tl.load(lower + offset), 0.0)
    tl.store(inverse + offset, forward_substitution_kernel(tile, C, BLOCK, PRECISION))


def invert_unit_lower(lower: torch.Tensor) -> torch.Tensor:
    """Return (I + strict_lower(lower))^-1 for float32 matrices [N, C, C], C a power of two of at least 16."""
    count, size, _ = lower.shape
    inverse = torch.empty_like(lower)
    _inverse_kernel[(count,)](lower.contiguous(), inverse, size, BLOCK, "ieee")
    return inverse
