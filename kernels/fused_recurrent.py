"""QuasarAttention forward token by token in one launch: decoding, and an independent form for any length."""

import torch

from kernels.backend import input_guard, tl, triton
from kernels.gate import gate_of
from kernels.gradients import forward_only
from kernels.shapes import check_arguments

NUM_WARPS = 4
BLOCK_V = 32


@triton.jit
def _recurrent_kernel(
    q, k, v, beta, o, initial, final, boundaries,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
    HAS_INITIAL: tl.constexpr, HAS_FINAL: tl.constexpr,
):  # fmt: skip
    sequence, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(boundaries + sequence)
    end = tl.load(boundaries + sequence + 1)
    row = tl.arange(0, BD)
    column = block * BV + tl.arange(0, BV)
    state_offset = (sequence.to(tl.int64) * H + head) * D * D + row[:, None] * D + column[None, :]
    state_mask = (row < D)[:, None] & (column < D)[None, :]
    state = tl.zeros((BD, BV), dtype=tl.float32)
    if HAS_INITIAL:
        state = tl.load(initial + state_offset, mask=state_mask, other=0.0)
    rate = tl.load(beta + head).to(tl.float32)
    for token in range(start, end):
        base = (token * H + head) * D
        query = tl.load(q + base + row, mask=row < D, other=0.0).to(tl.float32)
        key = tl.load(k + base + row, mask=row < D, other=0.0).to(tl.float32)
        value = tl.load(v + base + column, mask=column < D, other=0.0).to(tl.float32)
        alpha = gate_of(tl.sum(key * key, axis=0), rate)
        written = alpha * (value - tl.sum(state * key[:, None], axis=0))
        state += key[:, None] * written[None, :]
        out = tl.sum(state * query[:, None], axis=0)
        tl.store(o + base + column, out.to(o.dtype.element_ty), mask=column < D)
    if HAS_FINAL:
        tl.store(final + state_offset, state, mask=state_mask)


@input_guard
def fused_recurrent_quasar(
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

    Arguments as `chunk_quasar`; the state lives in registers, float32.

    Raises:
        ValueError: a shape, dtype or device is wrong.
    """
    limits = check_arguments(q, k, v, beta, initial_state, cu_seqlens)
    _, _, heads, dim = q.shape
    count = len(limits) - 1
    o = torch.empty_like(q)
    state_shape = (count if output_final_state else 0, heads, dim, dim)
    final = torch.empty(state_shape, dtype=torch.float32, device=q.device)
    block_d = triton.next_power_of_2(dim)
    block_v = min(block_d, BLOCK_V)
    _recurrent_kernel[(count, heads, triton.cdiv(dim, block_v))](
        q, k, v, beta, o, final if initial_state is None else initial_state, final,
        torch.tensor(limits, dtype=torch.int64, device=q.device),
        heads, dim, block_d, block_v, initial_state is not None, output_final_state,
        num_warps=NUM_WARPS,
    )  # fmt: skip
    inputs = (q, k, v, beta, initial_state)
    o = forward_only("fused_recurrent_quasar", o, *inputs)
    return o, forward_only("fused_recurrent_quasar", final, *inputs) if output_final_state else None
