"""The layer: shapes, causality, and the operator as an argument."""

from itertools import pairwise

import torch

from kernels.layer import QuasarAttention
from kernels.reference import chunked


def test_layer_agrees_with_itself_on_the_reference_operator(device: torch.device) -> None:
    torch.manual_seed(0)
    layer = QuasarAttention(hidden_size=64, num_heads=2, head_dim=32).to(device)
    x = torch.randn(2, 21, 64, device=device)
    expected = QuasarAttention(hidden_size=64, num_heads=2, head_dim=32, operator=chunked).to(device)
    expected.load_state_dict(layer.state_dict())
    with torch.no_grad():
        actual = layer(x)
        assert actual.shape == x.shape
        assert torch.allclose(actual, expected(x), atol=1e-5)


def test_layer_is_causal(device: torch.device) -> None:
    torch.manual_seed(1)
    layer = QuasarAttention(hidden_size=64, num_heads=2, head_dim=32).to(device)
    x = torch.randn(1, 20, 64, device=device)
    changed = x.clone()
    changed[:, 12:] += 1.0
    with torch.no_grad():
        before, after = layer(x), layer(changed)
    assert torch.allclose(before[:, :12], after[:, :12], atol=1e-5)
    assert not torch.allclose(before[:, 12:], after[:, 12:], atol=1e-2)


def test_packed_sequences_do_not_see_each_other(device: torch.device) -> None:
    torch.manual_seed(2)
    layer = QuasarAttention(hidden_size=64, num_heads=2, head_dim=32, operator=chunked).to(device)
    x = torch.randn(1, 30, 64, device=device)
    borders = torch.tensor([0, 2, 2, 13, 30], device=device)
    with torch.no_grad():
        packed = layer(x, cu_seqlens=borders)
        alone = [layer(x[:, start:end]) for start, end in pairwise(borders.tolist()) if end > start]
    assert torch.allclose(packed, torch.cat(alone, dim=1), atol=1e-5)


def test_layer_keeps_its_dtype(device: torch.device) -> None:
    torch.manual_seed(3)
    layer = QuasarAttention(hidden_size=64, num_heads=2, head_dim=32).to(device, torch.bfloat16)
    with torch.no_grad():
        y = layer(torch.randn(1, 9, 64, device=device).bfloat16())
    assert y.dtype == torch.bfloat16
    assert bool(torch.isfinite(y).all())
