"""The ranking: who is ahead of whom, and what the first four places earn (design: what is ranked)."""

import math
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from operator import attrgetter
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The last word on one lead: what re-runs of two submissions in turn came to."""

    later: SubmissionId
    earlier: SubmissionId
    counts: bool
    """Whether the later one's lead counts."""
    earlier_score: float
    """Weighted score of the earlier one's measurement, which may not be ranked any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """A measured lead that would decide a reward and is not confirmed."""

    later: Entry
    earlier: Entry
    """The best of those that it leads: a lead over this one is a lead over all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Places, and the leads that a re-run has yet to confirm."""

    places: Sequence[Place] = ()
    open_leads: Sequence[Lead] = ()
    """At most one for each reward, the most valuable first."""
    waiting: frozenset[SubmissionId] = frozenset()
    """Submissions behind others, for want of a confirmed lead over one that those others lead."""


@dataclass(frozen=True, slots=True)
class _Scored:
    entry: Entry
    score: float
    effective_score: float
    order: tuple[float, datetime, SubmissionId]
    """That of rule 5."""


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
    compared: Iterable[Compared],
    *,
    tie_margin: float = TIE_MARGIN,
    max_scored_per_round: int = MAX_SCORED_PER_ROUND,
) -> Ranking:
    """Rank submissions: a total order that does not depend on the order of the input.

    1. Scores that are zero, negative or not finite are dropped.
    2. Of each hotkey and round the first `max_scored_per_round` in time (then submission id) stay.
    3. Walking them in time order, a score that lies above an earlier effective score by at most the margin
       takes that effective score, the lowest one if there are several. Hence the whole meaning of the
       margin: a submission passes an earlier one exactly when its score exceeds that one's effective score
       by more than the margin. (With the highest one, a copy measured by chance just above a third
       submission would pass its original.) A lead that a re-run did not confirm is a tie: the score counts
       as the earlier one's effective score.
    4. A place that earns something is filled by walking those without a place in time order: the next one
       takes it over from its holder only with a higher effective score, and a confirmed lead over the holder
       or over one that is not behind it. Whoever comes before the last holder in the order of rule 5 lacks
       that, and waits.
    5. All other places: effective score descending, time ascending, submission id ascending.
    6. One place for each hotkey.

    Raises:
        InvalidMessage: two different entries carry the same submission id, or the margin is not a finite
            number from 0 up.
    """
    if not (math.isfinite(tie_margin) and tie_margin >= 0):
        raise InvalidMessage(f"tie_margin {tie_margin!r} is not a finite number from 0 up")
    results: defaultdict[SubmissionId, list[Compared]] = defaultdict(list)
    for result in compared:
        results[result.later].append(result)
    scored = _with_effective_scores(_scored_in_time_order(entries, max_scored_per_round), tie_margin, results)
    confirmed = _confirmed_scores(scored, results)
    remaining = scored
    holders: list[_Scored] = []
    open_leads: dict[SubmissionId, Lead] = {}
    waiting: set[SubmissionId] = set()
    while remaining and len(holders) < len(REWARD_SHARES):
        holder = _holder(remaining, confirmed)
        holders.append(holder)
        ahead = [one for one in remaining if one.order < holder.order]
        waiting.update(one.entry.submission_id for one in ahead)
        if ahead:
            lead = _best_lead(ahead, remaining)
            open_leads.setdefault(lead.later.submission_id, lead)
        remaining = [one for one in remaining if one.entry.hotkey != holder.entry.hotkey]
    return Ranking(
        places=_places([*holders, *_best_of_each(remaining)]),
        open_leads=tuple(open_leads.values()),
        waiting=frozenset(waiting),
    )


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


def _with_effective_scores(
    scored: list[tuple[Entry, float]],
    tie_margin: float,
    results: Mapping[SubmissionId, Sequence[Compared]],
) -> list[_Scored]:
    limit = 1.0 + tie_margin
    earlier: list[float] = []
    effective_scores: dict[SubmissionId, float] = {}
    result = []
    for entry, score in scored:
        not_confirmed = [
            effective_scores[one.earlier]
            for one in results.get(entry.submission_id, ())
            if not one.counts and one.earlier in effective_scores
        ]
        counted = min([score, *not_confirmed])
        # The lowest earlier effective score whose margin reaches up to this score.
        index = bisect_left(earlier, counted, key=lambda effective: effective * limit)
        effective = min(counted, earlier[index]) if index < len(earlier) else counted
        if index == len(earlier) or earlier[index] != effective:
            insort(earlier, effective)
        effective_scores[entry.submission_id] = effective
        result.append(_Scored(entry, score, effective, (-effective, *_time_order(entry))))
    return result


def _confirmed_scores(
    scored: Sequence[_Scored], results: Mapping[SubmissionId, Sequence[Compared]]
) -> dict[SubmissionId, float]:
    """The highest score over which each submission's lead counts."""
    effective = {one.entry.submission_id: one.effective_score for one in scored}
    return {
        later: max(
            (effective.get(one.earlier, one.earlier_score) for one in compared if one.counts), default=0.0
        )
        for later, compared in results.items()
    }


def _holder(in_time_order: Sequence[_Scored], confirmed: Mapping[SubmissionId, float]) -> _Scored:
    """The one that holds a place in the end."""
    holder, *later = in_time_order
    for one in later:
        is_ahead = one.effective_score > holder.effective_score
        if is_ahead and confirmed.get(one.entry.submission_id, 0.0) >= holder.effective_score:
            holder = one
    return holder


def _best_lead(waiting: Sequence[_Scored], in_time_order: Sequence[_Scored]) -> Lead:
    """The lead of the best of those who wait over the best of those before it."""
    best = max(waiting, key=lambda one: one.effective_score)
    before = takewhile(lambda one: one is not best, in_time_order)
    led = (one for one in before if one.effective_score < best.effective_score)
    return Lead(later=best.entry, earlier=max(led, key=lambda one: one.effective_score).entry)


def _best_of_each(scored: Iterable[_Scored]) -> list[_Scored]:
    """One for each hotkey, in the order of the ranking."""
    best: dict[Hotkey, _Scored] = {}
    for one in sorted(scored, key=attrgetter("order")):
        best.setdefault(one.entry.hotkey, one)
    return list(best.values())


def _places(ordered: Iterable[_Scored]) -> list[Place]:
    return [
        Place(
            place=number,
            entry=one.entry,
            score=one.score,
            effective_score=one.effective_score,
            share=_SHARES.get(number, 0.0),
        )
        for number, one in enumerate(ordered, start=1)
    ]


def _time_order(entry: Entry) -> tuple[datetime, SubmissionId]:
    time = entry.code_fixed_at
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)), entry.submission_id
