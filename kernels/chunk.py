"""QuasarAttention forward by a segmented affine scan.

A chunk of C tokens maps the state affinely: with A = (I + strict_lower(diag(alpha) K K^T))^-1 diag(alpha) and
Z = A (V - K S), the next state is S + K^T Z and the output Q S + lower(Q K^T) Z. Affine maps compose, so a
sequence is cut into segments that run side by side: `fold` makes one map of each segment, `scan` joins the
maps to the state that enters each, and `output` goes over the tokens again. Only A, C numbers for each token
and head, is kept in memory in between.
"""

import functools
from dataclasses import dataclass

import torch

from kernels.backend import IS_AMD, check_shared_mem, input_guard, tl, triton
from kernels.bound import BoundKernel
from kernels.chunk_intra_token_parallel import bind_solve
from kernels.gradients import forward_only
from kernels.launch import Launch
from kernels.segments import Segments, cut, processor_count, segment_size
from kernels.shapes import check_arguments, check_beta
from kernels.tuned import tuned_launch

CHUNK_SIZE = 16
BLOCK_V = 64
NUM_WARPS = 4
NUM_STAGES = 4
PROGRAMS = 4
"""Parameters of the launch (see Launch) where none were tuned for a shape."""
SCAN_BLOCK_V = 16
SHARED_MEMORY_BYTES = (("hopper", 232_448), ("ampere", 166_912), ("ada", 101_376))
"""What a program can have at most, by architecture; the largest first."""


