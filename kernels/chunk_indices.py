"""The chunks of packed sequences; a fork has the same function in `fla.ops.utils.index`."""

import torch


def prepare_chunk_indices(cu_seqlens: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """Return the chunks [M, 2] of sequences with boundaries cu_seqlens [N + 1]: sequence, chunk within it."""
    counts = (cu_seqlens.diff() + (chunk_size - 1)).div(chunk_size, rounding_mode="floor")
    sequence = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    first = counts.cumsum(0) - counts
    within = torch.arange(len(sequence), device=counts.device) - first[sequence]
    return torch.stack([sequence, within], 1).to(cu_seqlens)
