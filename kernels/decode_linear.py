"""Matrix times one token's vector, with what stands before and after it in a transformer's layer.

A step of decoding reads every weight once and computes next to nothing, so each launch that does not read
weights is a loss: the RMSNorm before and the bias, gate or residual after a product are part of its launch.
Sums are in float32, always in the same order; results are rounded where they are stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.backend import input_guard, tl, triton


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMSNorm: x / sqrt(mean(x^2) + eps) * weight [K]."""

    weight: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Tile:
    """How a product is launched."""

    rows: int
    """Of the matrix that one program multiplies."""
    columns: int
    """That it reads at once."""
    warps: int


def tile_for(rows: int, columns: int) -> Tile:
    """Enough programs to fill a GPU, with enough to read for each (measured on an H200)."""
    if rows >= 1 << 16:
        return Tile(rows=8, columns=min(1024, triton.next_power_of_2(columns)), warps=4)
    if columns > 2048:
        return Tile(rows=2, columns=512, warps=2)
    return Tile(rows=4, columns=min(1024, triton.next_power_of_2(columns)), warps=4)


@triton.jit
def _load_vector(x, scale, column, K: tl.constexpr, NORM: tl.constexpr):
    inside = column < K
    raw = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
    scaled = raw
    if NORM:
        scaled = raw * tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
    return raw * raw, scaled


@triton.jit
def _load_rows(matrix, row, rows, column, K: tl.constexpr):
    mask = (row < rows)[:, None] & (column < K)[None, :]
    return tl.load(matrix + row.to(tl.int64)[:, None] * K + column[None, :], mask=mask, other=0.0).to(
        tl.float32
    )


@triton.jit
def _inverse_norm(squares, eps, K: tl.constexpr):
    return 1.0 / tl.sqrt(tl.sum(squares, axis=0) / K + eps)


@triton.jit
def _linear_kernel(
    x, scale, eps, matrix_0, matrix_1, matrix_2, bias_0, bias_1, bias_2, residual, o, rows_0, rows_1, rows_2,
    K: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    # Which of the matrices, and from which of its rows on: programs are counted matrix by matrix.
    program = tl.program_id(0)
    matrix, bias, rows, start = matrix_0, bias_0, rows_0, 0
    if program >= tl.cdiv(rows_0, ROWS):
        program -= tl.cdiv(rows_0, ROWS)
        matrix, bias, rows, start = matrix_1, bias_1, rows_1, rows_0
        if program >= tl.cdiv(rows_1, ROWS):
            program -= tl.cdiv(rows_1, ROWS)
            matrix, bias, rows, start = matrix_2, bias_2, rows_2, rows_0 + rows_1
    row = program * ROWS + tl.arange(0, ROWS)
    squares = tl.zeros([BK], tl.float32)
    products = tl.zeros([ROWS, BK], tl.float32)
    for first in tl.static_range(0, K, BK):
        column = first + tl.arange(0, BK)
        block = _load_rows(matrix, row, rows, column, K)
        square, scaled = _load_vector(x, scale, column, K, NORM)
        squares += square
        products += block * scaled[None, :]
    result = tl.sum(products, axis=1)
    if NORM:
        result *= _inverse_norm(squares, eps, K)
    known = row < rows
    if BIAS:
        result += tl.load(bias + row, mask=known, other=0.0).to(tl.float32)
    if RESIDUAL:
        result += tl.load(residual + start + row, mask=known, other=0.0).to(tl.float32)
    tl.store(o + start + row, result.to(o.dtype.element_ty), mask=known)


@triton.jit
def _gated_kernel(
    x, scale, eps, gate, up, o, rows, K: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    squares = tl.zeros([BK], tl.float32)
    opening = tl.zeros([ROWS, BK], tl.float32)
    value = tl.zeros([ROWS, BK], tl.float32)
    for first in tl.static_range(0, K, BK):
        column = first + tl.arange(0, BK)
        gate_block = _load_rows(gate, row, rows, column, K)
        up_block = _load_rows(up, row, rows, column, K)
        square, scaled = _load_vector(x, scale, column, K, True)
        squares += square
        opening += gate_block * scaled[None, :]
        value += up_block * scaled[None, :]
    factor = _inverse_norm(squares, eps, K)
    opened = tl.sum(opening, axis=1) * factor
    result = opened / (1.0 + tl.exp(-opened)) * tl.sum(value, axis=1) * factor
    tl.store(o + row, result.to(o.dtype.element_ty), mask=row < rows)


@input_guard
def decode_linear(
    x: torch.Tensor,
    matrices: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor] | None = None,
    *,
    norm: Norm | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the products of up to three matrices [N_i, K] with x [K], one after the other, as [sum of N_i].

    x is normalised before; biases [N_i] and a residual [sum of N_i] are added. Raises ValueError for a number
    of matrices that is not one to three, and for one whose rows do not follow one another.
    """
    if not 1 <= len(matrices) <= 3:
        raise ValueError(f"one to three matrices are multiplied at once, not {len(matrices)}")
    strided = next((matrix for matrix in matrices if not matrix.is_contiguous()), None)
    if strided is not None:
        raise ValueError(f"a matrix must be contiguous, not strided {strided.stride()}")
    # What a launch does not use is given something to point at.
    unused = 3 - len(matrices)
    given = [*matrices, *[x] * unused]
    added = [*(biases or [x] * len(matrices)), *[x] * unused]
    rows = [*(matrix.shape[0] for matrix in matrices), *[0] * unused]
    o = x.new_empty(sum(rows))
    tile = tile_for(sum(rows), x.numel())
    _linear_kernel[(sum(triton.cdiv(count, tile.rows) for count in rows),)](
        x, x if norm is None else norm.weight, 0.0 if norm is None else norm.eps, *given, *added,
        x if residual is None else residual, o, *rows,
        K=x.numel(), BK=tile.columns, ROWS=tile.rows,
        NORM=norm is not None, BIAS=biases is not None, RESIDUAL=residual is not None, num_warps=tile.warps,
    )  # fmt: skip
    return o


@input_guard
def decode_gated(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Return silu(gate [N, K] times the normalised x [K]) * (up [N, K] times the same), as [N]."""
    rows = gate.shape[0]
    o = x.new_empty(rows)
    tile = tile_for(rows, x.numel())
    # Half of the rows from each of the two.
    pairs = tile.rows // 2
    _gated_kernel[(triton.cdiv(rows, pairs),)](
        x, norm.weight, norm.eps, gate, up, o, rows, x.numel(), tile.columns, pairs, num_warps=tile.warps
    )
    return o
