"""The definition of QuasarAttention in plain PyTorch: what every kernel is checked against.

Source: Lei, Zhang, Poria, "Error-Free Linear Attention is a Free Lunch", arXiv:2512.12602.
"""

from itertools import pairwise

import torch

from kernels.shapes import check_arguments

Result = tuple[torch.Tensor, torch.Tensor | None]


def alpha(k: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """Return (1 - exp(-beta * |k|^2)) / |k|^2 [..., H] for k [..., H, D] and beta [H]; beta where k is 0."""
    squared_norm = k.square().sum(-1)
    safe = torch.where(squared_norm > 0, squared_norm, torch.ones_like(squared_norm))
    return torch.where(
        squared_norm > 0, -torch.expm1(-beta * squared_norm) / safe, beta.expand_as(squared_norm)
    )


def recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Result:
    """Run the recurrence token by token in `dtype`; slow, and the definition itself.

    q, k, v [B, T, H, D], beta [H], initial_state [N, H, D, D]; returns o [B, T, H, D] and final_state
    [N, H, D, D], both in `dtype`.
    """
    boundaries = check_arguments(q, k, v, beta, initial_state, cu_seqlens)
    shape = q.shape
    q, k, v = (tensor.to(dtype).reshape(-1, *shape[2:]) for tensor in (q, k, v))
    gate = alpha(k, beta.to(dtype))
    state = _initial_states(q, len(boundaries) - 1, initial_state)
    o = torch.empty_like(q)
    for index, (start, end) in enumerate(pairwise(boundaries)):
        current = state[index]
        for t in range(start, end):
            read = torch.einsum("hkv,hk->hv", current, k[t])
            current = current + torch.einsum("h,hk,hv->hkv", gate[t], k[t], v[t] - read)
            o[t] = torch.einsum("hkv,hk->hv", current, q[t])
        state[index] = current
    return o.reshape(shape), state if output_final_state else None


def chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    chunk_size: int = 64,
) -> Result:
    """Compute the same as `recurrence`, a chunk at a time: usable at a million tokens.

    With M = strict_lower(diag(alpha) K K^T), W = (I + M)^-1 diag(alpha) K and U = (I + M)^-1 diag(alpha) V:
    V' = U - W S, O = Q S + lower(Q K^T) V', S' = S + K^T V'.
    """
    boundaries = check_arguments(q, k, v, beta, initial_state, cu_seqlens)
    shape = q.shape
    q, k, v = (tensor.to(dtype).reshape(-1, *shape[2:]) for tensor in (q, k, v))
    gate = alpha(k, beta.to(dtype))
    state = _initial_states(q, len(boundaries) - 1, initial_state)
    o = torch.empty_like(q)
    for index, (start, end) in enumerate(pairwise(boundaries)):
        if end > start:
            parts = (q[start:end], k[start:end], v[start:end], gate[start:end])
            o[start:end], state[index] = _chunked_sequence(*parts, state[index], chunk_size)
    return o.reshape(shape), state if output_final_state else None


def _initial_states(q: torch.Tensor, count: int, initial_state: torch.Tensor | None) -> torch.Tensor:
    if initial_state is not None:
        return initial_state.to(q.dtype, copy=True)
    return q.new_zeros(count, q.shape[1], q.shape[2], q.shape[2])


def _chunked_sequence(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor, state: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence: q, k, v [T, H, D], gate [T, H], state [H, D, D]."""
    length = q.shape[0]
    padding = -length % size
    # Padded keys are zero: they neither read nor write the state.
    qc, kc, vc = (_split(torch.nn.functional.pad(x, (0, 0, 0, 0, 0, padding)), size) for x in (q, k, v))
    gc = _split(torch.nn.functional.pad(gate, (0, 0, 0, padding))[..., None], size)
    scaled = gc * kc
    lower = torch.tril(scaled @ kc.transpose(-1, -2), diagonal=-1)
    identity = torch.eye(size, dtype=q.dtype, device=q.device)
    solved = torch.linalg.solve_triangular(
        identity + lower, torch.cat((scaled, gc * vc), dim=-1), upper=False, unitriangular=True
    )
    w, u = solved.chunk(2, dim=-1)
    attention = torch.tril(qc @ kc.transpose(-1, -2))
    o = torch.empty_like(vc)
    for index in range(qc.shape[0]):
        written = u[index] - w[index] @ state
        o[index] = qc[index] @ state + attention[index] @ written
        state = state + kc[index].transpose(-1, -2) @ written
    return o.transpose(1, 2).reshape(-1, *q.shape[1:])[:length], state


def _split(x: torch.Tensor, size: int) -> torch.Tensor:
    """[T, H, D] -> [T / size, H, size, D]."""
    return x.reshape(-1, size, *x.shape[1:]).transpose(1, 2)
