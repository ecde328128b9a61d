"""The layer beside itself without attention, and decoding beside its peer."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from kernels.benchmark import Benchmark, Row, relative_error
from kernels.fused_recurrent import fused_recurrent_quasar
from kernels.layer import QuasarAttention
from kernels.layer_reference import plain_layer
from kernels.reference import alpha, chunked, recurrence

LAYER: Final = "quasar layer"
IDLE: Final = "idle layer"
"""The same without attention."""
DECODE: Final = "quasar decode"
PREFIX: Final = 512
"""Tokens of the layer's output that are compared: it is causal."""


def layer_rows(benchmark: Benchmark, lengths: Sequence[int], *, heads: int, dim: int) -> Iterator[Row]:
    """Yield the layer (hidden size H * D, float32 input; bfloat16 by autocast on a GPU) at every length."""
    device = benchmark.device
    is_gpu = device.type == "cuda"
    hidden = heads * dim
    torch.manual_seed(0)
    whole = QuasarAttention(hidden, heads, dim).to(device)
    idle = QuasarAttention(hidden, heads, dim, operator=_no_operator, decode_operator=_no_operator).to(device)
    idle.load_state_dict(whole.state_dict())
    layers = {LAYER: (whole, chunked), IDLE: (idle, _no_operator)}

    def run(layer: QuasarAttention) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=is_gpu):
                return layer(x)  # type: ignore[no-any-return]

        return forward

    for length in lengths:
        draws = [
            torch.randn(1, length, hidden, generator=benchmark.generator, device=device) for _ in range(2)
        ]
        size = draws[0].numel() * 4
        moved = size + size // (2 if is_gpu else 1)
        for name, (layer, operator) in layers.items():
            with torch.no_grad():
                exact = plain_layer(layer, draws[0][:, :PREFIX], operator=operator)
            row = Row(
                operator=name,
                batch=1,
                length=length,
                heads=heads,
                dim=dim,
                dtype="bfloat16" if is_gpu else "float32",
            )
            error_of = functools.partial(_error_at_the_start, exact=exact)
            yield benchmark.measure(row, run(layer), draws, error_of, held_bytes=size, moved_bytes=moved)


def _error_at_the_start(y: torch.Tensor, exact: torch.Tensor) -> float:
    return relative_error(y[:, :PREFIX], exact)


def _no_operator(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, **_: object
) -> tuple[torch.Tensor, torch.Tensor]:
    return v, q.new_zeros(q.shape[0], q.shape[2], q.shape[3], q.shape[3])


@dataclass(frozen=True, slots=True)
class _Step:
    """One token of every sequence, alpha [N, 1, H] for those who want it, and the states before it."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    beta: torch.Tensor
    alpha: torch.Tensor
    state: torch.Tensor


def decode_rows(benchmark: Benchmark, *, sequences: int, heads: int, dim: int) -> Iterator[Row]:
    """Yield one decoding step of so many sequences: ours in place, and FLA's on a GPU."""
    device, generator = benchmark.device, benchmark.generator
    is_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if is_gpu else torch.float32

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=device) / dim**0.5

    def step() -> _Step:
        q, k, v = (normal(sequences, 1, heads, dim).to(dtype) for _ in range(3))
        beta = 0.5 + torch.rand(heads, generator=generator, device=device)
        rate = alpha(k.float(), beta).to(dtype)
        return _Step(q, k, v, beta, rate, normal(sequences, heads, dim, dim))

    draws = [step() for _ in range(3)]
    first = draws[0]
    exact, _ = recurrence(
        first.q, first.k, first.v, first.beta, initial_state=first.state.clone(), dtype=torch.float64
    )
    runs: dict[str, Callable[[Any], torch.Tensor]] = {DECODE: _decode}
    if is_gpu:
        runs["FLA decode, delta rule"] = _fla_decode
    for name, run in runs.items():
        row = Row(
            operator=name,
            batch=sequences,
            length=1,
            heads=heads,
            dim=dim,
            dtype="bfloat16" if is_gpu else "float32",
        )
        size = first.state.numel() * 4
        # A run moves the states on; the next peer starts where this one did.
        fresh = [dataclasses.replace(x, state=x.state.clone()) for x in draws]
        yield benchmark.measure(
            row, run, fresh, lambda o: relative_error(o, exact), held_bytes=size, moved_bytes=2 * size
        )


def _decode(x: _Step) -> torch.Tensor:
    return fused_recurrent_quasar(x.q, x.k, x.v, x.beta, initial_state=x.state, inplace_final_state=True)[0]


def _fla_decode(x: _Step) -> torch.Tensor:
    from fla.ops.delta_rule import fused_recurrent_delta_rule

    o: torch.Tensor = fused_recurrent_delta_rule(
        x.q, x.k, x.v, x.alpha, scale=1.0, initial_state=x.state, output_final_state=True
    )[0]
    return o
