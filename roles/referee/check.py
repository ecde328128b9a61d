"""Whether a device computes at all."""

import torch

SIZE = 256


def check_device(device: str) -> None:
    """Multiply two matrices. Raises RuntimeError when the result is wrong, or the device fails."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator) for _ in range(2))
    there = (a.to(device) @ b.to(device)).cpu()
    if not torch.allclose(there, a @ b):
        raise RuntimeError(f"{device} multiplied two matrices wrongly")
