"""QuasarAttention forward, a chunk of tokens at a time."""

import torch

from kernels.backend import IS_AMD, check_shared_mem, input_guard, tl, triton
from kernels.chunk_indices import prepare_chunk_indices
from kernels.chunk_intra_token_parallel import chunk_intra_token_parallel
from kernels.gate import quasar_gate
from kernels.gradients import forward_only
from kernels.shapes import check_arguments

CHUNK_SIZE = 64
NUM_WARPS = 4
NUM_STAGES = 2
BLOCK_V = 32
SHARED_MEMORY_BYTES = (("hopper", 232_448), ("ampere", 166_912), ("ada", 101_376))
"""What a program can have at most, by architecture; the largest first."""


@triton.jit
def _state_kernel(
    q, k, w, u, o, initial, final, boundaries,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    HAS_INITIAL: tl.constexpr, HAS_FINAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    sequence, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(boundaries + sequence)
    end = tl.load(boundaries + sequence + 1)
    row = tl.arange(0, BD)
    column = block * BV + tl.arange(0, BV)
    index = tl.arange(0, C)
    state_offset = (sequence.to(tl.int64) * H + head) * D * D + row[:, None] * D + column[None, :]
    state_mask = (row < D)[:, None] & (column < D)[None, :]
    state = tl.zeros((BD, BV), dtype=tl.float32)
    if HAS_INITIAL:
        state = tl.load(initial + state_offset, mask=state_mask, other=0.0)
    for first in range(start, end, C):
        token = first + index
        inside = (token < end)[:, None]
        base = (token[:, None] * H + head) * D
        key_mask = inside & (row < D)[None, :]
        value_mask = inside & (column < D)[None, :]
        queries = tl.load(q + base + row[None, :], mask=key_mask, other=0.0).to(tl.float32)
        keys = tl.load(k + base + row[None, :], mask=key_mask, other=0.0).to(tl.float32)
        reads = tl.load(w + base + row[None, :], mask=key_mask, other=0.0)
        written = tl.load(u + base + column[None, :], mask=value_mask, other=0.0)
        written -= tl.dot(reads, state, input_precision=PRECISION)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        scores = tl.where(index[:, None] >= index[None, :], scores, 0.0)
        out = tl.dot(queries, state, input_precision=PRECISION)
        out += tl.dot(scores, written, input_precision=PRECISION)
        tl.store(o + base + column[None, :], out.to(o.dtype.element_ty), mask=value_mask)
        state += tl.dot(tl.trans(keys), written, input_precision=PRECISION)
    if HAS_FINAL:
        tl.store(final + state_offset, state, mask=state_mask)


@input_guard
def chunk_quasar(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return o [B, T, H, D] in q's dtype and, when asked, the final state [N, H, D, D] in float32.

    q, k, v [B, T, H, D] (bfloat16, float16 or float32), beta [H], initial_state float32 [N, H, D, D],
    cu_seqlens [N + 1] for sequences packed into a batch of 1. Further keyword arguments are accepted and
    ignored. Values only: differentiating them raises.

    Raises:
        ValueError: a shape, dtype or device is wrong.
    """
    limits = check_arguments(q, k, v, beta, initial_state, cu_seqlens)
    _, _, heads, dim = q.shape
    count = len(limits) - 1
    precision = _precision(q.dtype)
    chunk_size = CHUNK_SIZE if dim <= 128 else min(CHUNK_SIZE, 32)
    flat_q, flat_k, flat_v = (x.view(-1, heads, dim) for x in (q, k, v))
    boundaries = torch.tensor(limits, dtype=torch.int64)
    chunks = prepare_chunk_indices(boundaries, chunk_size).to(q.device)
    boundaries = boundaries.to(q.device)
    w, u = chunk_intra_token_parallel(
        flat_k, flat_v, quasar_gate(flat_k, beta), boundaries, chunks,
        chunk_size=chunk_size, precision=precision, num_warps=NUM_WARPS,
    )  # fmt: skip
    o = torch.empty_like(flat_q)
    state_shape = (count if output_final_state else 0, heads, dim, dim)
    final = torch.empty(state_shape, dtype=torch.float32, device=q.device)
    block_d = max(16, triton.next_power_of_2(dim))
    block_v = min(block_d, BLOCK_V)
    _state_kernel[(count, heads, triton.cdiv(dim, block_v))](
        flat_q, flat_k, w, u, o, final if initial_state is None else initial_state, final, boundaries,
        heads, dim, block_d, block_v, chunk_size, initial_state is not None, output_final_state, precision,
        num_warps=NUM_WARPS, num_stages=_stages(chunk_size, block_d, block_v, q),
    )  # fmt: skip
    inputs = (q, k, v, beta, initial_state)
    o = forward_only("chunk_quasar", o.view(q.shape), *inputs)
    return o, forward_only("chunk_quasar", final, *inputs) if output_final_state else None


def _precision(dtype: torch.dtype) -> str:
    """Return how tensor cores multiply: tf32 is finer than 16-bit inputs, three of it keep float32."""
    if IS_AMD:
        return "ieee"
    return "tf32x3" if dtype == torch.float32 else "tf32"


def _stages(chunk_size: int, block_d: int, block_v: int, q: torch.Tensor) -> int:
    """Return how many chunks can be on their way to the chip: NUM_STAGES, or what shared memory holds."""
    if not q.is_cuda:
        return 1
    device = q.device.index
    limit = next((size for arch, size in SHARED_MEMORY_BYTES if check_shared_mem(arch, device)), 0)
    chunk_bytes = chunk_size * (block_d * (2 * q.element_size() + 4) + 4 * block_v)
    return max(1, min(NUM_STAGES, (limit - 4 * block_d * block_v) // chunk_bytes))
