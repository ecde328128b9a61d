"""Decisions on figures."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.judging import Measurements, fault_of, is_scored, judge
from protocol.verdicts import Fault, Status

GOOD = Measurements(
    cosine_similarity=0.99999,
    max_abs_diff=0.01,
    relative_error=0.005,
    yardstick_relative_error=0.004,
    tokens_per_sec=1000.0,
    spread=0.01,
)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, Status.PASSED),
        ({"cosine_similarity": 0.99, "max_abs_diff": 0.1}, Status.PASSED),
        ({"spread": math.nan}, Status.PASSED),
        ({"cosine_similarity": math.nan}, Status.NAN_OR_INF),
        ({"max_abs_diff": math.inf}, Status.NAN_OR_INF),
        ({"relative_error": math.nan}, Status.NAN_OR_INF),
        ({"cosine_similarity": 0.9899}, Status.WRONG_OUTPUT),
        ({"cosine_similarity": -1.0}, Status.WRONG_OUTPUT),
        ({"max_abs_diff": 0.1001}, Status.WRONG_OUTPUT),
        ({"relative_error": 0.0121}, Status.INACCURATE),
        ({"relative_error": 0.012}, Status.PASSED),
        ({"relative_error": 9e-6, "yardstick_relative_error": 0.0}, Status.PASSED),
        ({"relative_error": 1.1e-5, "yardstick_relative_error": 0.0}, Status.INACCURATE),
        ({"yardstick_relative_error": math.nan}, Status.INFRASTRUCTURE),
        ({"yardstick_relative_error": -1.0}, Status.INFRASTRUCTURE),
        ({"tokens_per_sec": math.nan}, Status.INFRASTRUCTURE),
        ({"tokens_per_sec": math.inf}, Status.INFRASTRUCTURE),
        ({"tokens_per_sec": 0.0}, Status.INFRASTRUCTURE),
        ({"tokens_per_sec": 5001.0}, Status.IMPLAUSIBLE),
        ({"tokens_per_sec": 900.0}, Status.PASSED),
        ({"tokens_per_sec": 899.0}, Status.BELOW_CLAIM),
        ({"tokens_per_sec": 1.0, "max_abs_diff": 5.0}, Status.WRONG_OUTPUT),
    ],
)
def test_statuses(change: dict[str, float], status: Status) -> None:
    assert judge(replace(GOOD, **change), 1000.0, roofline_tokens_per_sec=5000.0) is status


def test_without_a_claim_or_a_roofline_nothing_gates() -> None:
    assert judge(replace(GOOD, tokens_per_sec=1e-3), None) is Status.PASSED
    assert judge(replace(GOOD, tokens_per_sec=1e15), None) is Status.PASSED
    assert judge(GOOD, math.nan) is Status.BELOW_CLAIM
    assert judge(GOOD, None, roofline_tokens_per_sec=math.nan) is Status.IMPLAUSIBLE


FIGURES = [
    "cosine_similarity",
    "max_abs_diff",
    "relative_error",
    "yardstick_relative_error",
    "tokens_per_sec",
]


@pytest.mark.parametrize(
    "names", [names for size in (1, 2, 3) for names in itertools.combinations(FIGURES, size)]
)
def test_nan_never_passes(names: tuple[str, ...]) -> None:
    assert judge(replace(GOOD, **dict.fromkeys(names, math.nan)), None) is not Status.PASSED


@given(st.builds(Measurements, **dict.fromkeys([*FIGURES, "spread"], st.floats())), st.none() | st.floats())
def test_what_passes_meets_every_threshold(m: Measurements, claimed: float | None) -> None:
    if judge(m, claimed) is Status.PASSED:
        assert m.cosine_similarity >= 0.99
        assert m.max_abs_diff <= 0.1
        assert m.relative_error <= max(3 * m.yardstick_relative_error, 1e-5)
        assert 0 < m.tokens_per_sec < math.inf
        assert claimed is None or m.tokens_per_sec >= 0.9 * claimed > 0


def test_every_status_has_its_fault() -> None:
    faults = {status: fault_of(status) for status in Status}
    assert {status for status, fault in faults.items() if fault is Fault.NOBODY} == {
        Status.PASSED,
        Status.DUPLICATE,
        Status.INACCURATE,
        Status.IMPLAUSIBLE,
        Status.FETCH_FAILED,
    }
    assert {status for status, fault in faults.items() if fault is Fault.INFRASTRUCTURE} == {
        Status.INFRASTRUCTURE
    }
    assert faults[Status.BELOW_CLAIM] is Fault.MINER


def test_a_claim_counts_on_the_scoring_gpu_only() -> None:
    assert fault_of(Status.BELOW_CLAIM, scoring_gpu=False) is Fault.NOBODY
    assert fault_of(Status.WRONG_OUTPUT, scoring_gpu=False) is Fault.MINER


def test_only_a_pass_is_scored() -> None:
    assert [status for status in Status if is_scored(status)] == [Status.PASSED]
