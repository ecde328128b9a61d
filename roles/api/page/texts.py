"""Numbers, times and names as the page writes them."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

MINUTE_S: Final = 60
HOUR_S: Final = 3600
DAY_S: Final = 86_400
EXACT_BELOW: Final = 1000.0
"""Throughputs above this are shown without decimals."""
_KEY_HEAD: Final = 6
_KEY_TAIL: Final = 4
_UNITS: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def short_key(hotkey: str) -> str:
    """A hotkey as people recognise it: its first and last characters."""
    if len(hotkey) <= _KEY_HEAD + _KEY_TAIL + 1:
        return hotkey
    return f"{hotkey[:_KEY_HEAD]}…{hotkey[-_KEY_TAIL:]}"


def decimals_for(values: Iterable[float]) -> int:
    """How many decimals a column of throughputs shows, so that its digits stand under each other."""
    return 1 if any(value < EXACT_BELOW for value in values) else 0


def figure(value: float, decimals: int | None = None) -> str:
    """A throughput or a score with thousands separators."""
    return f"{value:,.{decimals_for([value]) if decimals is None else decimals}f}"


def percent(fraction: float) -> str:
    """A fraction as per cent: whole from ten on, at most one decimal below."""
    value = round(100 * fraction, 1)
    return f"{value:.0f} %" if value >= 10 else f"{value:g} %"


def compact(value: float) -> str:
    """A tick of an axis: 1k, 250k, 1M."""
    for size, unit in _UNITS:
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def duration(seconds: float) -> str:
    """A span of time in its two largest units."""
    whole = max(0, int(seconds))
    if whole >= DAY_S:
        return f"{whole // DAY_S} d {whole % DAY_S // HOUR_S} h"
    if whole >= HOUR_S:
        return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S} min"
    if whole >= MINUTE_S:
        return f"{whole // MINUTE_S} min"
    return f"{whole} s"


def moment(at: datetime) -> str:
    """A moment in UTC, to the minute; the page says once that its times are UTC."""
    utc = at.astimezone(UTC)
    return f"{utc.day} {utc:%b %Y, %H:%M}"


def plural(count: int, noun: str) -> str:
    """`1 block`, `2 blocks`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def spoken(status: str) -> str:
    """A status as words: `wrong_output` is `wrong output`."""
    return status.replace("_", " ")
