"""The definition of QuasarAttention in plain PyTorch: what every kernel is checked against.

Source: Lei, Zhang, Poria, "Error-Free Linear Attention is a Free Lunch", arXiv:2512.12602.
"""

import math
from itertools import pairwise

import torch

from kernels.shapes import check_arguments

SEGMENT_CHUNKS = 1024
"""Chunks whose matrices are in memory at once: 0.3 GB per head and a dimension of 64 in float32."""

Result = tuple[torch.Tensor, torch.Tensor | None]


def alpha(k: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """Return (1 - exp(-beta * |k|^2)) / |k|^2 [..., H] for k [..., H, D] and beta [H]; beta where k is 0."""
    squared_norm = k.square().sum(-1)
    exponent = beta * squared_norm
    # Below the smallest normal number the quotient has no digits left, and the limit is exact.
    is_limit = torch.minimum(exponent, squared_norm) < torch.finfo(k.dtype).tiny
    safe = torch.where(is_limit, torch.ones_like(squared_norm), squared_norm)
    return torch.where(is_limit, beta.expand_as(safe), -torch.expm1(-exponent) / safe)


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
    [N, H, D, D], both in `dtype`. Differentiable.
    """
    boundaries = check_arguments(q, k, v, beta, initial_state, cu_seqlens)
    shape = q.shape
    q, k, v = (tensor.to(dtype).reshape(-1, *shape[2:]) for tensor in (q, k, v))
    gate = alpha(k, beta.to(dtype))
    outputs, states = [q[:0]], []
    for index, (start, end) in enumerate(pairwise(boundaries)):
        state = _initial_state(q, initial_state, index)
        for t in range(start, end):
            read = torch.einsum("hkv,hk->hv", state, k[t])
            state = state + torch.einsum("h,hk,hv->hkv", gate[t], k[t], v[t] - read)
            outputs.append(torch.einsum("hkv,hk->hv", state, q[t])[None])
        states.append(state)
    return torch.cat(outputs).reshape(shape), torch.stack(states) if output_final_state else None


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
    outputs, states = [q[:0]], []
    for index, (start, end) in enumerate(pairwise(boundaries)):
        state = _initial_state(q, initial_state, index)
        for first in range(start, end, SEGMENT_CHUNKS * chunk_size):
            part = slice(first, min(first + SEGMENT_CHUNKS * chunk_size, end))
            o, state = _chunked_segment(q[part], k[part], v[part], gate[part], state, chunk_size)
            outputs.append(o)
        states.append(state)
    return torch.cat(outputs).reshape(shape), torch.stack(states) if output_final_state else None


def _initial_state(q: torch.Tensor, initial_state: torch.Tensor | None, index: int) -> torch.Tensor:
    if initial_state is not None:
        return initial_state[index].to(q.dtype)
    return q.new_zeros(q.shape[1], q.shape[2], q.shape[2])


def _chunked_segment(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor, state: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Part of one sequence: q, k, v [T, H, D], gate [T, H], state [H, D, D]."""
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
    # A chunk takes the state S to P S + R; of these steps alone the order matters.
    written_to = kc.transpose(-1, -2)
    steps = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device) - written_to @ w
    states = _states(steps, written_to @ u, state)
    entering = states[:-1]
    o = qc @ entering + attention @ (u - w @ entering)
    return o.transpose(1, 2).reshape(-1, *q.shape[1:])[:length], states[-1]


def _states(steps: torch.Tensor, added: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """Return all states [C + 1, H, D, D] of S -> P S + R from `state` on; steps P and added R [C, H, D, D].

    On two levels: groups of chunks side by side, each a step at a time, then one group after the other. That
    takes three products for each chunk, and about four times the square root of C launches.
    """
    count, dim = len(steps), steps.shape[-1]
    size = math.isqrt(count - 1) + 1
    padding = -count % size
    identity = torch.eye(dim, dtype=steps.dtype, device=steps.device).expand(padding, *steps.shape[1:])
    # [size, groups, H, D, D]: what takes place side by side lies together.
    steps = torch.cat((steps, identity)).unflatten(0, (-1, size)).transpose(0, 1).contiguous()
    added = torch.cat((added, torch.zeros_like(identity))).unflatten(0, (-1, size)).transpose(0, 1)
    # Products and sums of a group up to each of its chunks: [P | R].
    maps = [torch.cat((steps[0], added[0]), dim=-1)]
    for step, more in zip(steps[1:], added[1:], strict=True):
        maps.append(step @ maps[-1] + torch.nn.functional.pad(more, (dim, 0)))
    products, sums = torch.stack(maps).split(dim, dim=-1)
    entering = [state]
    for product, total in zip(products[-1], sums[-1], strict=True):
        entering.append(product @ entering[-1] + total)
    states = products @ torch.stack(entering[:-1]) + sums
    return torch.cat((state[None], states.transpose(0, 1).flatten(0, 1)[:count]))


def _split(x: torch.Tensor, size: int) -> torch.Tensor:
    """[T, H, D] -> [T / size, H, size, D]."""
    return x.reshape(-1, size, *x.shape[1:]).transpose(1, 2)
