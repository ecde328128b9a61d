"""Typical times are not moved by what disturbs some of them."""

import pytest

from roles.referee.quartiles import spread, typical


def test_disturbed_values_change_nothing() -> None:
    calm = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07]
    assert typical(calm) == pytest.approx(1.0175)
    assert typical([*calm[:6], 5.0, 9.0]) == typical(calm)
    assert spread(calm) == pytest.approx(0.035)


def test_one_value_is_typical() -> None:
    assert (typical([3.0]), spread([3.0])) == (3.0, 0.0)
