"""The fused layer against the plain one: whole, in parts, packed, and token by token."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from kernels import layer as layer_module
from kernels.gated_norm import gated_norm_
from kernels.layer import LayerState, QuasarAttention
from kernels.layer_reference import plain_layer
from kernels.reference import chunked

Make = Callable[..., QuasarAttention]


@pytest.fixture
def make(device: torch.device) -> Make:
    """Return a function that makes a small layer with parameters that differ."""

    def build(**options: object) -> QuasarAttention:
        torch.manual_seed(0)
        layer = QuasarAttention(hidden_size=48, num_heads=2, head_dim=32, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            layer.beta_log.normal_()
            layer.norm_weight.uniform_(0.5, 1.5)
        return layer.to(device)

    return build


def tokens(*size: int, device: torch.device, seed: int = 1) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(device)


@torch.no_grad()
@pytest.mark.parametrize(("batch", "length"), [(2, 21), (1, 70), (3, 1), (1, 3)])
def test_layer_agrees_with_the_plain_one(batch: int, length: int, make: Make, device: torch.device) -> None:
    layer = make()
    x = tokens(batch, length, 48, device=device)
    assert torch.allclose(layer(x), plain_layer(layer, x), atol=1e-5)


@torch.no_grad()
def test_operator_is_an_argument(make: Make, device: torch.device) -> None:
    x = tokens(1, 30, 48, device=device)
    layer = make(operator=chunked)
    assert torch.allclose(layer(x), plain_layer(layer, x), atol=1e-5)
    lazy = make(operator=lambda q, k, v, beta, **_: (torch.zeros_like(v), k.new_zeros(1, 2, 32, 32)))
    assert not lazy(x).any()


@torch.no_grad()
def test_layer_is_causal(make: Make, device: torch.device) -> None:
    layer = make()
    x = tokens(1, 20, 48, device=device)
    changed = x.clone()
    changed[:, 12:] += 1.0
    before, after = layer(x), layer(changed)
    assert torch.allclose(before[:, :12], after[:, :12], atol=1e-5)
    assert not torch.allclose(before[:, 12:], after[:, 12:], atol=1e-2)


@torch.no_grad()
def test_packed_sequences_do_not_see_each_other(make: Make, device: torch.device) -> None:
    layer = make()
    x = tokens(1, 30, 48, device=device)
    borders = torch.tensor([0, 2, 2, 13, 30], device=device)
    assert torch.allclose(layer(x, cu_seqlens=borders), plain_layer(layer, x, borders), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[0, 40], [0, 17, 40], [0, 1, 2, 3, 20, 40], [0, 20, 21, 38, 40]])
def test_parts_give_what_one_piece_gives(cuts: list[int], make: Make, device: torch.device) -> None:
    layer = make()
    x = tokens(2, 40, 48, device=device)
    state: LayerState | None = None
    parts = []
    for start, end in pairwise(cuts):
        part, state = layer.stream(x[:, start:end], state)
        parts.append(part)
    assert torch.allclose(torch.cat(parts, dim=1), plain_layer(layer, x), atol=1e-5)
    _, whole = layer.stream(x)
    assert state is not None
    assert torch.allclose(state.recurrent, whole.recurrent, atol=1e-5)
    assert torch.allclose(state.convolution, whole.convolution, atol=1e-5)


@torch.no_grad()
def test_packed_sequences_go_on_from_their_states(make: Make, device: torch.device) -> None:
    layer = make()
    x = tokens(1, 24, 48, device=device)
    heads = torch.tensor([0, 1, 6, 6], device=device)
    tails = torch.tensor([0, 2, 10, 18], device=device)
    first, state = layer.stream(x[:, :6], cu_seqlens=heads)
    second, _ = layer.stream(x[:, 6:], state, cu_seqlens=tails)
    for index in range(3):
        own_heads, own_tails = (slice(*borders[index : index + 2].tolist()) for borders in (heads, tails))
        whole = torch.cat([x[:, :6][:, own_heads], x[:, 6:][:, own_tails]], dim=1)
        actual = torch.cat([first[:, own_heads], second[:, own_tails]], dim=1)
        assert torch.allclose(actual, plain_layer(layer, whole), atol=1e-5)


@torch.no_grad()
def test_long_sequences_pass_in_slabs(
    make: Make, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_module, "SLAB_TOKENS", 50)
    layer = make()
    x = tokens(2, 60, 48, device=device)
    assert torch.allclose(layer(x), plain_layer(layer, x), atol=1e-5)


@torch.no_grad()
def test_layer_keeps_its_dtype(make: Make, device: torch.device) -> None:
    layer = make().to(torch.bfloat16)
    y = layer(tokens(1, 30, 48, device=device).bfloat16())
    assert y.dtype == torch.bfloat16
    assert bool(torch.isfinite(y).all())
    assert torch.allclose(y.float(), plain_layer(layer.float(), tokens(1, 30, 48, device=device)), atol=0.05)


def test_derivative_is_refused(make: Make, device: torch.device) -> None:
    y = make()(tokens(1, 4, 48, device=device))
    with pytest.raises(RuntimeError, match="QuasarAttention has no gradient"):
        y.sum().backward()


def test_norm_in_place_wants_what_can_be_changed_in_place(device: torch.device) -> None:
    x = torch.ones(4, 8, device=device).t()
    with pytest.raises(ValueError, match="x must be contiguous"):
        gated_norm_(x, torch.ones(8, 4, device=device), torch.ones(4, device=device))
