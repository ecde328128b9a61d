"""One decoding step's launches, against PyTorch in float64."""

import pytest
import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from kernels.decode_attention import BLOCK_NUMBERS, decode_attention
from kernels.decode_linear import Norm, decode_gated, decode_linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [(torch.float32, 2e-5), (torch.float16, 4e-3)]
"""With what rounding the result allows."""
COLUMNS = [1, 40, 1024, 1500]


def drawn(*size: int, dtype: torch.dtype, seed: int = 1, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed + sum(size))
    return (spread * torch.randn(*size, generator=generator, device=DEVICE)).to(dtype)


def assert_close(o: torch.Tensor, exact: torch.Tensor, allowed: float) -> None:
    assert o.shape == exact.shape
    torch.testing.assert_close(o.double(), exact, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize(("dtype", "allowed"), DTYPES)
def test_matrices_with_all_that_can_be_around_them(columns: int, dtype: torch.dtype, allowed: float) -> None:
    spread = columns**-0.5
    x = drawn(columns, dtype=dtype, spread=3.0)
    norm = Norm(drawn(columns, dtype=dtype, seed=2), 1e-5)
    sizes = [(7, 1, 30), (4,), (65, 64)][columns % 3]
    matrices = [drawn(rows, columns, dtype=dtype, spread=spread) for rows in sizes]
    biases = [drawn(rows, dtype=dtype, seed=3) for rows in sizes]
    residual = drawn(sum(sizes), dtype=dtype, seed=4)
    exact = torch.cat(matrices).double() @ x.double()
    assert_close(decode_linear(x, matrices), exact, 5 * allowed)
    assert_close(decode_linear(x, matrices, residual=residual), exact + residual.double(), 5 * allowed)
    normed = rms_norm(x.double(), (columns,), norm.weight.double(), norm.eps)
    exact = torch.cat(matrices).double() @ normed + torch.cat(biases).double()
    assert_close(decode_linear(x, matrices, biases, norm=norm), exact, 5 * allowed)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize(("dtype", "allowed"), DTYPES)
def test_gated(columns: int, dtype: torch.dtype, allowed: float) -> None:
    x = drawn(columns, dtype=dtype)
    gate, up = (drawn(9, columns, dtype=dtype, seed=seed, spread=columns**-0.5) for seed in (2, 3))
    norm = Norm(drawn(columns, dtype=dtype, seed=4), 1e-5)
    normed = rms_norm(x.double(), (columns,), norm.weight.double(), norm.eps)
    exact = silu(gate.double() @ normed) * (up.double() @ normed)
    assert_close(decode_gated(x, gate, up, norm), exact, 5 * allowed)


def test_more_matrices_than_a_launch_takes_are_refused() -> None:
    x = drawn(4, dtype=torch.float32)
    with pytest.raises(ValueError, match="one to three matrices are multiplied at once, not 4"):
        decode_linear(x, [drawn(2, 4, dtype=torch.float32)] * 4)


def test_a_matrix_with_strides_is_refused() -> None:
    x = drawn(4, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"a matrix must be contiguous, not strided \(1, 2\)"):
        decode_linear(x, [drawn(4, 2, dtype=torch.float32).T])


# --- attention ----------------------------------------------------------------------------------------------

BLOCK = BLOCK_NUMBERS // 64
SLOTS = 2 * BLOCK + 5
SHAPES = [(4, 2, 16), (3, 1, 40), (2, 2, 64), (2, 1, 128)]
"""Query heads, heads of keys and values, dimension."""


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The rotary embedding as transformers has it."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("filled", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, SLOTS - 1])
@pytest.mark.parametrize(("dtype", "allowed"), DTYPES)
def test_one_token_attends_to_itself_and_to_all_before(
    shape: tuple[int, int, int], filled: int, dtype: torch.dtype, allowed: float
) -> None:
    heads, kept, dim = shape
    qkv = drawn((heads + 2 * kept) * dim, dtype=dtype)
    angle = drawn(dim // 2, dtype=torch.float64, seed=2).repeat(2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    keys, values = (drawn(1, kept, SLOTS, dim, dtype=dtype, seed=seed) for seed in (3, 4))
    # What was left by longer texts, and must not be seen.
    keys[:, :, filled:] = values[:, :, filled:] = float("nan")
    before = keys.clone(), values.clone()
    position = torch.tensor([filled], device=DEVICE)
    o = decode_attention(qkv, cos, sin, keys, values, position, 0.3)
    q, k, _ = qkv.view(1, -1, 1, dim).double().split((heads, kept, kept), dim=1)
    cos, sin = cos.double(), sin.double()
    assert_close(keys[:, :, filled : filled + 1], turned(k, cos, sin), allowed)
    assert torch.equal(values[:, :, filled].flatten(), qkv[-kept * dim :])
    for cache, old in zip((keys, values), before, strict=True):
        others = torch.arange(SLOTS) != filled
        torch.testing.assert_close(cache[:, :, others], old[:, :, others], rtol=0, atol=0, equal_nan=True)
    text = keys[:, :, : filled + 1].double(), values[:, :, : filled + 1].double()
    exact = scaled_dot_product_attention(turned(q, cos, sin), *text, scale=0.3, enable_gqa=True)
    assert_close(o, exact.flatten(), allowed)


def test_scores_of_any_size_do_not_overflow() -> None:
    keys, values = (drawn(1, 1, SLOTS, 16, dtype=torch.float32, seed=seed) for seed in (3, 4))
    one, none = torch.ones(16, device=DEVICE), torch.zeros(16, device=DEVICE)
    qkv = drawn(3 * 16, dtype=torch.float32, spread=1e4)
    o = decode_attention(qkv, one, none, keys, values, torch.tensor([BLOCK], device=DEVICE), 1.0)
    assert o.isfinite().all()
