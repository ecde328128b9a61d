"""What a row of times says: disturbances only ever make one longer, so the first quartile is the typical."""

import statistics
from collections.abc import Sequence


def typical(values: Sequence[float]) -> float:
    """Return the first quartile, which a few disturbed values do not move."""
    return _quartiles(values)[0]


def spread(values: Sequence[float]) -> float:
    """Return the interquartile range."""
    low, _, high = _quartiles(values)
    return high - low


def _quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
