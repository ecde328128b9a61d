"""A layer of the referee's own around a submission's operator: what the operator is for."""

from dataclasses import dataclass
from typing import Self

import torch

from kernels.harness.inputs import Inputs, Shape
from kernels.layer import QuasarAttention
from kernels.layer_reference import layer_output, operator_inputs


@dataclass(frozen=True, slots=True)
class TrustedLayer:
    """A QuasarAttention layer in float32, [B, T, H * D] to the same, and what goes into it, all at random."""

    layer: QuasarAttention
    x: torch.Tensor
    dtype: torch.dtype
    """Of the operator."""

    @classmethod
    @torch.no_grad()
    def draw(cls, shape: Shape, generator: torch.Generator) -> Self:
        """Draw parameters and x for an operator of this shape, on the generator's device."""
        hidden = shape.heads * shape.dim
        layer = QuasarAttention(hidden, shape.heads, shape.dim).to(generator.device)
        for parameter in layer.parameters():
            if parameter.dim() > 1:
                bound = parameter[0].numel() ** -0.5
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.normal_(generator=generator)
        x = torch.randn(shape.batch, shape.length, hidden, generator=generator, device=generator.device)
        return cls(layer, x, shape.torch_dtype)

    @torch.no_grad()
    def inputs(self) -> Inputs:
        """Return what the operator gets."""
        *qkv, beta = operator_inputs(self.layer, self.x)
        q, k, v = (tensor.contiguous().to(self.dtype) for tensor in qkv)
        return Inputs(q=q, k=k, v=v, beta=beta)

    @torch.no_grad()
    def output(self, o: torch.Tensor) -> torch.Tensor:
        """Return [B, T, 1, H * D], what the layer makes of o [B, T, H, D]: a row for each token."""
        return layer_output(self.layer, self.x, o.float()).unsqueeze(2)
