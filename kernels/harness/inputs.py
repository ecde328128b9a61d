"""Random inputs on which a shortcut shows: every trial draws them alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

SET_ALIGNMENT: Final = 512
CHAIN: Final = 4.0
"""How much an output weighs in the next call's beta."""


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
    def set_bytes(self) -> int:
        """Bytes of q, k, v in `dtype` and beta in float32, rounded up: sets lie one after another."""
        used = 3 * self.count * self.torch_dtype.itemsize + 4 * self.heads
        return -(-used // SET_ALIGNMENT) * SET_ALIGNMENT

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
    """One draw: q, k and v in the shape's dtype, beta in float32."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    beta: torch.Tensor

    def flat(self) -> torch.Tensor:
        """Return q, k, v and beta one after another, in float32."""
        return torch.cat([tensor.reshape(-1).float() for tensor in (self.q, self.k, self.v, self.beta)])

    def pack(self, target: torch.Tensor) -> None:
        """Write q, k, v and beta one after another into bytes on their device."""
        at = 0
        for part in (self.q, self.k, self.v, self.beta):
            flat = part.reshape(-1).view(torch.uint8)
            target[at : at + flat.numel()].copy_(flat)
            at += flat.numel()


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSets:
    """Draws of one shape for one trial, each when it is asked for."""

    shape: Shape
    count: int
    draw: Callable[[int], Inputs]
    """Returns the set of this number, the same every time."""


def draw_inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    """Draw q, k, v [B, T, H, D] and beta [H] on the generator's device.

    Every head forgets at all rates between one token and the whole sequence, along directions that do not
    show: keys are random mixtures of parts whose sizes squared lie between 1 and 1 / T, most of them small.
    So no piece of a sequence can be had from a guess at the state that enters it. Once in each of D / 8 parts
    of the sequence an impulse is written along a direction that no other key touches, which stays to the end,
    while queries see the whole space: a kernel that forgets, windows or skips is wrong at every later token.
    Scaled so that outputs are of order one.
    """
    batch, length, heads, dim = shape.batch, shape.length, shape.heads, shape.dim
    device = generator.device

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=device)

    # Queries of length one: o is then of the order of v, where bfloat16 resolves a hundredth.
    q = normal(batch, length, heads, dim) / dim**0.5
    v = normal(batch, length, heads, dim)
    mixture = _sizes(shape, generator)[..., None] * normal(batch, heads, dim, dim) / dim
    # None where one dimension is all there is.
    count = min(max(1, dim // 8), dim - 1, length)
    hidden = _orthonormal(normal(batch, heads, dim, count))
    mixture -= mixture @ hidden @ hidden.mT
    k = torch.einsum("blhs,bhsd->blhd", normal(batch, length, heads, dim), mixture)
    part = length // max(1, count)
    at = torch.randint(0, part, (batch, heads, count), generator=generator, device=device)
    at += part * torch.arange(count, device=device)
    of_batch, of_head = (torch.arange(size, device=device) for size in (batch, heads))
    impulses = (of_batch[:, None, None], at, of_head[:, None])
    k[impulses] = hidden.mT
    v[impulses] *= 2.0
    beta = 0.5 + torch.rand(heads, generator=generator, device=device)
    q, k, v = (tensor.to(shape.torch_dtype).contiguous() for tensor in (q, k, v))
    return Inputs(q=q, k=k, v=v, beta=beta)


def _sizes(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Draw the sizes [B, H, D] of the parts of keys, evenly over their range: D together when squared."""
    size = (shape.batch, shape.heads, shape.dim)
    steps = torch.arange(shape.dim, device=generator.device)
    places = (steps + torch.rand(size, generator=generator, device=generator.device)) / shape.dim
    # The root: what is forgotten slowly is what a piece of a sequence has to hand on.
    squared = float(shape.length) ** -places.sqrt()
    return (squared / squared.mean(-1, keepdim=True)).sqrt()


def spliced(head: Inputs, tail: Inputs, at: int) -> Inputs:
    """Return the tokens of `head` before token `at` and of `tail` from there on, with beta [H] of `head`."""
    q, k, v = (
        torch.cat([first[:, :at], last[:, at:]], dim=1)
        for first, last in ((head.q, tail.q), (head.k, tail.k), (head.v, tail.v))
    )
    return Inputs(q=q, k=k, v=v, beta=head.beta)


def _orthonormal(x: torch.Tensor) -> torch.Tensor:
    """Return an orthonormal basis [..., D, N] of the columns of x, N well below D: by Cholesky's factor.

    On a GPU a QR decomposition of matrices this small took 1.6 of the 3.5 ms of a draw of 100,000 tokens.
    """
    factor = torch.linalg.cholesky(x.mT @ x)
    return torch.linalg.solve_triangular(factor, x.mT, upper=False).mT


def chained_beta(beta: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
    """Return beta [H] of the call after the one that gave o [B, T, H, D], from the beta drawn for it.

    Calls of one trial hang together so that none can begin before the last token of the one before is
    there: they cannot be run as a batch.
    """
    last = o[0, -1, :, 0]
    return torch.addcmul(beta, last, last, value=CHAIN)
