"""Comparison, transport and teacher-forced check of logits."""

import base64
import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InvalidMessage
from protocol.logits import (
    Comparison,
    compare_logits,
    decode_logits,
    encode_logits,
    first_wrong,
    logits_digest,
    logits_match,
    rounding_explains,
)

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = st.lists(float32s, min_size=1, max_size=50)


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_equal_logits_match() -> None:
    comparison = compare_logits(array(1, -2, 3), array(1, -2, 3))
    assert comparison.cosine_similarity == pytest.approx(1.0)
    assert comparison.max_abs_diff == 0.0
    assert logits_match(comparison)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_fail_on_either_side(bad: float) -> None:
    for one, other in ((array(1, bad), array(1, 2)), (array(1, 2), array(1, bad)), (array(bad), array(bad))):
        comparison = compare_logits(one, other)
        assert math.isnan(comparison.cosine_similarity)
        assert not logits_match(comparison)


@pytest.mark.parametrize(
    ("cosine", "difference", "matches"),
    [
        (0.99, 0.1, True),
        (0.9899, 0.1, False),
        (0.99, 0.1001, False),
        (math.nan, 0.0, False),
        (1.0, math.nan, False),
    ],
)
def test_the_thresholds(cosine: float, difference: float, matches: bool) -> None:
    assert logits_match(Comparison(cosine, difference, relative_error=0.0)) is matches


@pytest.mark.parametrize(
    ("error", "rounding", "explained"),
    [
        (0.0, 0.0, True),
        (1e-4, 0.0, True),
        (1.1e-4, 0.0, False),
        (0.004, 0.001, True),
        (0.0041, 0.001, False),
        (math.nan, 1.0, False),
        (0.1, math.nan, False),
        (math.inf, 1.0, False),
    ],
)
def test_what_rounding_explains(error: float, rounding: float, explained: bool) -> None:
    assert rounding_explains(Comparison(1.0, 0.0, error), Comparison(1.0, 0.0, rounding)) is explained


def test_relative_error_is_of_the_spread_not_of_the_size() -> None:
    reference = array(100, 102)
    assert compare_logits(reference, array(100.1, 102.1)).relative_error == pytest.approx(0.1, rel=1e-4)
    assert compare_logits(array(7, 7), array(7, 7)).relative_error == 0.0
    assert compare_logits(array(7, 7), array(7, 8)).relative_error == math.inf
    assert compare_logits(array(0, 0), array(0, 0)).relative_error == 0.0
    assert compare_logits(array(3e38, -3e38), array(-3e38, 3e38)).relative_error == pytest.approx(2.0)


def test_zero_logits_have_no_direction() -> None:
    assert math.isnan(compare_logits(array(0, 0), array(0, 0)).cosine_similarity)
    assert not logits_match(compare_logits(array(0, 0), array(0, 1)))


def test_huge_and_tiny_values_stay_in_range() -> None:
    assert compare_logits(array(3e38, 1e38), array(3e38, 1e38)).cosine_similarity == pytest.approx(1.0)
    assert compare_logits(array(1e-45, 0), array(1e-45, 0)).cosine_similarity == pytest.approx(1.0)
    huge = np.array([1e308, -1e308])
    assert compare_logits(huge, -huge).max_abs_diff == math.inf


@given(vectors)
def test_comparison_is_symmetric_and_bounded(values: list[float]) -> None:
    one, other = array(*values), array(*reversed(values))
    there, back = compare_logits(one, other), compare_logits(other, one)
    assert there.max_abs_diff == back.max_abs_diff
    if not math.isnan(there.cosine_similarity):
        assert there.cosine_similarity == pytest.approx(back.cosine_similarity)
        assert -1.000001 <= there.cosine_similarity <= 1.000001


@pytest.mark.parametrize(("one", "other"), [((1, 2), (1,)), ((), ())])
def test_shapes_must_agree(one: tuple[float, ...], other: tuple[float, ...]) -> None:
    with pytest.raises(InvalidMessage, match="captured_logits have shape"):
        compare_logits(array(*one), array(*other))
    with pytest.raises(InvalidMessage):
        compare_logits(np.zeros((2, 2)), np.zeros((2, 2)))


def test_digest_is_of_the_bytes_that_are_sent() -> None:
    values = array(1.5, -2, math.nan)
    sent = base64.b64decode(encode_logits(values))
    assert logits_digest(values) == hashlib.sha256(sent).hexdigest()


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_logits_survive_both_encodings_bit_for_bit(values: list[float]) -> None:
    original = array(*values)
    assert np.array_equal(decode_logits(encode_logits(original), len(values)), original, equal_nan=True)
    assert np.array_equal(decode_logits(values, len(values)), original, equal_nan=True)


def test_the_encoding_is_little_endian_float32() -> None:
    assert base64.b64decode(encode_logits(array(1.0))) == b"\x00\x00\x80\x3f"
    assert encode_logits(np.array([1e300])) == encode_logits(array(math.inf))


@pytest.mark.parametrize(
    ("captured", "size", "reason"),
    [
        ("!!!!", 3, "not base64"),
        ("é", 3, "not base64"),
        ("AAAA", 1, "3 bytes"),
        (encode_logits(array(1, 2)), 3, "8 bytes"),
        ([1.0, 2.0], 3, "2 values"),
        ([], 3, "0 values"),
        ([[1.0], [2.0], [3.0]], 3, "3 values"),
        (["a", 2.0, 3.0], 3, "not a list of numbers"),
        ([None, {}, 3.0], 3, "not a list of numbers"),
        ([[1.0], 2.0, 3.0], 3, "not a list of numbers"),
        ([10**400, 2.0, 3.0], 3, "not a list of numbers"),
    ],
)
def test_bad_logits_are_refused(captured: list[float] | str, size: int, reason: str) -> None:
    with pytest.raises(InvalidMessage, match=reason):
        decode_logits(captured, size)


def test_values_beyond_float32_become_infinite_and_fail() -> None:
    captured = decode_logits([1e300, 1.0], 2)
    assert not logits_match(compare_logits(array(1, 1), captured))


@pytest.mark.parametrize(
    ("gaps", "tolerance", "wrong"),
    [
        ([0.0, 0.0], 0.0, None),
        ([0.05, 0.0], 0.1, None),
        ([0.05, 0.0], 0.01, 0),
        ([0.0, 1.0], 0.1, 1),
        ([0.0, math.nan], 9.0, 1),
        ([0.0, math.inf], 9.0, 1),
        ([0.0], math.nan, 0),
        ([], 0.0, None),
    ],
)
def test_tokens_are_the_references_own_or_near_ties(
    gaps: list[float], tolerance: float, wrong: int | None
) -> None:
    assert first_wrong(gaps, tolerance) == wrong
