"""Checks of the operator's arguments: one sentence that names the argument and the value."""

from itertools import pairwise

import torch

MAX_HEAD_DIM = 256
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_arguments(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> list[int]:
    """Check q, k, v [B, T, H, D], beta [H], initial_state [N, H, D, D] and cu_seqlens [N + 1].

    Returns the boundaries of the N sequences in the flattened tokens, N + 1 numbers from 0 to B * T.

    Raises:
        ValueError: a shape, dtype, device or boundary is wrong.
    """
    if q.dim() != 4:
        raise ValueError(f"q must be [B, T, H, D], not {list(q.shape)}")
    batch, length, heads, dim = q.shape
    if not 1 <= dim <= MAX_HEAD_DIM:
        raise ValueError(f"head dimension must be 1 to {MAX_HEAD_DIM}, not {dim}")
    if q.dtype not in DTYPES:
        raise ValueError(f"q must be bfloat16, float16 or float32, not {q.dtype}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.shape != q.shape or tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(
                f"{name} must match q ({list(q.shape)}, {q.dtype}, {q.device}), "
                f"not {list(tensor.shape)}, {tensor.dtype}, {tensor.device}"
            )
    if beta.shape != (heads,) or beta.device != q.device:
        raise ValueError(f"beta must be [{heads}] on {q.device}, not {list(beta.shape)} on {beta.device}")
    boundaries = _boundaries(batch, length, cu_seqlens)
    expected = (len(boundaries) - 1, heads, dim, dim)
    if initial_state is not None and (
        initial_state.shape != expected or initial_state.dtype != torch.float32
    ):
        raise ValueError(
            f"initial_state must be float32 {list(expected)}, "
            f"not {initial_state.dtype} {list(initial_state.shape)}"
        )
    return boundaries


def _boundaries(batch: int, length: int, cu_seqlens: torch.Tensor | None) -> list[int]:
    if cu_seqlens is None:
        return [index * length for index in range(batch + 1)]
    if batch != 1:
        raise ValueError(f"cu_seqlens goes with a batch of 1, not {batch}: concatenate the sequences")
    boundaries = [int(value) for value in cu_seqlens.tolist()]
    is_ascending = all(left <= right for left, right in pairwise(boundaries))
    if len(boundaries) < 2 or boundaries[0] != 0 or boundaries[-1] != length or not is_ascending:
        raise ValueError(f"cu_seqlens must ascend from 0 to {length}, not {boundaries[:8]}")
    return boundaries
