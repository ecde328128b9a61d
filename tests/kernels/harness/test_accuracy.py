"""Figures of accuracy, and inputs on which shortcuts show."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from kernels.harness.accuracy import compare, reference_output, rounding_error
from kernels.harness.inputs import Inputs, Shape, draw_inputs
from kernels.reference import chunked, recurrence
from protocol.rules import MAX_RELATIVE_TO_YARDSTICK, MIN_COSINE_SIMILARITY

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


LONG = Shape(batch=1, length=8_192, heads=2, dim=64, dtype="float32")
PIECE = 1024
Entering = Callable[[Inputs], list[torch.Tensor]]


def pieces(x: Inputs) -> list[tuple[torch.Tensor, ...]]:
    """Return q, k, v of each piece of a sequence."""
    return list(zip(*(tensor.split(PIECE, dim=1) for tensor in (x.q, x.k, x.v)), strict=True))


def state_after(qkv: tuple[torch.Tensor, ...], beta: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    final = chunked(*qkv, beta, state, True)[1]
    assert final is not None
    return final


def nothing(x: Inputs) -> torch.Tensor:
    return torch.zeros(1, x.q.shape[2], x.q.shape[3], x.q.shape[3])


def one_after_another(x: Inputs) -> list[torch.Tensor]:
    """What is right: for the test of these tests."""
    states = [nothing(x)]
    for piece in pieces(x):
        states.append(state_after(piece, x.beta, states[-1]))
    return states[:-1]


def joined_by_sums(x: Inputs) -> list[torch.Tensor]:
    """What a piece makes of the state that enters it, from the sum of k k^T alone."""
    states = [nothing(x)]
    for piece in pieces(x):
        by_head = piece[1][0].transpose(0, 1)
        fading = torch.linalg.matrix_exp(-x.beta[:, None, None] * by_head.mT @ by_head)
        states.append(fading @ states[-1] + state_after(piece, x.beta, nothing(x)))
    return states[:-1]


def after_a_warm_up(x: Inputs, beside: int) -> list[torch.Tensor]:
    """From the state after the first piece and the tokens just before.

    To that comes the sum of what all pieces wrote along the `beside` directions that keys touch least.
    """
    before, warm_up = pieces(x), 768
    late = before[-1][1][0].transpose(0, 1)
    least = torch.linalg.eigh(late.mT @ late).eigenvectors[..., :beside]
    part = least @ least.mT
    first = state_after(before[0], x.beta, nothing(x))
    states, written = [nothing(x), first], torch.zeros_like(first)
    for last in before[1:-1]:
        warmed = tuple(tensor[:, -warm_up:] for tensor in last)
        entering = state_after(warmed, x.beta, first)
        written = written + part @ (state_after(last, x.beta, states[-1]) - states[-1])
        states.append(entering + part @ (first + written - entering))
    return states


def output_from(states: list[torch.Tensor], x: Inputs) -> torch.Tensor:
    parts = [chunked(*piece, x.beta, state)[0] for piece, state in zip(pieces(x), states, strict=True)]
    return torch.cat(parts, dim=1)


def test_pieces_are_what_the_whole_is() -> None:
    x = draw(shape=LONG)
    accuracy = compare(output_from(one_after_another(x), x), reference_output(x, CPU))
    assert accuracy.relative_error < 1e-5


@pytest.mark.parametrize(
    "guess",
    [joined_by_sums, *(partial(after_a_warm_up, beside=count) for count in (1, 8, 16, 32))],
    ids=["sums", *(f"{count} beside" for count in (1, 8, 16, 32))],
)
@pytest.mark.parametrize("seed", range(2))
def test_a_guess_at_the_state_that_enters_a_piece_shows(seed: int, guess: Entering) -> None:
    """Pieces of a sequence side by side, without what joins them."""
    x = draw(seed, LONG)
    exact = reference_output(x, CPU)
    allowed = MAX_RELATIVE_TO_YARDSTICK * rounding_error(exact)
    assert compare(output_from(guess(x), x), exact).relative_error > 3.0 * allowed


def test_the_last_token_takes_more_than_the_last_half() -> None:
    """The next call of a trial gets its beta from there."""
    x = draw(shape=LONG)
    half = [tensor[:, LONG.length // 2 :] for tensor in (x.q, x.k, x.v)]
    guessed, exact = chunked(*half, x.beta)[0][0, -1], reference_output(x, CPU)[0, -1]
    assert float(torch.cosine_similarity(guessed, exact, dim=-1).max()) < MIN_COSINE_SIMILARITY


def test_an_impulse_lies_in_each_part_of_the_sequence() -> None:
    keys = draw(shape=Shape(batch=2, length=4096, heads=2, dim=64, dtype="float32")).k.transpose(1, 2)
    beside_itself = (keys @ keys.mT).abs().masked_fill(torch.eye(4096, dtype=torch.bool), 0.0)
    at = (beside_itself.amax(-1) < 1e-5).nonzero()[:, -1].reshape(4, 8)
    assert torch.equal(at // 512, torch.arange(8).expand(4, 8))
    assert len(set(at.flatten().tolist())) > 8


def test_two_draws_differ_and_one_seed_repeats() -> None:
    assert torch.equal(draw(1).flat(), draw(1).flat())
    assert not torch.equal(draw(1).flat(), draw(2).flat())


def test_inputs_are_representable_in_their_dtype() -> None:
    shape = Shape(batch=2, length=5, heads=3, dim=8, dtype="bfloat16")
    inputs = draw(0, shape)
    for tensor in (inputs.q, inputs.k, inputs.v):
        assert tensor.shape == (2, 5, 3, 8)
        assert torch.equal(tensor, tensor.bfloat16().float())


@pytest.mark.parametrize(("length", "dim"), [(1, 1), (100, 1), (1, 64), (5, 64), (100, 2)])
def test_any_shape_can_be_drawn(length: int, dim: int) -> None:
    shape = Shape(batch=2, length=length, heads=3, dim=dim, dtype="float32")
    inputs = draw(0, shape)
    assert torch.isfinite(inputs.flat()).all()
    assert torch.isfinite(reference_output(inputs, CPU)).all()
    # Nothing of a draw is left out for want of room.
    assert min(float(x.abs().amax()) for x in (inputs.q, inputs.k, inputs.v)) > 0.0


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
