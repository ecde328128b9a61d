"""The ranking: who is ahead of whom, and what the first four places earn (design: what is ranked)."""

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Final

from protocol.errors import InvalidMessage
from protocol.leagues import weighted_score
from protocol.rules import MAX_SCORED_PER_ROUND, REWARD_SHARES, TIE_MARGIN
from protocol.types import Hotkey, SubmissionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A submission that may be ranked: its kernel verdict and its miner's logit verification have passed."""

    submission_id: SubmissionId
    hotkey: Hotkey
    target_sequence_length: int
    tokens_per_sec: float
    """Measured, pooled over all trials; never the claim."""
    code_fixed_at: datetime
    """When the code was fixed; without a time zone it is taken for UTC."""
    round_number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One place of the ranking."""

    place: int
    """From 1."""
    entry: Entry
    score: float
    """Weighted score of the measurement."""
    effective_score: float
    """The score after ties: never above `score`, never below it by more than the margin."""
    share: float
    """Of the reward: 0 after the fourth place."""


@dataclass(frozen=True, slots=True)
class _Scored:
    entry: Entry
    score: float
    effective_score: float


_SHARES: Final = dict(enumerate(REWARD_SHARES, start=1))


def pooled_throughput(trials: Iterable[Sequence[float]]) -> float:
    """Pool all measurements of one submission: the median of all trials, never the best of several.

    Raises:
        InvalidMessage: there is no trial at all.
    """
    pooled = [value for values in trials for value in values]
    if not pooled:
        raise InvalidMessage("trials are empty: a submission without a measurement has no throughput")
    return math.nan if any(map(math.isnan, pooled)) else median(pooled)


def rank(
    entries: Iterable[Entry],
    *,
    tie_margin: float = TIE_MARGIN,
    max_scored_per_round: int = MAX_SCORED_PER_ROUND,
) -> list[Place]:
    """Rank submissions: a total order that does not depend on the order of the input.

    1. Scores that are zero, negative or not finite are dropped.
    2. Of each hotkey and round the first `max_scored_per_round` in time (then submission id) stay.
    3. Walking them in time order, a score that lies above an earlier effective score by at most the margin
       takes that effective score, the lowest one if there are several. Hence the whole meaning of the
       margin: a submission passes an earlier one exactly when its score exceeds that one's effective score
       by more than the margin. (With the highest one, a copy measured by chance just above a third
       submission would pass its original.)
    4. Order: effective score descending, time ascending, submission id ascending.
    5. One place for each hotkey: its best submission.

    Raises:
        InvalidMessage: two different entries carry the same submission id, or the margin is not a finite
            number from 0 up.
    """
    if not (math.isfinite(tie_margin) and tie_margin >= 0):
        raise InvalidMessage(f"tie_margin {tie_margin!r} is not a finite number from 0 up")
    scored = _with_effective_scores(_scored_in_time_order(entries, max_scored_per_round), tie_margin)
    scored.sort(key=lambda one: (-one.effective_score, *_time_order(one.entry)))
    best: dict[Hotkey, _Scored] = {}
    for one in scored:
        best.setdefault(one.entry.hotkey, one)
    return [
        Place(
            place=number,
            entry=one.entry,
            score=one.score,
            effective_score=one.effective_score,
            share=_SHARES.get(number, 0.0),
        )
        for number, one in enumerate(best.values(), start=1)
    ]


def reward_shares(places: Sequence[Place]) -> dict[Hotkey, float]:
    """Map the hotkeys of the first four places to their shares; what nobody earns is left unassigned."""
    return {place.entry.hotkey: place.share for place in places if place.share > 0}


def _scored_in_time_order(entries: Iterable[Entry], max_scored_per_round: int) -> list[tuple[Entry, float]]:
    by_id: dict[SubmissionId, Entry] = {}
    for entry in entries:
        if by_id.setdefault(entry.submission_id, entry) != entry:
            raise InvalidMessage(
                f"submission_id {entry.submission_id} is there twice; pool its measurements first"
            )
    scored: list[tuple[Entry, float]] = []
    count: Counter[tuple[Hotkey, int]] = Counter()
    for entry in sorted(by_id.values(), key=_time_order):
        score = weighted_score(entry.tokens_per_sec, entry.target_sequence_length)
        if not (math.isfinite(score) and score > 0):
            continue
        count[entry.hotkey, entry.round_number] += 1
        if count[entry.hotkey, entry.round_number] <= max_scored_per_round:
            scored.append((entry, score))
    return scored


def _with_effective_scores(scored: list[tuple[Entry, float]], tie_margin: float) -> list[_Scored]:
    limit = 1.0 + tie_margin
    earlier: list[float] = []
    result = []
    for entry, score in scored:
        # The lowest earlier effective score whose margin reaches up to this score.
        index = bisect_left(earlier, score, key=lambda effective: effective * limit)
        effective = min(score, earlier[index]) if index < len(earlier) else score
        if index == len(earlier) or earlier[index] != effective:
            insort(earlier, effective)
        result.append(_Scored(entry, score, effective))
    return result


def _time_order(entry: Entry) -> tuple[datetime, SubmissionId]:
    time = entry.code_fixed_at
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)), entry.submission_id
