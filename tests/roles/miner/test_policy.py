"""When a candidate is submitted and what is claimed: every decision has its reason."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from protocol.claims import claim_holds
from protocol.messages import CurrentRound, SubmissionDetail
from protocol.types import CommitHash, SubmissionId
from protocol.verdicts import Fault, LogitOutcome, Status
from roles.miner.ledger import Stage, Submission
from roles.miner.policy import claim_of, decide, near_ban, round_is_full

START = datetime(2026, 1, 1, tzinfo=UTC)

SUBMISSION = Submission(
    key="k",
    stage=Stage.JUDGED,
    is_direct=False,
    fork_url="https://github.com/me/fork",
    commit_hash=CommitHash("ab" * 20),
    target_sequence_length=1_000_000,
    measured_tokens_per_sec=1000.0,
    claim_tokens_per_sec=900.0,
    vram_mb=None,
    salt=None,
    submission_id=SubmissionId(7),
    reveal_block=None,
    expires_block=None,
    reason="",
    verdict=Status.PASSED,
    rank=1,
)


@pytest.mark.parametrize(
    ("score", "is_submit", "words"),
    [
        (3061.0, True, "submitted: +2.0% against submission 7 (commit abababababab), more than 2.0%"),
        (3059.0, False, "kept: +2.0% against submission 7"),
        (1500.0, False, "kept: -50.0%"),
        (None, True, "submitted unverified"),
    ],
)
def test_candidate_must_beat_the_best_live_one_by_the_margin(
    score: float | None, is_submit: bool, words: str
) -> None:
    decision = decide(score, 1_000_000, [SUBMISSION], margin=0.02)
    assert decision.is_submit is is_submit
    assert decision.reason.startswith(words)


@pytest.mark.parametrize("stage", [Stage.DRAFTED, Stage.COMMITTED, Stage.PUSHED, Stage.REVEALED])
def test_one_at_a_time_in_a_league(stage: Stage) -> None:
    under_way = replace(SUBMISSION, stage=stage, verdict=None)
    decision = decide(1e9, 1_048_576, [under_way], margin=0.02)
    assert not decision.is_submit
    assert "on its way in league 1M, one at a time" in decision.reason
    assert decide(1e9, 900_000, [under_way], margin=0.02).is_submit


@pytest.mark.parametrize(
    "lost",
    [
        replace(SUBMISSION, verdict=Status.WRONG_OUTPUT),
        replace(SUBMISSION, stage=Stage.EXPIRED, verdict=None),
        replace(SUBMISSION, stage=Stage.REJECTED, verdict=None),
    ],
)
def test_what_earns_nothing_is_not_the_one_to_beat(lost: Submission) -> None:
    assert decide(1.0, 1_000_000, [lost], margin=0.02).is_submit


def detail(number: int, **changes: Any) -> SubmissionDetail:
    """One submission as the API tells of it."""
    values: dict[str, Any] = {
        "submission_id": number,
        "miner_hotkey": "5" * 48,
        "state": "queued",
        "fork_url": None,
        "commit_hash": None,
        "target_sequence_length": 1_000_000,
        "league": "1M",
        "claimed_tokens_per_sec": None,
        "commit_block": 1,
        "reveal_block": 101,
        "expires_block": 401,
        "code_fixed_at": START + timedelta(hours=1),
        "created_at": START + timedelta(hours=1),
        "rank": None,
        "logit_outcome": LogitOutcome.PENDING,
        "verdicts": [],
    }
    return SubmissionDetail.model_construct(**(values | changes))


ROUND = CurrentRound(
    id=3,
    round_number=3,
    start_time=START,
    end_time=START + timedelta(hours=48),
    status="active",
    time_remaining_seconds=1,
    baseline_submission_id=None,
    winner_hotkey=None,
    total_submissions=4,
)


def test_no_more_submissions_in_a_round_than_are_scored() -> None:
    own = [detail(number) for number in range(1, 5)]
    full = round_is_full(ROUND, own)
    assert full is not None
    assert not full.is_submit
    assert full.reason == (
        "waits: 4 submissions of round 3 are scored or may be, and no more than 4 count; the next round "
        "begins at 2026-01-03 00:00 UTC"
    )
    assert round_is_full(ROUND, own[1:]) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"code_fixed_at": START - timedelta(seconds=1)},
        {"code_fixed_at": None, "created_at": START - timedelta(hours=3)},
        {"state": "expired"},
        {"state": "judged", "verdicts": [SUBMISSION]},
    ],
    ids=["of the round before", "committed before", "expired", "failed"],
)
def test_what_is_not_scored_takes_no_place_in_the_round(changes: dict[str, Any]) -> None:
    if "verdicts" in changes:
        failed = type("Verdict", (), {"status": Status.WRONG_OUTPUT})()
        changes = changes | {"verdicts": [failed]}
    assert round_is_full(ROUND, [*(detail(number) for number in range(1, 4)), detail(4, **changes)]) is None


def failed(number: int, fault: Fault, age: timedelta) -> SubmissionDetail:
    """A submission with one verdict that is not a pass."""
    values = {"status": Status.WRONG_OUTPUT, "fault": fault, "created_at": START - age}
    return detail(number, verdicts=[type("Verdict", (), values)()])


def test_the_failure_that_would_ban_the_address_is_not_risked() -> None:
    hour, days = timedelta(hours=1), timedelta(hours=25)
    own = [failed(number, Fault.MINER, hour) for number in range(4)]
    guard = near_ban(own, START)
    assert guard is not None
    assert guard.reason.startswith(
        "waits: 4 submissions failed by this miner's fault within a day, and 5 ban"
    )
    assert near_ban(own[1:], START) is None
    assert near_ban([*own[1:], failed(9, Fault.MINER, days)], START) is None
    assert near_ban([*own[1:], failed(9, Fault.INFRASTRUCTURE, hour)], START) is None


def figures(*trial_s: float) -> dict[str, Any]:
    """What the referee says of trials of a million tokens."""
    return {"evidence": {"shape": {"batch": 1, "length": 1_000_000}, "trial_s": list(trial_s)}}


def test_claim_rests_on_the_slow_trials_and_holds_for_a_validator_that_sees_only_those() -> None:
    trials = [1.0] * 9 + [1.1, 1.2]
    claim = claim_of(figures(*trials), 1_000_000.0, quantile=0.1, fraction=0.95)
    assert claim == pytest.approx(0.95 * 1_000_000 / 1.1)
    assert claim_holds(1_000_000 / 1.2, claim)


def test_claim_is_never_above_the_share_of_the_median() -> None:
    assert claim_of(figures(0.5, 0.5, 0.5), 1_000_000.0, quantile=1.0, fraction=0.95) == 950_000.0
    assert claim_of({}, 1000.0, quantile=0.1, fraction=0.95) == 950.0
    assert claim_of(figures(-0.1), 1000.0, quantile=0.1, fraction=0.5) == 500.0
