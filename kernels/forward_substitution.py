"""Inverses of unit lower triangular matrices on chip: stable as forward substitution, made of products."""

import torch

from kernels.backend import tl, triton


@triton.jit
def product(left, right, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Return left @ right in float32, for batches of matrices, from operands of type OPERAND."""
    return tl.dot(left.to(OPERAND), right.to(OPERAND), input_precision=PRECISION)


@triton.jit
def merge(below, between, above, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Return below @ between @ above: minus the block that joins two inverses."""
    return product(product(below, between, OPERAND, PRECISION), above, OPERAND, PRECISION)


@triton.jit
def forward_substitution_kernel(lower, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Return (I + lower)^-1 in float32 for strictly lower triangular tiles [G, 16, 16].

    Blocks are merged in pairs: with X the inverses of the diagonal blocks and L what lies between the two of
    a pair, X - X L X holds the inverses of blocks twice as large. That is block forward substitution, and no
    number grows on the way as it does in a power series. Products are of type OPERAND.
    """
    index = tl.arange(0, 16)
    row, column = index[None, :, None], index[None, None, :]
    inverse = tl.where(row == column, 1.0, 0.0) - tl.where(row // 2 == column // 2, lower, 0.0)
    for level in tl.static_range(1, 4):
        is_between = (row >> (level + 1) == column >> (level + 1)) & (row >> level != column >> level)
        inverse -= merge(inverse, tl.where(is_between, lower, 0.0), inverse, OPERAND, PRECISION)
    return inverse


@triton.jit
def _inverse_kernel(lower, inverse, count, G: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    index = tl.arange(0, 16)
    matrix = tl.program_id(0) * G + tl.arange(0, G)
    offset = matrix[:, None, None] * 256 + index[None, :, None] * 16 + index[None, None, :]
    mask = (matrix < count)[:, None, None]
    tile = tl.load(lower + offset, mask=mask & (index[:, None] > index[None, :])[None, :, :], other=0.0)
    tl.store(inverse + offset, forward_substitution_kernel(tile, OPERAND, PRECISION), mask=mask)


def invert_unit_lower(lower: torch.Tensor) -> torch.Tensor:
    """Return (I + strict_lower(lower))^-1 for float32 matrices [N, 16, 16]."""
    inverse = torch.empty_like(lower)
    count, group = len(lower), 4
    _inverse_kernel[(triton.cdiv(count, group),)](
        lower.contiguous(), inverse, count, group, tl.float32, "ieee"
    )
    return inverse
