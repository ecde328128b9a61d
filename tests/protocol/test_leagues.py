"""Leagues and weighted scores, as the seed's table gives them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InvalidMessage
from protocol.leagues import LEAGUES, league_of, weighted_score


@pytest.mark.parametrize(
    ("length", "name", "multiplier"),
    [
        (1, "100k", 0.5),
        (100_000, "100k", 0.5),
        (199_999, "100k", 0.5),
        (200_000, "200k", 0.75),
        (299_999, "200k", 0.75),
        (300_000, "300k", 1.0),
        (400_000, "400k", 1.25),
        (500_000, "500k", 1.5),
        (600_000, "600k", 1.75),
        (700_000, "700k", 2.0),
        (800_000, "800k", 2.25),
        (899_999, "800k", 2.25),
        (900_000, "900k", 2.5),
        (999_999, "900k", 2.5),
        (1_000_000, "1M", 3.0),
        (1_048_576, "1M", 3.0),
    ],
)
def test_the_table(length: int, name: str, multiplier: float) -> None:
    league = league_of(length)
    assert (league.name, league.multiplier) == (name, multiplier)


def test_the_example_of_the_seed() -> None:
    assert weighted_score(50_000.0, 1_000_000) == 150_000.0


@pytest.mark.parametrize("length", [0, -5])
def test_a_length_below_one_is_refused_with_its_value(length: int) -> None:
    with pytest.raises(InvalidMessage, match=f"target_sequence_length {length}"):
        league_of(length)


@given(st.integers(1, 2_000_000), st.integers(1, 2_000_000))
def test_a_longer_target_never_has_a_smaller_multiplier(one: int, other: int) -> None:
    shorter, longer = sorted((one, other))
    assert league_of(shorter).multiplier <= league_of(longer).multiplier


def test_the_boundaries_fall_without_gaps() -> None:
    starts = [start for start, _ in LEAGUES]
    assert starts == sorted(starts, reverse=True)
    assert starts[-1] == 1


def test_nan_stays_nan() -> None:
    assert math.isnan(weighted_score(math.nan, 5))
