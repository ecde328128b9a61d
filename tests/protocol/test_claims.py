"""The claim gate."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.claims import claim_holds


@pytest.mark.parametrize(
    ("measured", "claimed", "holds"),
    [
        (100.0, 100.0, True),
        (90.0, 100.0, True),
        (89.999, 100.0, False),
        (1e9, 1.0, True),
        (math.nan, 100.0, False),
        (100.0, math.nan, False),
        (math.inf, 100.0, False),
        (100.0, math.inf, False),
        (100.0, 0.0, False),
        (100.0, -1.0, False),
        (0.0, 1.0, False),
    ],
)
def test_the_gate(measured: float, claimed: float, holds: bool) -> None:
    assert claim_holds(measured, claimed) is holds


@given(st.floats(1e-3, 1e12), st.floats(0.0, 2.0))
def test_more_never_holds_less(claimed: float, factor: float) -> None:
    if claim_holds(claimed * factor, claimed):
        assert claim_holds(claimed * (factor + 0.1), claimed)
    assert claim_holds(claimed * factor, claimed) is (claimed * factor >= 0.9 * claimed)
