"""When a candidate is worth a submission, and what is claimed for it; each decision comes with its reason."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from protocol.leagues import league_of
from protocol.messages import CurrentRound, SubmissionDetail
from protocol.rules import BAN_FAILURES, BAN_SECONDS, MAX_SCORED_PER_ROUND
from protocol.verdicts import Fault, Status
from roles.miner.ledger import Submission


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to submit, and the sentence that the operator reads."""

    is_submit: bool
    reason: str


def decide(
    score: float | None, target_sequence_length: int, submissions: Sequence[Submission], *, margin: float
) -> Decision:
    """Decide on a candidate by what this miner has submitted so far.

    score: weighted, by the own measurement; None for a candidate that is sent unverified.
    """
    league = league_of(target_sequence_length).name
    for one in submissions:
        if one.is_in_flight and league_of(one.target_sequence_length).name == league:
            return Decision(False, f"waits: {_name(one)} is on its way in league {league}, one at a time")
    live = [one for one in submissions if one.is_live]
    if score is None:
        return Decision(True, "submitted unverified, as miner.verify_before_submit says")
    if not live:
        return Decision(True, "submitted: nothing of this miner is live")
    best = max(live, key=lambda one: one.score)
    lead = score / best.score - 1 if best.score > 0 else math.inf
    if score > best.score * (1 + margin):
        return Decision(True, f"submitted: {lead:+.1%} against {_name(best)}, more than {margin:.1%}")
    return Decision(False, f"kept: {lead:+.1%} against {_name(best)}, not more than {margin:.1%}")


def round_is_full(current: CurrentRound, own: Sequence[SubmissionDetail]) -> Decision | None:
    """Refuse when as many submissions of a round as are scored have been made; None while there is room."""
    scored = [
        one
        for one in own
        if _fixed_at(one) >= current.start_time and one.state != "expired" and not _has_failed(one)
    ]
    if len(scored) < MAX_SCORED_PER_ROUND:
        return None
    return Decision(
        False,
        f"waits: {len(scored)} submissions of round {current.round_number} are scored or may be, and no more "
        f"than {MAX_SCORED_PER_ROUND} count; the next round begins at {current.end_time:%Y-%m-%d %H:%M} UTC",
    )


def near_ban(own: Sequence[SubmissionDetail], now: datetime) -> Decision | None:
    """Refuse when one more failure would ban this address: what failed there may well fail again."""
    failed = [
        one
        for one in own
        if any(
            verdict.fault is Fault.MINER and verdict.created_at > now - timedelta(seconds=BAN_SECONDS)
            for verdict in one.verdicts
        )
    ]
    if len(failed) < BAN_FAILURES - 1:
        return None
    return Decision(
        False,
        f"waits: {len(failed)} submissions failed by this miner's fault within a day, and {BAN_FAILURES} "
        "ban its address: look at their verdicts first",
    )


def claim_of(figures: Mapping[str, Any], measured: float, *, quantile: float, fraction: float) -> float:
    """Return the claim in tokens per second: a share of what only `quantile` of the trials stayed below.

    Never more than that share of what was measured. A claim earns nothing, and one that a validator measures at
    less than nine tenths costs the submission.
    """
    evidence = figures.get("evidence", {})
    shape = evidence.get("shape", {})
    tokens = shape.get("batch", 1) * shape.get("length", 0)
    slowest_first = sorted(tokens / seconds for seconds in evidence.get("trial_s", ()) if seconds > 0)
    usual = measured
    if slowest_first and tokens:
        usual = min(measured, slowest_first[int(quantile * (len(slowest_first) - 1))])
    return usual * fraction


def _fixed_at(one: SubmissionDetail) -> datetime:
    return one.code_fixed_at or one.created_at


def _has_failed(one: SubmissionDetail) -> bool:
    return bool(one.verdicts) and all(verdict.status is not Status.PASSED for verdict in one.verdicts)


def _name(one: Submission) -> str:
    number = "" if one.submission_id is None else f"submission {one.submission_id} "
    return f"{number}(commit {one.commit_hash[:12]})"
