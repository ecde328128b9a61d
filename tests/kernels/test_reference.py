"""The reference against the definition, written out by hand."""

import math

import pytest
import torch

from kernels.reference import alpha, chunked, recurrence


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def by_hand(q, k, v, beta, state):  # type: ignore[no-untyped-def]
    """The recurrence of one head in Python floats: lists q, k, v [T][D], state [D][D]."""
    dim = len(q[0])
    outputs = []
    for q_t, k_t, v_t in zip(q, k, v, strict=True):
        norm = sum(x * x for x in k_t)
        gate = (1 - math.exp(-beta * norm)) / norm if norm > 0 else beta
        read = [sum(state[i][j] * k_t[i] for i in range(dim)) for j in range(dim)]
        state = [[state[i][j] + gate * k_t[i] * (v_t[j] - read[j]) for j in range(dim)] for i in range(dim)]
        outputs.append([sum(state[i][j] * q_t[i] for i in range(dim)) for j in range(dim)])
    return outputs, state


def test_recurrence_is_the_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 9, 1, 3, generator=generator, dtype=torch.float64).float() for _ in range(3))
    k[0, 4] = 0.0
    initial = torch.randn(1, 1, 3, 3, generator=generator)
    expected, state = by_hand(
        q[0, :, 0].tolist(), k[0, :, 0].tolist(), v[0, :, 0].tolist(), 0.75, initial[0, 0].tolist()
    )
    o, final = recurrence(
        q, k, v, torch.tensor([0.75]), initial, output_final_state=True, dtype=torch.float64
    )
    assert final is not None
    assert error(o[0, :, 0], torch.tensor(expected, dtype=torch.float64)) < 1e-12
    assert error(final[0, 0], torch.tensor(state, dtype=torch.float64)) < 1e-12


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_chunked_equals_recurrence(length: int) -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, length, 2, 8, generator=generator) for _ in range(3))
    beta = torch.tensor([0.1, 2.0])
    initial = torch.randn(2, 2, 8, 8, generator=generator)
    exact, state = recurrence(q, k, v, beta, initial, True, dtype=torch.float64)
    o, final = chunked(q, k, v, beta, initial, True)
    assert final is not None
    assert state is not None
    assert error(o, exact) < 2e-6
    assert error(final, state) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_inputs_are_widened_first(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(1, 70, 2, 8, generator=generator).to(dtype) for _ in range(3))
    beta = torch.tensor([0.1, 2.0])
    exact, _ = recurrence(q.float(), k.float(), v.float(), beta, dtype=torch.float64)
    for reference in (recurrence, chunked):
        o, _ = reference(q, k, v, beta)
        assert o.dtype == torch.float32
        assert error(o, exact) < 2e-6
        assert error(reference(q, k, v, beta, dtype=torch.float64)[0], exact) < 1e-12


def test_chunked_is_the_same_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(8)
    q, k, v = (torch.randn(1, 100, 2, 8, generator=generator) for _ in range(3))
    beta = torch.tensor([0.1, 2.0])
    whole, last = chunked(q, k, v, beta, output_final_state=True, dtype=torch.float64, chunk_size=16)
    monkeypatch.setattr("kernels.reference.SEGMENT_CHUNKS", 2)
    parts, final = chunked(q, k, v, beta, output_final_state=True, dtype=torch.float64, chunk_size=16)
    assert last is not None
    assert final is not None
    assert error(parts, whole) < 1e-14
    assert error(final, last) < 1e-14


def test_both_forms_have_the_same_gradients() -> None:
    generator = torch.Generator().manual_seed(9)
    values = [torch.randn(2, 21, 2, 4, generator=generator) for _ in range(3)]
    values += [torch.tensor([0.3, 1.5]), torch.randn(2, 2, 4, 4, generator=generator)]
    weight = torch.randn(2, 21, 2, 4, generator=generator)
    found = []
    for reference in (recurrence, chunked):
        inputs = [x.clone().requires_grad_() for x in values]
        o, final = reference(*inputs, output_final_state=True, dtype=torch.float64)
        assert final is not None
        ((o * weight).sum() + final.sin().sum()).backward()
        found.append([x.grad for x in inputs])
    for expected, actual in zip(*found, strict=True):
        assert actual is not None
        assert error(actual, expected) < 1e-6


def test_packed_sequences_do_not_see_each_other() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 90, 2, 8, generator=generator) for _ in range(3))
    beta = torch.tensor([0.5, 1.0])
    boundaries = torch.tensor([0, 30, 30, 90])
    packed, states = chunked(q, k, v, beta, None, True, boundaries)
    assert states is not None
    for start, end, index in ((0, 30, 0), (30, 90, 2)):
        alone, state = chunked(q[:, start:end], k[:, start:end], v[:, start:end], beta, None, True)
        assert state is not None
        assert error(packed[:, start:end], alone) < 1e-6
        assert error(states[index], state[0]) < 1e-6
    assert not states[1].any()


def test_gate_has_its_limit_and_contracts() -> None:
    beta = torch.tensor([0.5, 3.0], dtype=torch.float64)
    zero = torch.zeros(4, 2, 8, dtype=torch.float64)
    assert torch.equal(alpha(zero, beta), beta.expand(4, 2))
    for scale in (1e-9, 1e-155, 1e-162, 1e-300):
        tiny = torch.full((1, 2, 8), scale, dtype=torch.float64)
        assert torch.allclose(alpha(tiny, beta), beta.expand(1, 2), rtol=1e-12)
    # Their square is float32's smallest number: half of it is 0, and a quotient would be too.
    assert torch.allclose(alpha(torch.full((1, 2, 1), 4e-23), beta.float()), beta.float().expand(1, 2))
    large = torch.full((1, 2, 8), 30.0, dtype=torch.float64)
    norm = large.square().sum(-1)
    assert bool((alpha(large, beta) * norm <= 1.0).all())


def test_a_state_never_explodes_whatever_the_keys() -> None:
    generator = torch.Generator().manual_seed(4)
    q, v = (torch.randn(1, 400, 1, 8, generator=generator) for _ in range(2))
    k = 50.0 * torch.randn(1, 400, 1, 8, generator=generator)
    o, final = recurrence(q, k, v, torch.tensor([5.0]), None, True)
    assert final is not None
    assert bool(torch.isfinite(o).all())
    # |S| is bounded because I - alpha k k^T shrinks it and alpha |k| |v| adds at most |v| / |k|.
    assert float(final.norm()) < 1.0
