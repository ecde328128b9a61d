"""The operators compute values alone: whoever differentiates one is told so, and gets no silent zeros."""

import torch


class _ForwardOnly(torch.autograd.Function):
    """Hands a value on; its derivative is an error."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, name: str, value: torch.Tensor, *_: object
    ) -> torch.Tensor:
        ctx.name = name  # type: ignore[attr-defined]
        return value.view_as(value)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *_: torch.Tensor) -> None:
        raise RuntimeError(f"{ctx.name} has no gradient: call it under torch.no_grad()")  # type: ignore[attr-defined]


def forward_only(name: str, value: torch.Tensor, *inputs: torch.Tensor | None) -> torch.Tensor:
    """Return `value`, whose differentiation with respect to any of `inputs` raises a RuntimeError."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return _ForwardOnly.apply(name, value, *inputs)  # type: ignore[no-any-return, no-untyped-call]
    return value
