"""The part of a chunk that needs no incoming state: how its tokens see each other."""

from kernels.backend import tl, triton
from kernels.bound import BoundKernel
from kernels.forward_substitution import forward_substitution_kernel, merge, product
from kernels.gate import gate_of
from kernels.segments import Segments

BLOCK_K = 64
"""Columns of the keys that are on chip at once."""
WARPS = 16
"""What a processor holds at once of this kernel, a warp being a program."""
MAX_ROUNDS = 8


@triton.jit
def _add_product(total, left, right, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    return total + product(left, tl.permute(right, (0, 2, 1)), OPERAND, PRECISION)


@triton.jit
def _root_of_gate(gram, rate):
    """Return the square root of alpha, whose squared key norms are on the diagonals of `gram`."""
    index = tl.arange(0, 16)
    is_diagonal = (index[:, None] == index[None, :])[None, :, :]
    return tl.sqrt(gate_of(tl.sum(tl.where(is_diagonal, gram, 0.0), axis=2), rate))


@triton.jit
def _between(tile, left, right):
    return left[:, :, None] * tile * right[:, None, :]


@triton.jit
def _below_diagonal(tile, root):
    index = tl.arange(0, 16)
    return tl.where((index[:, None] > index[None, :])[None, :, :], _between(tile, root, root), 0.0)


@triton.jit
def _store(pointer, tile, left, right, mask):
    tl.store(pointer, _between(tile, left, right).to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def solve_chunks(
    k, inverse, rate, left,
    H: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, G: tl.constexpr,
    OPERAND: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write A = (I + strict_lower(diag(alpha) K K^T))^-1 diag(alpha) of the next G chunks of one head.

    k and inverse point to the first of them, `left` tokens are left. Blocks of 16 x 16 have names, so that
    each chunk stays in the registers of one warp. With the square root of alpha on both sides of K K^T no
    entry of it or of its inverse exceeds 1: INNER may be half precision.
    """
    chunk, index = tl.arange(0, G), tl.arange(0, 16)
    token = (chunk[:, None] * C + index[None, :])[:, :, None]
    zeros = tl.zeros((G, 16, 16), dtype=tl.float32)
    g00, g10, g11, g20, g21 = zeros, zeros, zeros, zeros, zeros
    g22, g30, g31, g32, g33 = zeros, zeros, zeros, zeros, zeros
    step = 16 * H * D
    for first in tl.static_range(0, D, BK):
        column = (first + tl.arange(0, BK))[None, None, :]
        offset = token * (H * D) + column
        is_column = column < D
        k0 = tl.load(k + offset, mask=(token < left) & is_column, other=0.0).to(OPERAND)
        g00 = _add_product(g00, k0, k0, OPERAND, PRECISION)
        if C >= 32:
            k1 = tl.load(k + offset + step, mask=(token + 16 < left) & is_column, other=0.0).to(OPERAND)
            g10 = _add_product(g10, k1, k0, OPERAND, PRECISION)
            g11 = _add_product(g11, k1, k1, OPERAND, PRECISION)
            if C >= 64:
                k2 = tl.load(k + offset + 2 * step, mask=(token + 32 < left) & is_column, other=0.0)
                k3 = tl.load(k + offset + 3 * step, mask=(token + 48 < left) & is_column, other=0.0)
                k2, k3 = k2.to(OPERAND), k3.to(OPERAND)
                g20 = _add_product(g20, k2, k0, OPERAND, PRECISION)
                g21 = _add_product(g21, k2, k1, OPERAND, PRECISION)
                g22 = _add_product(g22, k2, k2, OPERAND, PRECISION)
                g30 = _add_product(g30, k3, k0, OPERAND, PRECISION)
                g31 = _add_product(g31, k3, k1, OPERAND, PRECISION)
                g32 = _add_product(g32, k3, k2, OPERAND, PRECISION)
                g33 = _add_product(g33, k3, k3, OPERAND, PRECISION)
    out = inverse + chunk[:, None, None] * (H * C * C) + index[None, :, None] * C + index[None, None, :]
    mask = (chunk * C < left)[:, None, None]
    s0 = _root_of_gate(g00, rate)
    a00 = forward_substitution_kernel(_below_diagonal(g00, s0), INNER, PRECISION)
    _store(out, a00, s0, s0, mask)
    if C >= 32:
        s1 = _root_of_gate(g11, rate)
        a11 = forward_substitution_kernel(_below_diagonal(g11, s1), INNER, PRECISION)
        a10 = -merge(a11, _between(g10, s1, s0), a00, INNER, PRECISION)
        _store(out + 16 * C, a10, s1, s0, mask)
        _store(out + 16 * C + 16, a11, s1, s1, mask)
        if C >= 64:
            s2, s3 = _root_of_gate(g22, rate), _root_of_gate(g33, rate)
            a22 = forward_substitution_kernel(_below_diagonal(g22, s2), INNER, PRECISION)
            a33 = forward_substitution_kernel(_below_diagonal(g33, s3), INNER, PRECISION)
            l21, l32 = _between(g21, s2, s1), _between(g32, s3, s2)
            l31 = _between(g31, s3, s1)
            a21 = -merge(a22, l21, a11, INNER, PRECISION)
            a32 = -merge(a33, l32, a22, INNER, PRECISION)
            b20 = product(_between(g20, s2, s0), a00, INNER, PRECISION)
            a20 = -product(a22, b20 + product(l21, a10, INNER, PRECISION), INNER, PRECISION)
            b31 = product(l31, a11, INNER, PRECISION) + product(l32, a21, INNER, PRECISION)
            a31 = -product(a33, b31, INNER, PRECISION)
            b30 = product(_between(g30, s3, s0), a00, INNER, PRECISION)
            b30 += product(l31, a10, INNER, PRECISION) + product(l32, a20, INNER, PRECISION)
            a30 = -product(a33, b30, INNER, PRECISION)
            _store(out + 32 * C, a20, s2, s0, mask)
            _store(out + 32 * C + 16, a21, s2, s1, mask)
            _store(out + 32 * C + 32, a22, s2, s2, mask)
            _store(out + 48 * C, a30, s3, s0, mask)
            _store(out + 48 * C + 16, a31, s3, s1, mask)
            _store(out + 48 * C + 32, a32, s3, s2, mask)
            _store(out + 48 * C + 48, a33, s3, s3, mask)


@triton.jit
def _intra_kernel(
    k, beta, inverse, table, parts,
    H: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, G: tl.constexpr,
    ROUNDS: tl.constexpr, OPERAND: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, place = tl.program_id(0) % H, tl.program_id(0) // H
    segment, part = (place // parts).to(tl.int64), place % parts
    start = tl.load(table + segment * 5) + part * (ROUNDS * G * C)
    left = (tl.load(table + segment * 5 + 1) - start).to(tl.int32)
    k += (start * H + head) * D
    inverse += ((tl.load(table + segment * 5 + 2) + part * (ROUNDS * G)) * H + head) * C * C
    rate = tl.load(beta + head).to(tl.float32)
    # In a loop the keys of the next round are on their way while these are worked on.
    for _ in range(0, tl.minimum(left, ROUNDS * G * C), G * C):
        solve_chunks(k, inverse, rate, left, H, D, BK, C, G, OPERAND, INNER, PRECISION)
        k += G * C * H * D
        inverse += G * H * C * C
        left -= G * C


def bind_solve(
    segments: Segments,
    heads: int,
    dim: int,
    chunk_size: int,
    operand: object,
    precision: str,
    processors: int,
) -> BoundKernel:
    """Return the launch (k, beta, inverse, table) that writes A (see `solve_chunks`) of every chunk.

    k [T, H, D] contiguous, beta [H], inverse [M, H, C, C], whose blocks of 16 x 16 above a diagonal are not
    written.
    """
    group = 2 if chunk_size == 16 else 1
    # A warp goes through several groups where there are more than the processors hold at once.
    rounds = segments.chunks * heads // (group * WARPS * processors)
    rounds = 1 << (min(max(rounds, 1), MAX_ROUNDS).bit_length() - 1)
    parts = -(-segments.longest // (group * rounds))
    block_k = min(BLOCK_K, max(16, triton.next_power_of_2(dim)))
    # Half precision holds what is inside an inverse, for 16-bit operands of either kind.
    inner = tl.float32 if operand is tl.float32 else tl.float16
    return BoundKernel(
        _intra_kernel,
        (heads * segments.count * parts, 1),
        (parts, heads, dim, block_k, chunk_size, group, rounds, operand, inner, precision),
        num_warps=1,
        num_stages=2,
    )
