"""Every kernel once on small shapes, for `compute-sanitizer`: `python -m tests.kernels.sanitize_all`.

With `PYTORCH_NO_CUDA_MEMORY_CACHING=1` every tensor is an allocation of its own, so that one element too far
is noticed.
"""

import torch

from kernels.chunk import chunk_quasar
from kernels.forward_substitution import invert_unit_lower
from kernels.fused_recurrent import fused_recurrent_quasar
from kernels.layer import QuasarAttention

SHAPES = (
    ([0, 1], 2, 64),
    ([0, 700], 1, 64),
    ([0, 0, 1, 66, 1000], 1, 64),
    ([0, 300], 1, 40),
    ([0, 130], 1, 128),
)
"""Boundaries of sequences, heads and dimension: odd lengths, one token, none, states that are cut."""


def run_operators(boundaries: list[int], heads: int, dim: int, dtype: torch.dtype) -> None:
    """Run both operators with states in and out; raises ValueError on a result that is not finite."""
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(1)
    q, k, v = (
        torch.randn(1, boundaries[-1], heads, dim, generator=generator, device=device).to(dtype)
        for _ in range(3)
    )
    beta = torch.ones(heads, device=device)
    state = torch.randn(len(boundaries) - 1, heads, dim, dim, generator=generator, device=device)
    cu_seqlens = torch.tensor(boundaries, device=device)
    for operator in (chunk_quasar, fused_recurrent_quasar):
        o, final = operator(q, k, v, beta, state, output_final_state=True, cu_seqlens=cu_seqlens)
        if final is None or not (o.isfinite().all() and final.isfinite().all()):
            raise ValueError(f"{operator.__name__}: not finite at {boundaries}, dimension {dim}, {dtype}")


def main() -> None:
    """Run everything; what is wrong is said by compute-sanitizer, or raised."""
    for boundaries, heads, dim in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            run_operators(boundaries, heads, dim, dtype)
    invert_unit_lower(torch.randn(5, 16, 16, device="cuda").tril(-1))
    layer, state = QuasarAttention(hidden_size=64, num_heads=2, head_dim=32).to("cuda"), None
    with torch.no_grad():
        for length in (70, 1):
            _, state = layer.stream(torch.randn(2, length, 64, device="cuda"), state)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
