"""Leagues: the class of a target length and the score it multiplies (source: seed, scoring section)."""

from dataclasses import dataclass
from typing import Final

from protocol.errors import InvalidMessage


@dataclass(frozen=True, slots=True)
class League:
    """A class of target sequence lengths and the multiplier of its scores."""

    name: str
    multiplier: float


LEAGUES: Final[tuple[tuple[int, League], ...]] = (
    (1_000_000, League("1M", 3.0)),
    (900_000, League("900k", 2.5)),
    (800_000, League("800k", 2.25)),
    (700_000, League("700k", 2.0)),
    (600_000, League("600k", 1.75)),
    (500_000, League("500k", 1.5)),
    (400_000, League("400k", 1.25)),
    (300_000, League("300k", 1.0)),
    (200_000, League("200k", 0.75)),
    (1, League("100k", 0.5)),
)
"""Every league with the shortest target length that belongs to it, longest first."""


def league_of(target_sequence_length: int) -> League:
    """Find the league of a target sequence length in tokens.

    Raises:
        InvalidMessage: the length is below 1.
    """
    for shortest, league in LEAGUES:
        if target_sequence_length >= shortest:
            return league
    raise InvalidMessage(
        f"target_sequence_length {target_sequence_length} is below 1; name a length in tokens"
    )


def weighted_score(tokens_per_sec: float, target_sequence_length: int) -> float:
    """Multiply a throughput by its league's multiplier; a NaN stays a NaN.

    Raises:
        InvalidMessage: the length is below 1.
    """
    return tokens_per_sec * league_of(target_sequence_length).multiplier
