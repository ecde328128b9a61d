"""QuasarAttention forward token by token in one launch: decoding, and an independent form for any length."""

import functools

import torch

from kernels.backend import input_guard, tl, triton
from kernels.bound import BoundKernel
from kernels.gate import gate_of
from kernels.gradients import forward_only
from kernels.shapes import check_arguments, check_beta

NUM_WARPS = 4
BLOCK_V = 32


@triton.jit
def _recurrent_kernel(
    q, k, v, beta, o, initial, final, boundaries, length,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
    IS_PACKED: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_FINAL: tl.constexpr,
):  # fmt: skip
    head, sequence, block = tl.program_id(0) % H, (tl.program_id(0) // H).to(tl.int64), tl.program_id(1)
    start, end = sequence * length, (sequence + 1) * length
    if IS_PACKED:
        start, end = tl.load(boundaries + sequence), tl.load(boundaries + sequence + 1)
    row = tl.arange(0, BD)
    column = block * BV + tl.arange(0, BV)
    state_offset = (sequence * H + head) * D * D + row[:, None] * D + column[None, :]
    state_mask = (row < D)[:, None] & (column < D)[None, :]
    state = tl.zeros((BD, BV), dtype=tl.float32)
    if HAS_INITIAL:
        state = tl.load(initial + state_offset, mask=state_mask, other=0.0)
    rate = tl.load(beta + head).to(tl.float32)
    base = (start * H + head) * D
    for _ in range(start, end):
        query = tl.load(q + base + row, mask=row < D, other=0.0).to(tl.float32)
        key = tl.load(k + base + row, mask=row < D, other=0.0).to(tl.float32)
        value = tl.load(v + base + column, mask=column < D, other=0.0).to(tl.float32)
        alpha = gate_of(tl.sum(key * key, axis=0), rate)
        written = alpha * (value - tl.sum(state * key[:, None], axis=0))
        state += key[:, None] * written[None, :]
        out = tl.sum(state * query[:, None], axis=0)
        tl.store(o + base + column, out.to(o.dtype.element_ty), mask=column < D)
        base += H * D
    if HAS_FINAL:
        # The final state may take the place of the initial one, which every thread has read by now.
        tl.debug_barrier()
        tl.store(final + state_offset, state, mask=state_mask)


def fused_recurrent_quasar(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    inplace_final_state: bool = False,
    checks_beta: bool = False,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return o [B, T, H, D] in q's dtype and, when asked, the final state [N, H, D, D] in float32.

    Arguments as `chunk_quasar`; the state lives in registers, float32. With inplace_final_state the initial
    state becomes the final one, and is returned: decoding then needs no memory of its own.

    Raises:
        ValueError: a shape, dtype or device is wrong, there is no state to write to, or, on request, a beta
            is not positive and finite.
    """
    if checks_beta:
        check_beta(beta)
    if inplace_final_state:
        _check_writable(initial_state)
    o, final = _fused_recurrent(
        q,
        k,
        v,
        beta,
        initial_state,
        cu_seqlens,
        output_final_state or inplace_final_state,
        inplace_final_state,
    )
    inputs = (q, k, v, beta, initial_state)
    o = forward_only("fused_recurrent_quasar", o, *inputs)
    return o, None if final is None else forward_only("fused_recurrent_quasar", final, *inputs)


def _check_writable(state: torch.Tensor | None) -> None:
    # Before the guard below: of a state that is not contiguous it would hand on a copy.
    if state is None or not state.is_contiguous():
        raise ValueError("inplace_final_state needs a contiguous initial_state to write to")
    if torch.is_grad_enabled() and state.requires_grad:
        raise ValueError("inplace_final_state overwrites initial_state, which requires a gradient")


@input_guard
def _fused_recurrent(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    has_final: bool,
    is_inplace: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    count = len(check_arguments(q, k, v, beta, initial_state, cu_seqlens)) - 1
    _, length, heads, dim = q.shape
    o = torch.empty_like(q)
    if is_inplace and initial_state is not None:
        final = initial_state
    else:
        state_shape = (count if has_final else 0, heads, dim, dim)
        final = torch.empty(state_shape, dtype=torch.float32, device=q.device)
    # Sequences of one length need no borders, and decoding no copy of them to the GPU.
    borders = q if cu_seqlens is None else cu_seqlens.to(q.device, torch.int64)
    launch = _launch_for(
        q.device, count, length, heads, dim, cu_seqlens is not None, initial_state is not None, has_final
    )
    launch(q, k, v, beta, o, final if initial_state is None else initial_state, final, borders)
    return o, final if has_final else None


@functools.lru_cache(maxsize=64)
def _launch_for(
    device: torch.device,
    count: int,
    length: int,
    heads: int,
    dim: int,
    is_packed: bool,
    has_initial: bool,
    has_final: bool,
) -> BoundKernel:
    block_d = triton.next_power_of_2(dim)
    block_v = min(block_d, BLOCK_V)
    return BoundKernel(
        _recurrent_kernel,
        (count * heads, -(-dim // block_v)),
        (length, heads, dim, block_d, block_v, is_packed, has_initial, has_final),
        num_warps=NUM_WARPS,
    )
