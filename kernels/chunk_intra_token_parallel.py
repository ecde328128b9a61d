"""The part of a chunk that needs no incoming state: W and U of all chunks in parallel."""

import torch

from kernels.backend import tl, triton
from kernels.forward_substitution import BLOCK, forward_substitution_kernel


@triton.jit
def _intra_kernel(
    k, v, alpha, w, u, chunks,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    chunk, head = tl.program_id(0), tl.program_id(1)
    start = tl.load(chunks + 2 * chunk)
    end = tl.load(chunks + 2 * chunk + 1)
    token = start + tl.arange(0, C)
    column = tl.arange(0, BD)
    inside = token < end
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
    k: torch.Tensor, v: torch.Tensor, alpha: torch.Tensor, chunks: torch.Tensor, *,
    chunk_size: int, precision: str, num_warps: int, num_stages: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return W = A diag(alpha) K and U = A diag(alpha) V with A = (I + strict_lower(diag(alpha) K K^T))^-1.

    k, v [T, H, D] contiguous, alpha [T, H] float32, chunks [N, 2] int64 (first token, one past the last); W
    and U are float32 [T, H, D].
    """
    _, heads, dim = k.shape
    w, u = (torch.empty(k.shape, dtype=torch.float32, device=k.device) for _ in range(2))
    _intra_kernel[(chunks.shape[0], heads)](
        k, v, alpha, w, u, chunks,
        heads, dim, max(16, triton.next_power_of_2(dim)), chunk_size, BLOCK, precision,
        num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    return w, u
