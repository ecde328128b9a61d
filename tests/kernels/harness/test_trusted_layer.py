"""The referee's own layer around an operator."""

from dataclasses import astuple

import pytest
import torch

from kernels.harness.inputs import Shape
from kernels.harness.trusted_layer import TrustedLayer
from kernels.layer_reference import plain_layer
from kernels.reference import chunked

SHAPE = Shape(batch=2, length=30, heads=2, dim=16, dtype="float32")


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_is_the_layer_around_the_operator() -> None:
    drawn = TrustedLayer.draw(SHAPE, generator())
    x = drawn.inputs()
    assert [tuple(part.shape) for part in (x.q, x.k, x.v)] == 3 * [SHAPE.size]
    assert bool((x.beta > 0).all())
    y = drawn.output(chunked(x.q, x.k, x.v, x.beta)[0])
    assert y.shape == (2, 30, 1, 32)
    assert torch.allclose(y[:, :, 0], plain_layer(drawn.layer, drawn.x), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_seed_says_everything(dtype: str) -> None:
    shape = Shape(batch=1, length=30, heads=2, dim=16, dtype=dtype)
    first, again, other = (TrustedLayer.draw(shape, generator(seed)).inputs() for seed in (1, 1, 2))
    for x, y, z in zip(astuple(first), astuple(again), astuple(other), strict=True):
        assert torch.equal(x, y)
        assert not torch.equal(x, z)
    assert (first.q.dtype, first.beta.dtype) == (shape.torch_dtype, torch.float32)
