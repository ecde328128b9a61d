"""The gate kernel over the whole range of key norms."""

import pytest
import torch

from kernels.gate import fused_quasar_gate
from kernels.reference import alpha


def test_gate_is_exact_from_vanishing_to_huge_keys(device: torch.device) -> None:
    scales = torch.logspace(-12, 8, 200, dtype=torch.float64)
    k = (scales[:, None, None] * torch.ones(1, 2, 4, dtype=torch.float64)).float().to(device)
    beta = torch.tensor([0.3, 4.0], device=device)
    expected = alpha(k.double(), beta.double())
    actual = fused_quasar_gate(k.square().sum(-1, keepdim=True), beta)[..., 0]
    assert float(((actual.double() - expected) / expected).abs().max()) < 2e-6


def test_gate_of_nothing(device: torch.device) -> None:
    assert fused_quasar_gate(torch.empty(0, 2, 1, device=device), torch.ones(2, device=device)).shape == (
        0,
        2,
        1,
    )


def test_gate_of_norms_as_the_layer_of_a_fork_calls_it(device: torch.device) -> None:
    k = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0)).to(device)
    beta = torch.tensor([0.3, 1.0, 4.0], device=device)
    squared_norms = k.square().sum(-1, keepdim=True)
    actual = fused_quasar_gate(squared_norms, beta)
    assert actual.shape == squared_norms.shape
    assert torch.allclose(actual[..., 0], alpha(k, beta), rtol=1e-6)
    assert fused_quasar_gate(squared_norms, beta, torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"lambda_t must be \[..., 3, 1\], not \[2, 5, 3\]"):
        fused_quasar_gate(squared_norms[..., 0], beta)
