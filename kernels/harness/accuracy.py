"""How far an output is from the float32 reference, per token and head."""

import math
from dataclasses import dataclass

import torch

from kernels.harness.inputs import Inputs
from kernels.reference import chunked

NEGLIGIBLE = 0.05
"""Rows whose reference norm is below this share of the median are left to the absolute difference: honest
bfloat16 arithmetic errs by a share of the inputs, not of a result that happens to be small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """The worst token and head; NaN when the output holds a NaN or an infinity."""

    cosine_similarity: float
    max_abs_diff: float
    relative_error: float

    def worse_of(self, other: "Accuracy") -> "Accuracy":
        """Return the worse of each figure; NaN is worst."""
        return Accuracy(
            cosine_similarity=_worse(self.cosine_similarity, other.cosine_similarity, min),
            max_abs_diff=_worse(self.max_abs_diff, other.max_abs_diff, max),
            relative_error=_worse(self.relative_error, other.relative_error, max),
        )


def _worse(left: float, right: float, choose: "type[min] | type[max]") -> float:  # type: ignore[valid-type]
    if math.isnan(left) or math.isnan(right):
        return math.nan
    return float(choose(left, right))  # type: ignore[operator]


def reference_output(
    inputs: Inputs, device: torch.device, cu_seqlens: list[int] | None = None
) -> torch.Tensor:
    """Return the float32 reference o [B, T, H, D] on `device`."""
    boundaries = torch.tensor(cu_seqlens) if cu_seqlens is not None else None
    o, _ = chunked(
        *(x.to(device) for x in (inputs.q, inputs.k, inputs.v, inputs.beta)), cu_seqlens=boundaries
    )
    return o


def compare(output: torch.Tensor, reference: torch.Tensor) -> Accuracy:
    """Compare o with the reference, both float32 [B, T, H, D]."""
    if not bool(torch.isfinite(output).all()):
        return Accuracy(cosine_similarity=math.nan, max_abs_diff=math.nan, relative_error=math.nan)
    difference = output - reference
    norms = reference.norm(dim=-1)
    weighty = norms > NEGLIGIBLE * norms.median()
    cosine = torch.nn.functional.cosine_similarity(output, reference, dim=-1)[weighty]
    return Accuracy(
        cosine_similarity=float(cosine.min()),
        max_abs_diff=float(difference.abs().max()),
        relative_error=float(difference.norm() / reference.norm()),
    )


def rounding_error(reference: torch.Tensor) -> float:
    """Return the relative error that honest bfloat16 arithmetic makes at least.

    Twice the rounding of o: what is inside a kernel is rounded as well.
    """
    return 2.0 * float((reference.bfloat16().float() - reference).norm() / reference.norm())
