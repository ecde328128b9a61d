"""Throughput over target length as the geometry of an SVG; the template only writes it down."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from protocol.leagues import LEAGUES
from protocol.ranking import Place
from protocol.rules import MAX_TARGET_SEQUENCE_LENGTH, REWARD_SHARES, TIE_MARGIN
from roles.api.page.texts import compact

WIDTH: Final = 460
HEIGHT: Final = 300
LEFT: Final = 46
RIGHT: Final = 12
TOP: Final = 22
BOTTOM: Final = 34
LONGEST: Final = MAX_TARGET_SEQUENCE_LENGTH
X_TICKS: Final = (1, 250_000, 500_000, 750_000, 1_000_000)
MAX_TICKS: Final = 6
LABEL_WIDTH: Final = 16
LABEL_HEIGHT: Final = 11
SLOWEST: Final = 1e-6
FASTEST: Final = 1e15
"""Speeds beyond, which no kernel has, are drawn at the edge: no figure may break the page."""
ROOM: Final = 1.3
"""Free space above and below what is shown, as a factor."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A grid line at `at` pixels."""

    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One ranked submission."""

    x: float
    y: float
    place: Place
    label_y: float | None
    """Where its number stands beside it; None for places that earn nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A drawing of `WIDTH` x `HEIGHT` pixels."""

    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    points: Sequence[Point]
    """The first place last, so that nothing is drawn over it."""
    to_lead: str
    """Path of the throughput that takes the first place, league by league."""


def draw(places: Sequence[Place]) -> Plot | None:
    """The plot of a ranking, None while there is nothing to show."""
    if not places:
        return None
    needed = places[0].effective_score * (1 + TIE_MARGIN)
    steps = [(shortest, needed / league.multiplier) for shortest, league in reversed(LEAGUES)]
    speeds = [place.entry.tokens_per_sec for place in places] + [speed for _, speed in steps]
    shown = [_drawn(speed) for speed in speeds]
    low, high = min(shown) / ROOM, max(shown) * ROOM

    def y(speed: float) -> float:
        share = math.log(_drawn(speed) / low) / math.log(high / low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    spots = [(_x(place.entry.target_sequence_length), y(place.entry.tokens_per_sec)) for place in places]
    labels = _label_heights(spots[: len(REWARD_SHARES)])
    points = [
        Point(x=x, y=height, place=place, label_y=labels.get(index))
        for index, ((x, height), place) in enumerate(zip(spots, places, strict=True))
    ]
    return Plot(
        x_ticks=[Tick(_x(length), compact(length) if length > 1 else "0") for length in X_TICKS],
        y_ticks=[Tick(y(speed), compact(speed)) for speed in _round_speeds(low, high)],
        points=points[::-1],
        to_lead=_staircase([(_x(length), y(speed)) for length, speed in steps]),
    )


def _drawn(speed: float) -> float:
    return min(max(speed, SLOWEST), FASTEST)


def _x(length: int) -> float:
    return round(LEFT + (length / LONGEST) * (WIDTH - LEFT - RIGHT), 1)


def _label_heights(spots: Sequence[tuple[float, float]]) -> dict[int, float]:
    """Heights for the labels of points, by index, so that labels of close neighbours do not overlap."""
    heights: dict[int, float] = {}
    for index, (x, y) in sorted(enumerate(spots), key=lambda item: item[1][1]):
        above = [height for other, height in heights.items() if abs(spots[other][0] - x) < LABEL_WIDTH]
        heights[index] = round(max([y, *(height + LABEL_HEIGHT for height in above)]), 1)
    return heights


def _staircase(corners: Sequence[tuple[float, float]]) -> str:
    parts = [f"M{corners[0][0]} {corners[0][1]}"]
    parts += [f"H{x}V{y}" for x, y in corners[1:]]
    return "".join(parts) + f"H{_x(LONGEST)}"


def _round_speeds(low: float, high: float) -> list[float]:
    """Round numbers between two speeds: 1, 2 and 5 of every decade, or as few of them as fit."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [
            digit * 10.0**power
            for power in range(first, last + 1)
            for digit in digits
            if low <= digit * 10.0**power <= high
        ]
        if len(found) <= MAX_TICKS:
            return found
    return found[:: math.ceil(len(found) / MAX_TICKS)]
