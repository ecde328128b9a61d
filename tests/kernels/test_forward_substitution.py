"""The on-chip inverse, also where powers of the matrix explode."""

import torch

from kernels.forward_substitution import invert_unit_lower


def test_inverse(device: torch.device) -> None:
    size = 16
    lower = torch.randn(3, size, size, generator=torch.Generator().manual_seed(0)).to(device) * 0.3
    matrix = torch.eye(size, device=device) + torch.tril(lower, -1)
    expected = torch.linalg.inv(matrix.double())
    actual = invert_unit_lower(lower).double()
    assert float((actual - expected).norm() / expected.norm()) < 1e-5


def test_inverse_of_ones_is_exact(device: torch.device) -> None:
    # (I + N)^-1 for N all ones below the diagonal is +-1 next to the diagonal and 0 elsewhere in closed form;
    # a power series would pass through numbers in the thousands.
    lower = torch.ones(1, 16, 16, device=device)
    expected = torch.linalg.inv(torch.eye(16).double() + torch.tril(torch.ones(16, 16).double(), -1))
    actual = invert_unit_lower(lower)[0].double().cpu()
    assert float((actual - expected).abs().max()) < 1e-6
