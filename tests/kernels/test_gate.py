"""The gate kernel over the whole range of key norms."""

import torch

from kernels.gate import quasar_gate
from kernels.reference import alpha


def test_gate_is_exact_from_vanishing_to_huge_keys(device: torch.device) -> None:
    scales = torch.logspace(-12, 8, 200, dtype=torch.float64)
    k = (scales[:, None, None] * torch.ones(1, 2, 4, dtype=torch.float64)).float().to(device)
    beta = torch.tensor([0.3, 4.0], device=device)
    expected = alpha(k.double(), beta.double())
    actual = quasar_gate(k, beta)
    assert float(((actual.double() - expected) / expected).abs().max()) < 2e-6


def test_gate_of_nothing(device: torch.device) -> None:
    assert quasar_gate(torch.empty(0, 2, 8, device=device), torch.ones(2, device=device)).shape == (0, 2)
