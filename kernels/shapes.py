"""Checks of the operator's arguments: one sentence that names the argument and the value."""

import itertools
import math

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
        ValueError: a type, shape, dtype, device or boundary is wrong.
    """
    for name, value in (("q", q), ("k", k), ("v", v), ("beta", beta)):
        _check_tensor(name, value)
    if q.dim() != 4:
        raise ValueError(f"q must be [B, T, H, D], not {list(q.shape)}")
    batch, length, heads, dim = q.shape
    if batch < 1 or heads < 1:
        raise ValueError(
            f"q must hold at least one sequence and one head, not [B, T, H, D] = {list(q.shape)}"
        )
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
    if beta.shape != (heads,) or beta.device != q.device or not beta.is_floating_point():
        raise ValueError(
            f"beta must be [{heads}] of a floating type on {q.device}, "
            f"not {list(beta.shape)} of {beta.dtype} on {beta.device}"
        )
    boundaries = _boundaries(batch, length, cu_seqlens)
    if initial_state is not None:
        _check_state(initial_state, (len(boundaries) - 1, heads, dim, dim), q.device)
    return boundaries


def check_beta(beta: torch.Tensor) -> None:
    """Check that every beta [H] is positive and finite; waits for the device.

    Raises:
        ValueError: one is not.
    """
    for head, value in enumerate(beta.tolist()):
        if not 0.0 < value < math.inf:
            raise ValueError(f"beta must be positive and finite, not {value} for head {head}")


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(value).__name__}")


def _check_state(state: torch.Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    _check_tensor("initial_state", state)
    if state.shape != shape or state.dtype != torch.float32 or state.device != device:
        raise ValueError(
            f"initial_state must be {list(shape)} of torch.float32 on {device}, "
            f"not {list(state.shape)} of {state.dtype} on {state.device}"
        )


def _boundaries(batch: int, length: int, cu_seqlens: torch.Tensor | None) -> list[int]:
    if cu_seqlens is None:
        return [index * length for index in range(batch + 1)]
    _check_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cu_seqlens must be [N + 1] of torch.int32 or torch.int64, "
            f"not {list(cu_seqlens.shape)} of {cu_seqlens.dtype}"
        )
    if batch != 1:
        raise ValueError(f"cu_seqlens goes with a batch of 1, not {batch}: concatenate the sequences")
    boundaries: list[int] = cu_seqlens.tolist()
    is_ascending = all(left <= right for left, right in itertools.pairwise(boundaries))
    if len(boundaries) < 2 or boundaries[0] != 0 or boundaries[-1] != length or not is_ascending:
        raise ValueError(f"cu_seqlens must ascend from 0 to {length}, not {boundaries[:8]}")
    return boundaries
