"""Our operators beside their peers: every one is checked before it is timed, all on the same inputs."""

import dataclasses
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F

from kernels.chunk import chunk_quasar
from kernels.fused_recurrent import fused_recurrent_quasar
from kernels.harness.inputs import Shape, draw_inputs
from kernels.reference import alpha, chunked
from protocol.leagues import weighted_score

CHUNK: Final = "quasar chunk"
RECURRENT: Final = "quasar recurrent"
MAX_ERROR: Final = {"float32": 1e-5, "bfloat16": 1.5e-2}
"""Relative error against float64 above which a result is wrong, and its speed no figure."""
PREFIX: Final = 256
"""Tokens of softmax attention that are compared with its definition: causal, so the rest follows."""
COPY_BYTES: Final = 2**30
WARM_UPS: Final = 2


@dataclass(frozen=True, slots=True)
class Drawn:
    """q, k, v [B, T, H, D] of the benchmark's type, beta [H], alpha and a decay of none [B, T, H]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    beta: torch.Tensor
    alpha: torch.Tensor
    no_decay: torch.Tensor

    @property
    def bytes(self) -> int:
        """Size of q, k and v together."""
        return sum(x.numel() * x.element_size() for x in (self.q, self.k, self.v))


Operator = Callable[[Drawn], torch.Tensor]
"""Returns o [B, T, H, D]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Something to be timed, up to a length beyond which it would take too long or too much memory."""

    name: str
    operator: Operator
    longest: int
    is_softmax: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One peer at one shape; without figures where `skipped` says why."""

    operator: str
    batch: int
    length: int
    heads: int
    dim: int
    dtype: str
    relative_error: float | None = None
    """Against float64."""
    milliseconds: float | None = None
    """Median."""
    spread: float | None = None
    """Interquartile range over the median."""
    tokens_per_sec: float | None = None
    weighted_score: float | None = None
    peak_mb: float | None = None
    """Inputs, output and what is needed on the way; None on a CPU."""
    floor_share: float | None = None
    """Share of the time that it would take to read q, k, v and write o once at the speed of a copy."""
    skipped: str = ""


def peers(device: torch.device) -> list[Peer]:
    """Return ours and those of others that run on the device."""
    ours = [
        Peer(name=CHUNK, operator=_chunk, longest=2**23),
        Peer(name=RECURRENT, operator=_recurrent, longest=131_072),
    ]
    reference = Peer(name="float32 reference", operator=_reference, longest=262_144)
    softmax = Peer(name="SDPA, causal", operator=_softmax_attention, longest=131_072, is_softmax=True)
    # FLA's kernels know no float32, and have no single configuration for the interpreter.
    others = _fla_peers() if device.type == "cuda" else []
    return [*ours, reference, softmax, *others]


def _chunk(x: Drawn) -> torch.Tensor:
    return chunk_quasar(x.q, x.k, x.v, x.beta)[0]


def _recurrent(x: Drawn) -> torch.Tensor:
    return fused_recurrent_quasar(x.q, x.k, x.v, x.beta)[0]


def _reference(x: Drawn) -> torch.Tensor:
    return chunked(x.q, x.k, x.v, x.beta)[0].to(x.q.dtype)


