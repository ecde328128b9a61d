"""Random inputs on which a shortcut shows: every trial draws them alike."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Shape of a trial: q, k, v and o are [B, T, H, D] of `dtype`."""

    batch: int
    length: int
    heads: int
    dim: int
    dtype: str

    @property
    def count(self) -> int:
        """Numbers in one of the tensors."""
        return self.batch * self.length * self.heads * self.dim

    @property
    def size(self) -> tuple[int, int, int, int]:
        """Return [B, T, H, D]."""
        return (self.batch, self.length, self.heads, self.dim)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that the operator sees."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    def as_message(self) -> dict[str, Any]:
        """Return the shape as the worker reads it."""
        return {
            "batch": self.batch,
            "length": self.length,
            "heads": self.heads,
            "dim": self.dim,
            "dtype": self.dtype,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One draw; float32 values that `dtype` represents exactly."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    beta: torch.Tensor

    def flat(self) -> torch.Tensor:
        """Return q, k, v and beta one after another."""
        return torch.cat([tensor.reshape(-1) for tensor in (self.q, self.k, self.v, self.beta)])

    def packed(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return q, k and v in `dtype` and beta in float32, one after another, as bytes on `device`."""
        parts = [tensor.to(device, dtype) for tensor in (self.q, self.k, self.v)]
        return torch.cat(
            [tensor.reshape(-1).view(torch.uint8) for tensor in (*parts, self.beta.to(device, torch.float32))]
        )


def draw_inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    """Draw q, k, v [B, T, H, D] and beta [H] on the generator's device.

    An early impulse is written along a direction that no later key touches, because the keys after it live in
    a random proper subspace, while queries see the whole space: a kernel that forgets, windows or skips is
    wrong at every later token. Scaled so that outputs are of order one.
    """
    batch, length, heads, dim = shape.batch, shape.length, shape.heads, shape.dim

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=generator.device)

    # Queries of length one: o is then of the order of v, where bfloat16 resolves a hundredth.
    q = normal(batch, length, heads, dim) / dim**0.5
    v = normal(batch, length, heads, dim)
    basis, _ = torch.linalg.qr(normal(batch, heads, dim, dim))
    hidden = max(1, dim // 8)
    coordinates = normal(batch, length, heads, dim - hidden) if dim > 1 else normal(batch, length, heads, 1)
    k = torch.einsum("blhs,bhds->blhd", coordinates, basis[..., : coordinates.shape[-1]]) / dim**0.5
    if dim > 1:
        last_impulse = max(1, length // 32)
        at = int(torch.randint(0, last_impulse, (), generator=generator, device=generator.device))
        count = min(hidden, length - at)
        for offset in range(count):
            k[:, at + offset] = basis[..., dim - 1 - offset]
            v[:, at + offset] *= 2.0
    beta = 0.5 + torch.rand(heads, generator=generator, device=generator.device)
    q, k, v = (tensor.contiguous().to(shape.torch_dtype).float() for tensor in (q, k, v))
    return Inputs(q=q, k=k, v=v, beta=beta)
