"""The part of a chunk that needs no incoming state: W and U of all chunks in parallel."""

import torch

from kernels.backend import tl, triton
from kernels.forward_substitution import BLOCK, forward_substitution_kernel


@triton.jit
def _intra_kernel(
    k, v, alpha, w, u, boundaries, chunks,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    sequence = tl.load(chunks + 2 * tl.program_id(0))
    start = tl.load(boundaries + sequence) + tl.load(chunks + 2 * tl.program_id(0) + 1) * C
    token = start + tl.arange(0, C)
    column = tl.arange(0, BD)
    inside = token < tl.load(boundaries + sequence + 1)
    mask = inside[:, None] & (column < D)[None, :]
    offset = (token[:, None] * H + head) * D + column[None, :]
    keys = tl.load(k + offset, mask=mask, other=0.0).to(tl.float32)
    values = tl.load(v + offset, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(alpha + token * H + head, mask=inside, other=0.0)
    scaled = keys * gate[:, None]
    index = tl.arange(0, C)
    products = tl.dot(scaled, tl.trans(keys), input_precision=PRECISION)
    lower = tl.where(index[:, None] > index[None, :], products, 0.0)
    inverse = forward_substitution_kernel(lower, C, BLOCK, PRECISION)
    tl.store(w + offset, tl.dot(inverse, scaled, input_precision=PRECISION), mask=mask)
    tl.store(u + offset, tl.dot(inverse, values * gate[:, None], input_precision=PRECISION), mask=mask)


def chunk_intra_token_parallel(
    k: torch.Tensor,
    v: torch.Tensor,
    alpha: torch.Tensor,
    boundaries: torch.Tensor,
    chunks: torch.Tensor,
    *,
    chunk_size: int,
    precision: str,
    num_warps: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return W = A diag(alpha) K and U = A diag(alpha) V with A = (I + strict_lower(diag(alpha) K K^T))^-1.

    k, v [T, H, D] contiguous, alpha [T, H] float32, boundaries [N + 1] of the sequences and chunks [M, 2]
    (sequence, chunk within it) int64; W and U are float32 [T, H, D].
    """
    _, heads, dim = k.shape
    w, u = (torch.empty(k.shape, dtype=torch.float32, device=k.device) for _ in range(2))
    if len(chunks):
        block_d = max(16, triton.next_power_of_2(dim))
        _intra_kernel[(len(chunks), heads)](
            k, v, alpha, w, u, boundaries, chunks, heads, dim, block_d, chunk_size, BLOCK, precision,
            num_warps=num_warps, num_stages=1,
        )  # fmt: skip
    return w, u
