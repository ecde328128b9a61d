"""Figures of accuracy, and inputs on which shortcuts show."""

import math

import pytest
import torch

from kernels.harness.accuracy import compare, reference_output, rounding_error
from kernels.harness.inputs import Shape, draw_inputs
from kernels.reference import recurrence

CPU = torch.device("cpu")
SHAPE = Shape(batch=1, length=192, heads=2, dim=32, dtype="float32")


def draw(seed: int = 0, shape: Shape = SHAPE):  # type: ignore[no-untyped-def]
    return draw_inputs(shape, torch.Generator().manual_seed(seed))


def test_reference_is_the_recurrence() -> None:
    inputs = draw()
    exact, _ = recurrence(inputs.q, inputs.k, inputs.v, inputs.beta, dtype=torch.float64)
    accuracy = compare(reference_output(inputs, CPU), exact.float())
    assert accuracy.relative_error < 1e-6
    assert accuracy.cosine_similarity > 0.99999


def test_outputs_are_of_order_one() -> None:
    reference = reference_output(draw(), CPU)
    assert 0.1 < float(reference.square().mean().sqrt()) < 3.0
    assert float(reference.abs().max()) < 12.0


@pytest.mark.parametrize("seed", range(3))
def test_a_window_shows_at_every_later_token(seed: int) -> None:
    inputs = draw(seed)
    exact = reference_output(inputs, CPU)
    parts = []
    for start in range(0, SHAPE.length, 64):
        first = max(0, start - 64)
        window = [x[:, first : start + 64] for x in (inputs.q, inputs.k, inputs.v)]
        o, _ = recurrence(*window, inputs.beta)
        parts.append(o[:, start - first :])
    accuracy = compare(torch.cat(parts, dim=1), exact)
    assert accuracy.cosine_similarity < 0.9
    assert accuracy.max_abs_diff > 0.1


def test_two_draws_differ_and_one_seed_repeats() -> None:
    assert torch.equal(draw(1).flat(), draw(1).flat())
    assert not torch.equal(draw(1).flat(), draw(2).flat())


def test_inputs_are_representable_in_their_dtype() -> None:
    shape = Shape(batch=2, length=5, heads=3, dim=8, dtype="bfloat16")
    inputs = draw(0, shape)
    for tensor in (inputs.q, inputs.k, inputs.v):
        assert tensor.shape == (2, 5, 3, 8)
        assert torch.equal(tensor, tensor.bfloat16().float())


def test_one_bad_token_decides() -> None:
    reference = reference_output(draw(), CPU)
    output = reference.clone()
    output[0, 77, 1] *= -1
    accuracy = compare(output, reference)
    assert accuracy.cosine_similarity < -0.99
    output[0, 77, 1, 0] = math.inf
    assert math.isnan(compare(output, reference).max_abs_diff)


def test_worse_of_keeps_the_worst_and_nan() -> None:
    reference = reference_output(draw(), CPU)
    good, bad = compare(reference, reference), compare(1.5 * reference, reference)
    worst = good.worse_of(bad)
    assert worst.relative_error == bad.relative_error
    assert worst.max_abs_diff == bad.max_abs_diff
    nan = compare(torch.full_like(reference, math.nan), reference)
    assert math.isnan(good.worse_of(nan).cosine_similarity)
    assert math.isnan(nan.worse_of(good).relative_error)


def test_rounding_error_is_what_bfloat16_costs() -> None:
    assert 1e-3 < rounding_error(reference_output(draw(), CPU)) < 1e-2
    assert rounding_error(torch.ones(1, 4, 2, 8)) == 0.0
