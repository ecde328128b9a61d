"""Both Triton operators against the float64 recurrence: dtypes, shapes, states, packed sequences."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels import chunk
from kernels.chunk import chunk_quasar
from kernels.fused_recurrent import fused_recurrent_quasar
from kernels.reference import recurrence
from tests.kernels.conftest import Draw, relative_error
from tests.kernels.tolerances import RELATIVE_ERROR, STATE_ERROR

Operator = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
OPERATORS = [chunk_quasar, fused_recurrent_quasar]


def check(operator: Operator, inputs: dict[str, torch.Tensor], **options: Any) -> None:
    """Compare o and the final state with the recurrence in float64."""
    dtype = inputs["q"].dtype
    exact, exact_state = recurrence(**inputs, **options, output_final_state=True, dtype=torch.float64)
    o, state = operator(**inputs, **options, output_final_state=True)
    assert state is not None
    assert exact_state is not None
    assert o.dtype == dtype
    assert o.shape == inputs["q"].shape
    assert state.dtype == torch.float32
    assert relative_error(o, exact) <= RELATIVE_ERROR[dtype]
    operand = dtype if o.device.type == "cuda" else torch.float32
    assert relative_error(state, exact_state) <= STATE_ERROR[operand]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(operator: Operator, dtype: torch.dtype, draw: Draw) -> None:
    check(operator, draw(dtype=dtype))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64, 65, 127])
def test_lengths(operator: Operator, length: int, draw: Draw) -> None:
    check(operator, draw(length=length))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dim", [8, 40, 64, 128, 256])
def test_head_dimensions(operator: Operator, dim: int, draw: Draw) -> None:
    check(operator, draw(length=20, heads=1, dim=dim))


@pytest.mark.parametrize("operator", OPERATORS)
def test_batch_and_initial_state(operator: Operator, draw: Draw, device: torch.device) -> None:
    inputs = draw(batch=2, length=33)
    initial = torch.randn(2, 2, 32, 32, generator=torch.Generator().manual_seed(5)).to(device)
    kept = initial.clone()
    check(operator, inputs, initial_state=initial)
    assert torch.equal(initial, kept)


@pytest.mark.parametrize("operator", OPERATORS)
def test_packed_sequences_of_any_length(operator: Operator, draw: Draw, device: torch.device) -> None:
    boundaries = torch.tensor([0, 1, 1, 40, 70], device=device)
    initial = torch.randn(4, 2, 32, 32, generator=torch.Generator().manual_seed(6)).to(device)
    check(operator, draw(length=70), cu_seqlens=boundaries, initial_state=initial)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    ("key_scale", "beta"), [(0.0, 1.0), (1e-4, 0.5), (30.0, 1.0), (1.0, 1e-6), (1.0, 50.0)]
)
def test_extremes_of_the_gate(operator: Operator, key_scale: float, beta: float, draw: Draw) -> None:
    inputs = draw(length=40)
    inputs["k"] *= key_scale
    inputs["beta"].fill_(beta)
    if key_scale == 0.0:
        o, state = operator(**inputs, output_final_state=True)
        assert state is not None
        assert not o.any()
        assert not state.any()
    else:
        check(operator, inputs)


@pytest.mark.parametrize("operator", OPERATORS)
def test_identical_keys(operator: Operator, draw: Draw) -> None:
    inputs = draw(length=70)
    inputs["k"] = inputs["k"][:, :1].expand(-1, 70, -1, -1)
    check(operator, inputs)


@pytest.mark.parametrize("operator", OPERATORS)
def test_strided_inputs(operator: Operator, draw: Draw) -> None:
    inputs = draw(length=20)
    packed = torch.stack([inputs["q"], inputs["k"], inputs["v"]], dim=-1)
    q, k, v = packed.unbind(-1)
    assert not q.is_contiguous()
    check(operator, {"q": q, "k": k, "v": v, "beta": inputs["beta"]})


@pytest.mark.parametrize("operator", OPERATORS)
def test_one_beta_spread_over_the_heads(operator: Operator, draw: Draw, device: torch.device) -> None:
    inputs = draw(length=20)
    check(operator, {**inputs, "beta": torch.tensor(0.7, device=device).expand(2)})


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_tokens(operator: Operator, draw: Draw, device: torch.device) -> None:
    initial = torch.randn(2, 2, 32, 32, generator=torch.Generator().manual_seed(5)).to(device)
    o, final = operator(**draw(batch=2, length=0), initial_state=initial, output_final_state=True)
    assert o.shape == (2, 0, 2, 32)
    assert final is not None
    assert torch.equal(final, initial)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_of_very_different_length(operator: Operator, dtype: torch.dtype, draw: Draw) -> None:
    inputs = draw(length=66, dtype=dtype)
    exponent = torch.randint(-8, 6, (66, 1, 1), generator=torch.Generator().manual_seed(3))
    inputs["k"] = inputs["k"] * (2.0**exponent).to(inputs["k"])
    check(operator, inputs)


@pytest.mark.parametrize("operator", OPERATORS)
def test_nothing_from_the_future(operator: Operator, draw: Draw) -> None:
    inputs = draw(length=70)
    before, _ = operator(**inputs)
    for name in ("q", "k", "v"):
        inputs[name] = inputs[name].clone()
        inputs[name][:, 50:] = 1e3
    after, _ = operator(**inputs)
    assert torch.equal(before[:, :50], after[:, :50])
    assert not torch.equal(before[:, 50:], after[:, 50:])


@pytest.mark.parametrize("operator", OPERATORS)
def test_other_options_are_accepted(operator: Operator, draw: Draw) -> None:
    inputs = draw(length=5)
    assert torch.equal(operator(**inputs, use_cache=True, layer_idx=3)[0], operator(**inputs)[0])


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ["q", "beta"])
def test_a_derivative_is_refused(operator: Operator, name: str, draw: Draw) -> None:
    inputs = draw(length=5)
    inputs[name].requires_grad_()
    o, state = operator(**inputs, output_final_state=True)
    assert state is not None
    for value in (o, state):
        with pytest.raises(RuntimeError, match="quasar has no gradient: call it under"):
            value.sum().backward()
    with torch.no_grad():
        assert not operator(**inputs)[0].requires_grad


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_state_handed_on_continues_the_sequence(operator: Operator, draw: Draw) -> None:
    inputs = draw(length=50)
    beta = inputs.pop("beta")
    whole, last = operator(**inputs, beta=beta, output_final_state=True)
    head, state = operator(
        **{name: x[:, :23] for name, x in inputs.items()}, beta=beta, output_final_state=True
    )
    tail, final = operator(
        **{name: x[:, 23:] for name, x in inputs.items()},
        beta=beta,
        initial_state=state,
        output_final_state=True,
    )
    assert last is not None
    assert final is not None
    assert relative_error(torch.cat([head, tail], dim=1), whole) < 2e-6
    assert relative_error(final, last) < 2e-6


@pytest.mark.parametrize("operator", OPERATORS)
def test_returns_no_state_unless_asked(operator: Operator, draw: Draw) -> None:
    _, state = operator(**draw(length=5))
    assert state is None


@pytest.mark.parametrize("operator", OPERATORS)
def test_bad_arguments_are_named(operator: Operator, draw: Draw, device: torch.device) -> None:
    good = draw(length=6)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"q": good["q"][0]}, r"q must be \[B, T, H, D\]"),
        ({"q": good["q"].double(), "k": good["k"].double(), "v": good["v"].double()}, "float64"),
        ({"k": good["k"][:, :5]}, "k must match q"),
        ({"v": good["v"].half()}, "v must match q"),
        ({"beta": good["beta"][:1]}, "beta must be"),
        ({"beta": torch.ones(2, dtype=torch.int64, device=device)}, "beta must be .* torch.int64"),
        ({"beta": 0.5}, "beta must be a tensor, not float"),
        ({"q": None}, "q must be a tensor, not NoneType"),
        ({name: torch.zeros(1, 6, 0, 32, device=device) for name in "qkv"}, "at least one sequence"),
        ({name: torch.zeros(1, 6, 2, 257, device=device) for name in "qkv"}, "1 to 256, not 257"),
        ({"v": good["v"].to("meta")}, "v must match q .* meta"),
        ({"initial_state": torch.zeros(1, 2, 32, 32, device="meta")}, "initial_state must be .* meta"),
        ({"initial_state": torch.zeros(1, 2, 32, 32, device=device).half()}, "initial_state must be"),
        ({"cu_seqlens": [0, 6]}, "cu_seqlens must be a tensor, not list"),
        ({"cu_seqlens": torch.tensor([0.0, 6.0])}, "cu_seqlens must be .* torch.float32"),
        ({"initial_state": torch.zeros(1, 2, 32, 31, device=device)}, "initial_state must be"),
        ({"cu_seqlens": torch.tensor([0, 4, 3, 6])}, "cu_seqlens must ascend"),
        ({"cu_seqlens": torch.tensor([0, 4])}, "cu_seqlens must ascend"),
    ]
    for change, sentence in bad:
        with pytest.raises(ValueError, match=sentence):
            operator(**{**good, **change})
    with pytest.raises(ValueError, match="batch of 1"):
        operator(**draw(batch=2, length=6), cu_seqlens=torch.tensor([0, 6]))


@pytest.mark.parametrize("operator", [chunk_quasar, fused_recurrent_quasar])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_beta_is_checked_on_request(operator: Callable[..., Any], value: float, draw: Draw) -> None:
    inputs = draw(length=5)
    operator(**inputs, checks_beta=True)
    inputs["beta"][1] = value
    with pytest.raises(ValueError, match=f"beta must be positive and finite, not {value} for head 1"):
        operator(**inputs, checks_beta=True)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("has_initial", [False, True])
@pytest.mark.parametrize("boundaries", [None, [0, 1, 1, 40, 130]])
def test_segments_are_joined(
    size: int,
    has_initial: bool,
    boundaries: list[int] | None,
    draw: Draw,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cut as on a GPU, where this machine would run each sequence in one go."""
    monkeypatch.setattr(chunk, "CHUNK_SIZE", 16)
    monkeypatch.setattr(chunk, "segment_size", lambda *_: size)
    monkeypatch.setattr(chunk, "plan_for", chunk.plan_for.__wrapped__)
    options: dict[str, Any] = {}
    sequences = 1
    if boundaries is not None:
        options["cu_seqlens"] = torch.tensor(boundaries, device=device)
        sequences = len(boundaries) - 1
    if has_initial:
        generator = torch.Generator().manual_seed(6)
        options["initial_state"] = torch.randn(sequences, 2, 32, 32, generator=generator).to(device)
    check(chunk_quasar, draw(length=130), **options)


@pytest.mark.parametrize("length", [1, 16])
def test_decoding_in_place(length: int, draw: Draw, device: torch.device) -> None:
    inputs = draw(batch=3, length=length)
    state = torch.randn(3, 2, 32, 32, generator=torch.Generator().manual_seed(5)).to(device)
    expected, last = fused_recurrent_quasar(**inputs, initial_state=state.clone(), output_final_state=True)
    o, final = fused_recurrent_quasar(**inputs, initial_state=state, inplace_final_state=True)
    assert final is not None
    assert last is not None
    assert final.data_ptr() == state.data_ptr()
    assert torch.equal(o, expected)
    assert torch.equal(state, last)


def test_decoding_in_place_needs_a_state_that_may_be_overwritten(draw: Draw, device: torch.device) -> None:
    inputs = draw(length=1)
    state = torch.zeros(1, 2, 32, 32, device=device)
    for wrong, sentence in (
        (None, "needs a contiguous initial_state"),
        (state.transpose(2, 3), "needs a contiguous initial_state"),
        (state.clone().requires_grad_(), "requires a gradient"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fused_recurrent_quasar(**inputs, initial_state=wrong, inplace_final_state=True)