@triton.jit
def _tile(pointer, offsets, count, columns, C: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """Load the columns of `count` tokens; rows beyond are zero, and so are columns beyond D."""
    mask = (tl.arange(0, C) < count)[:, None]
    if D != BD:
        mask = mask & (columns < D)[None, :]
    return tl.load(pointer + offsets, mask=mask, other=0.0)


@triton.jit
def _inverse_tile(pointer, C: tl.constexpr):
    """Load the inverse of a chunk; blocks above its diagonal are zero and were never written."""
    index = tl.arange(0, C)
    is_written = (index // 16)[:, None] >= (index // 16)[None, :]
    return tl.load(pointer + index[:, None] * C + index[None, :], mask=is_written, other=0.0)


@triton.jit
def _fold_kernel(
    k, v, inverse, transition, addition, table,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, segment, block = tl.program_id(0) % H, (tl.program_id(0) // H).to(tl.int64), tl.program_id(1)
    if tl.load(table + segment * 5 + 4) != 0:
        # Nothing comes after the last segment of a sequence.
        return
    start, end = tl.load(table + segment * 5), tl.load(table + segment * 5 + 1)
    row, index = tl.arange(0, BD), tl.arange(0, C)
    column = block * BV + tl.arange(0, BV)
    # Pointers to the chunk: the offsets inside it stay the same and fit into 32 bits.
    k += (start * H + head) * D
    v += (start * H + head) * D
    inverse += (tl.load(table + segment * 5 + 2) * H + head) * C * C
    keys_at = index[:, None] * (H * D) + row[None, :]
    values_at = index[:, None] * (H * D) + column[None, :]
    # The map S -> P S + R as two states, transposed: P starts from the identity, R from nothing.
    identity = tl.where(column[:, None] == row[None, :], 1.0, 0.0)
    state = identity
    added = tl.zeros((BV, BD), dtype=tl.float32)
    left = (end - start).to(tl.int32)
    for _ in range(0, left, C):
        keys = _tile(k, keys_at, left, row, C, D, BD).to(OPERAND)
        values = _tile(v, values_at, left, column, C, D, BD).to(OPERAND)
        solve = tl.trans(_inverse_tile(inverse, C).to(OPERAND))
        written = tl.dot(tl.trans(values), solve, input_precision=PRECISION)
        read = tl.dot(added.to(OPERAND), tl.trans(keys), input_precision=PRECISION)
        written = tl.dot((-read).to(OPERAND), solve, written, input_precision=PRECISION)
        added = tl.dot(written.to(OPERAND), keys, added, input_precision=PRECISION)
        read = tl.dot(state.to(OPERAND), tl.trans(keys), input_precision=PRECISION)
        written = tl.dot((-read).to(OPERAND), solve, input_precision=PRECISION)
        state = tl.dot(written.to(OPERAND), keys, state, input_precision=PRECISION)
        k += C * H * D
        v += C * H * D
        inverse += H * C * C
        left -= C
    offset = (segment * H + head) * D * D + row[None, :] * D + column[:, None]
    mask = (row < D)[None, :] & (column < D)[:, None]
    tl.store(transition + offset, state - identity, mask=mask)
    tl.store(addition + offset, added, mask=mask)


@triton.jit
def _scan_kernel(
    transition, addition, entering, initial, firsts,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, BK: tl.constexpr,
    HAS_INITIAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, sequence, block = tl.program_id(0) % H, (tl.program_id(0) // H).to(tl.int64), tl.program_id(1)
    first, end = tl.load(firsts + sequence), tl.load(firsts + sequence + 1)
    row, inner = tl.arange(0, BD), tl.arange(0, BK)
    column = block * BV + tl.arange(0, BV)
    part = row[:, None] * D + column[None, :]
    part_mask = (row < D)[:, None] & (column < D)[None, :]
    state = tl.zeros((BD, BV), dtype=tl.float32)
    if HAS_INITIAL:
        state = tl.load(initial + (sequence * H + head) * D * D + part, mask=part_mask, other=0.0)
    tl.store(entering + (first * H + head) * D * D + part, state, mask=part_mask)
    for segment in range(first, end - 1):
        base = (segment * H + head) * D * D
        # S + (P - 1) S: what no key touches stays as it is, however many segments there are.
        moved = state + tl.load(addition + base + part, mask=part_mask, other=0.0)
        if BK == BD:
            moves = tl.load(
                transition + base + row[:, None] * D + row[None, :],
                mask=(row < D)[:, None] & (row < D)[None, :],
                other=0.0,
            )
            moved += tl.dot(moves, state, input_precision=PRECISION)
        else:
            # A whole map is too large for the chip: by blocks of the state as it was just stored.
            tl.debug_barrier()
            for start in range(0, D, BK):
                middle = start + inner
                moves = tl.load(
                    transition + base + row[:, None] * D + middle[None, :],
                    mask=(row < D)[:, None] & (middle < D)[None, :],
                    other=0.0,
                )
                held = tl.load(
                    entering + base + middle[:, None] * D + column[None, :],
                    mask=(middle < D)[:, None] & (column < D)[None, :],
                    other=0.0,
                )
                moved += tl.dot(moves, held, input_precision=PRECISION)
        state = moved
        tl.store(entering + base + H * D * D + part, state, mask=part_mask)


@triton.jit
def _output_kernel(
    q, k, v, inverse, o, entering, final, table,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    IS_SPLIT: tl.constexpr, HAS_ENTERING: tl.constexpr, HAS_FINAL: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, segment, block = tl.program_id(0) % H, (tl.program_id(0) // H).to(tl.int64), tl.program_id(1)
    start, end = tl.load(table + segment * 5), tl.load(table + segment * 5 + 1)
    sequence = tl.load(table + segment * 5 + 3)
    row, index = tl.arange(0, BD), tl.arange(0, C)
    column = block * BV + tl.arange(0, BV)
    # Transposed, the state goes from product to product in registers.
    state_offset = head * D * D + row[None, :] * D + column[:, None]
    state_mask = (row < D)[None, :] & (column < D)[:, None]
    state = tl.zeros((BV, BD), dtype=tl.float32)
    if HAS_ENTERING:
        slot = segment if IS_SPLIT else sequence
        state = tl.load(entering + slot * H * D * D + state_offset, mask=state_mask, other=0.0)
    q += (start * H + head) * D
    k += (start * H + head) * D
    v += (start * H + head) * D
    o += (start * H + head) * D
    inverse += (tl.load(table + segment * 5 + 2) * H + head) * C * C
    keys_at = index[:, None] * (H * D) + row[None, :]
    values_at = index[:, None] * (H * D) + column[None, :]
    left = (end - start).to(tl.int32)
    for _ in range(0, left, C):
        keys = _tile(k, keys_at, left, row, C, D, BD).to(OPERAND)
        values = _tile(v, values_at, left, column, C, D, BD).to(OPERAND)
        queries = _tile(q, keys_at, left, row, C, D, BD).to(OPERAND)
        solve = tl.trans(_inverse_tile(inverse, C).to(OPERAND))
        held = state.to(OPERAND)
        written = tl.dot(tl.trans(values), solve, input_precision=PRECISION)
        read = tl.dot(held, tl.trans(keys), input_precision=PRECISION)
        written = tl.dot((-read).to(OPERAND), solve, written, input_precision=PRECISION).to(OPERAND)
        scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
        scores = tl.where(index[:, None] <= index[None, :], scores, 0.0).to(OPERAND)
        out = tl.dot(held, tl.trans(queries), input_precision=PRECISION)
        out = tl.dot(written, scores, out, input_precision=PRECISION)
        value_mask = (index < left)[:, None]
        if D != BD:
            value_mask = value_mask & (column < D)[None, :]
        tl.store(o + values_at, tl.trans(out).to(o.dtype.element_ty), mask=value_mask)
        state = tl.dot(written, keys, state, input_precision=PRECISION)
        q += C * H * D
        k += C * H * D
        v += C * H * D
        o += C * H * D
        inverse += H * C * C
        left -= C
    if HAS_FINAL:
        is_last = tl.load(table + segment * 5 + 4) != 0
        tl.store(final + sequence * H * D * D + state_offset, state, mask=state_mask & is_last)


def chunk_quasar(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    checks_beta: bool = False,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return o [B, T, H, D] in q's dtype and, when asked, the final state [N, H, D, D] in float32.

    q, k, v [B, T, H, D] (bfloat16, float16 or float32), beta [H], initial_state float32 [N, H, D, D],
    cu_seqlens [N + 1] for sequences packed into a batch of 1. checks_beta: look at its values as well, which
    waits for the device. Further keyword arguments are accepted and ignored. Values only: differentiating
    them raises. Keys of float16 should have norms up to 128, as 1 / |k|^2 is kept in their type.

    Raises:
        ValueError: a shape, dtype or device is wrong, or, on request, a beta is not positive and finite.
    """
    if checks_beta:
        check_beta(beta)
    return launch_chunk_quasar(None, q, k, v, beta, initial_state, output_final_state, cu_seqlens)


@input_guard
def launch_chunk_quasar(
    launch: Launch | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute `chunk_quasar` as it is launched; None: as was tuned for the shape, or as usual."""
    boundaries = tuple(check_arguments(q, k, v, beta, initial_state, cu_seqlens))
    _, length, heads, dim = q.shape
    if launch is None:
        launch = tuned_launch(q, length) or Launch(CHUNK_SIZE, BLOCK_V, NUM_WARPS, NUM_STAGES, PROGRAMS)
    has_initial = initial_state is not None
    plan = plan_for(boundaries, heads, dim, q.dtype, q.device, launch, has_initial, output_final_state)
    table = plan.segments.table
    inverse = torch.empty(plan.inverse_shape, dtype=plan.inverse_dtype, device=q.device)
    if plan.segments.chunks:
        plan.solve(k, beta, inverse, table)
    entering = initial_state
    if plan.segments.is_split:
        transition, addition, entering = (
            torch.empty(plan.maps_shape, dtype=torch.float32, device=q.device) for _ in range(3)
        )
        plan.fold(k, v, inverse, transition, addition, table)
        initial = entering if initial_state is None else initial_state
        plan.scan(transition, addition, entering, initial, plan.segments.firsts)
    o = torch.empty_like(q)
    final = None
    if output_final_state:
        final = torch.empty(plan.final_shape, dtype=torch.float32, device=q.device)
    # In the place of a state that does not exist any tensor will do.
    plan.output(
        q, k, v, inverse, o, o if entering is None else entering, o if final is None else final, table
    )
    inputs = (q, k, v, beta, initial_state)
    o = forward_only("chunk_quasar", o, *inputs)
    return o, None if final is None else forward_only("chunk_quasar", final, *inputs)


@dataclass(frozen=True, slots=True)
class Plan:
    """The launches for a shape. Between two calls of it only the tensors differ."""

    segments: Segments
    inverse_shape: tuple[int, ...]
    inverse_dtype: torch.dtype
    maps_shape: tuple[int, ...]
    final_shape: tuple[int, ...]
    solve: BoundKernel
    fold: BoundKernel
    """As `scan`, only for sequences that are cut."""
    scan: BoundKernel
    output: BoundKernel


@functools.lru_cache(maxsize=64)
def plan_for(
    boundaries: tuple[int, ...],
    heads: int,
    dim: int,
    dtype: torch.dtype,
    device: torch.device,
    launch: Launch,
    has_initial: bool,
    has_final: bool,
) -> Plan:
    """Return how sequences with the given boundaries are computed on a device."""
    operand, precision = _arithmetic(dtype, device)
    chunk_size = launch.chunk_size if dim <= 128 else min(launch.chunk_size, 32)
    size = segment_size(boundaries, heads, chunk_size, launch.programs * processor_count(device))
    segments = cut(boundaries, chunk_size, size, device)
    block_d, block_v, num_warps = blocks(dim, dtype.itemsize, launch)
    shape = (heads, dim, block_d)
    grid = (heads * segments.count, -(-dim // block_v))
    scan_v = min(block_d, SCAN_BLOCK_V)
    scan_k = block_d if block_d <= 128 else 32
    has_entering = segments.is_split or has_initial
    return Plan(
        segments=segments,
        inverse_shape=(segments.chunks, heads, chunk_size, chunk_size),
        inverse_dtype=dtype if device.type == "cuda" else torch.float32,
        maps_shape=(segments.count, heads, dim, dim),
        final_shape=(len(boundaries) - 1, heads, dim, dim),
        solve=bind_solve(
            segments, heads, dim, chunk_size, operand, precision, processor_count(device)
        ),
        fold=BoundKernel(
            _fold_kernel,
            grid,
            (*shape, block_v, chunk_size, operand, precision),
            num_warps=num_warps,
            num_stages=_stages(
                dtype, device, launch, chunk_size, block_d + block_v, 2 * block_d * block_v
            ),
        ),
        scan=BoundKernel(
            _scan_kernel,
            (heads * (len(boundaries) - 1), -(-dim // scan_v)),
            (*shape, scan_v, scan_k, has_initial, _scan_precision(dtype)),
            num_warps=4,
            num_stages=3 if block_d <= 64 else 1,
        ),
        output=BoundKernel(
            _output_kernel,
            grid,
            (*shape, block_v, chunk_size, segments.is_split, has_entering, has_final, operand, precision),
            num_warps=num_warps,
            num_stages=_stages(
                dtype, device, launch, chunk_size, 2 * block_d + block_v, block_d * block_v
            ),
        ),
    )  # fmt: skip


def _arithmetic(dtype: torch.dtype, device: torch.device) -> tuple[object, str]:
    """Return the type of the operands of products, and how float32 ones are multiplied.

    Sums are float32 always. On a CPU, in the interpreter, 16-bit products are wrong.
    """
    if device.type != "cuda":
        return tl.float32, "ieee"
    operand = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]
    return operand, "ieee" if IS_AMD else "tf32x3"


def _scan_precision(dtype: torch.dtype) -> str:
    """Return how float32 maps are multiplied: no better than they are, which come of operands of `dtype`."""
    if IS_AMD:
        return "ieee"
    return "tf32" if dtype.itemsize == 2 else "tf32x3"


def blocks(dim: int, element_size: int, launch: Launch) -> tuple[int, int, int]:
    """Return the rows of a state's tile, the columns that one program handles, and its warps."""
    block_d = max(16, triton.next_power_of_2(dim))
    if element_size == 4 or block_d > 128:
        # Operands that are larger: fewer columns, and more threads to hold them.
        return block_d, min(block_d, launch.block_v, 32), min(8, 2 * launch.num_warps)
    return block_d, min(block_d, launch.block_v), launch.num_warps


def _stages(
    dtype: torch.dtype, device: torch.device, launch: Launch, chunk_size: int, columns: int, state: int
) -> int:
    """Return how many chunks are on their way to the chip: on a CPU one, else what `fitting_stages` says."""
    if device.type != "cuda":
        return 1
    limit = next((size for arch, size in SHARED_MEMORY_BYTES if check_shared_mem(arch, device.index)), 0)
    return fitting_stages(limit, launch.num_stages, chunk_size, columns, state, dtype.itemsize)


def fitting_stages(
    limit: int, wanted: int, chunk_size: int, columns: int, state: int, element_size: int
) -> int:
    """Return the stages wanted, or as many as `limit` bytes of shared memory hold.

    columns: those of all tensors that are read for a chunk; state: numbers of the states as operands.
    """
    chunk_bytes = chunk_size * (columns + chunk_size) * element_size
    return max(1, min(wanted, (limit - 2 * state * element_size) // chunk_bytes))
