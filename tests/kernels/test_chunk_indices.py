"""The chunks of packed sequences."""

import torch

from kernels.chunk_indices import prepare_chunk_indices


def test_chunks_of_packed_sequences() -> None:
    boundaries = torch.tensor([0, 0, 5, 9, 9, 10])
    assert prepare_chunk_indices(boundaries, 4).tolist() == [[1, 0], [1, 1], [2, 0], [4, 0]]
    assert prepare_chunk_indices(torch.tensor([0, 0]), 4).shape == (0, 2)
