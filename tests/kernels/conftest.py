"""Inputs of kernel tests, poisoned allocations, and the device that this machine has."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

Draw = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU when there is one; otherwise Triton's interpreter works on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def draw(device: torch.device) -> Draw:
    """Return a function that draws q, k, v [B, T, H, D] and beta [H]."""

    def make(
        batch: int = 1,
        length: int = 70,
        heads: int = 2,
        dim: int = 32,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (
            torch.randn(batch, length, heads, dim, generator=generator).to(device, dtype) for _ in range(3)
        )
        beta = (0.2 + torch.rand(heads, generator=generator)).to(device)
        return {"q": q, "k": k, "v": v, "beta": beta}

    return make


@pytest.fixture(autouse=True)
def poisoned_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill every fresh buffer with NaN, so that an element that no kernel writes cannot pass for a result."""
    empty, empty_like = torch.empty, torch.empty_like

    def fill(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    def poisoned_empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        return fill(empty(*args, **kwargs))

    def poisoned_empty_like(*args: Any, **kwargs: Any) -> torch.Tensor:
        return fill(empty_like(*args, **kwargs))

    monkeypatch.setattr(torch, "empty", poisoned_empty)
    monkeypatch.setattr(torch, "empty_like", poisoned_empty_like)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |actual - expected| / |expected| in float64; NaN when anything is NaN."""
    expected = expected.double()
    return float((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30))