def _softmax_attention(x: Drawn) -> torch.Tensor:
    q, k, v = (tensor.transpose(1, 2) for tensor in (x.q, x.k, x.v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0).transpose(1, 2)


def _fla_peers() -> list[Peer]:
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    def delta(x: Drawn) -> torch.Tensor:
        o: torch.Tensor = chunk_delta_rule(x.q, x.k, x.v, x.alpha, scale=1.0)[0]
        return o

    def gated(x: Drawn) -> torch.Tensor:
        # Without decay the gated rule computes the same.
        o: torch.Tensor = chunk_gated_delta_rule(x.q, x.k, x.v, x.no_decay, x.alpha, scale=1.0)[0]
        return o

    return [
        Peer(name="FLA delta rule", operator=delta, longest=2**21),
        Peer(name="FLA gated delta rule", operator=gated, longest=2**21),
    ]


class Benchmark:
    """Times peers on one device; its own measure of the memory's speed is taken at the start."""

    def __init__(self, device: torch.device, *, repetitions: int, seed: int = 0) -> None:
        self.device = device
        self.repetitions = repetitions
        self.generator = torch.Generator(device).manual_seed(seed)
        is_gpu = device.type == "cuda"
        # Twice any L2: what it held of a trial's inputs is gone afterwards.
        self._flush = torch.empty(2**28 if is_gpu else 0, dtype=torch.int8, device=device)
        self.copy_bytes_per_sec = self._copy_speed()

    def run(self, shapes: Sequence[Shape], chosen: Sequence[Peer]) -> Iterator[Row]:
        """Yield a row for every peer at every shape."""
        for shape in shapes:
            draws = [self.draw(shape) for _ in range(3 if shape.count < 2**26 else 2)]
            exact, _ = chunked(draws[0].q, draws[0].k, draws[0].v, draws[0].beta, dtype=torch.float64)
            for peer in chosen:
                yield self._row(shape, peer, draws, exact)

    def _row(self, shape: Shape, peer: Peer, draws: list[Drawn], exact: torch.Tensor) -> Row:
        row = Row(operator=peer.name, **shape.as_message())
        if shape.length > peer.longest:
            return dataclasses.replace(row, skipped=f"longer than {peer.longest:,}")

        def error_of(o: torch.Tensor) -> float:
            if peer.is_softmax:
                return relative_error(o[:, :PREFIX], _exact_softmax(draws[0]))
            return relative_error(o, exact)

        size = draws[0].bytes
        return self.measure(row, peer.operator, draws, error_of, held_bytes=size, moved_bytes=size * 4 // 3)

    def measure(
        self,
        row: Row,
        run: Callable[[Any], torch.Tensor],
        draws: Sequence[Any],
        error_of: Callable[[torch.Tensor], float],
        *,
        held_bytes: int,
        moved_bytes: int,
    ) -> Row:
        """Check one run on the first draw, then time runs on all in turn; a failure is a row that says why.

        held_bytes: inputs of a run, counted into its peak; moved_bytes: what the floor reads and writes.
        """
        try:
            error = error_of(run(draws[0]))
            row = dataclasses.replace(row, relative_error=error)
            if not error <= MAX_ERROR[row.dtype]:
                return dataclasses.replace(row, skipped=f"wrong: relative error {error:.1e}")
            seconds = self.times(run, draws)
            peak = self._peak(run, draws[0])
        except torch.cuda.OutOfMemoryError:
            return dataclasses.replace(row, skipped="out of memory")
        except Exception as failure:  # noqa: BLE001 - a peer's failure is a row of the table
            reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
            return dataclasses.replace(row, skipped=f"failed: {reason[:200]}")
        median = statistics.median(seconds)
        low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median,) * 3
        speed = row.batch * row.length / median
        return dataclasses.replace(
            row,
            milliseconds=1e3 * median,
            spread=(high - low) / median,
            tokens_per_sec=speed,
            weighted_score=weighted_score(speed, row.length),
            peak_mb=None if peak is None else (held_bytes + peak) / 2**20,
            floor_share=moved_bytes / self.copy_bytes_per_sec / median,
        )

    def draw(self, shape: Shape) -> Drawn:
        """Draw inputs as a validator does."""
        inputs = draw_inputs(shape, self.generator)
        rate = alpha(inputs.k.float(), inputs.beta)
        return Drawn(
            inputs.q, inputs.k, inputs.v, inputs.beta, rate.to(shape.torch_dtype), torch.zeros_like(rate)
        )

    def times(self, operator: Callable[[Any], object], draws: Sequence[Any]) -> list[float]:
        """Seconds of each repetition, on inputs that the one before did not have."""
        for number in range(WARM_UPS):
            operator(draws[number % len(draws)])
        return [self.time(operator, draws[number % len(draws)]) for number in range(self.repetitions)]

    def time(self, operator: Callable[[Any], object], drawn: Any) -> float:
        """Seconds of one run, with nothing of it in the L2 cache."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            operator(drawn)
            return time.perf_counter() - started
        self._flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        operator(drawn)
        end.record()
        torch.cuda.synchronize(self.device)
        return float(begin.elapsed_time(end)) / 1e3

    def _peak(self, operator: Callable[[Any], object], drawn: Any) -> int | None:
        """Bytes that a run takes beside its inputs."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        operator(drawn)
        return torch.cuda.max_memory_allocated(self.device) - before

    def _copy_speed(self) -> float:
        """Bytes per second that a copy reads and writes."""
        size = COPY_BYTES if self.device.type == "cuda" else 2**24
        source = torch.empty(size, dtype=torch.int8, device=self.device)
        target = torch.empty_like(source)
        seconds = [self.time(lambda _: target.copy_(source), None) for _ in range(7)]
        return 2 * size / statistics.median(seconds)


def _exact_softmax(x: Drawn) -> torch.Tensor:
    """Causal softmax attention of the first tokens by its definition, in float64."""
    q, k, v = (tensor[:, :PREFIX].double() for tensor in (x.q, x.k, x.v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k)
    is_future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(is_future, float("-inf")).softmax(-1), v)


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """Return |actual - exact| / |exact| in float64."""
    return float((actual.double() - exact).norm() / exact.norm())


def machine(device: torch.device) -> dict[str, str]:
    """Return what a figure depends on: the device and the versions."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "triton", "fla-core")}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    return {"device": name, "python": platform.python_version(), **versions}
