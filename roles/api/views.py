"""Rows as the answers that the public sees: code stays hidden until a verdict."""

from collections.abc import Sequence
from typing import Any

from protocol.commitments import RevealWindow
from protocol.leagues import league_of, weighted_score
from protocol.messages import (
    CurrentRound,
    LeaderboardRow,
    PendingReveal,
    StoredComparison,
    StoredVerdict,
    SubmissionDetail,
    SubmissionSummary,
)
from protocol.ranking import Place
from protocol.types import BlockHeight
from roles.api.standing import Standing
from roles.api.tables import Row

SHOWN_HASH_DIGITS = 16


def pending_reveal(row: Row, height: BlockHeight) -> PendingReveal:
    """A commitment that waits for its reveal."""
    window = RevealWindow(opens=row.reveal_block, expires=row.expires_block)
    return PendingReveal(
        submission_id=row.id,
        miner_hotkey=row.miner_hotkey,
        commitment_hash=row.commitment_hash[:SHOWN_HASH_DIGITS] + "...",
        reveal_block=row.reveal_block,
        blocks_remaining=window.blocks_left(height),
        can_reveal=window.state(height) == "open",
        created_at=row.created_at,
    )


def submission_summary(row: Row, *, is_leased: bool) -> SubmissionSummary:
    """A revealed submission in one line."""
    is_settled = row.settled_at is not None
    measured = row.pooled_tokens_per_sec if is_settled else None
    is_public = row.judged_at is not None
    status = "evaluating" if is_leased or is_public else "queued"
    return SubmissionSummary(
        submission_id=row.id,
        miner_hotkey=row.miner_hotkey,
        fork_url=row.fork_url if is_public else None,
        commit_hash=row.commit_hash if is_public else None,
        target_sequence_length=row.target_sequence_length,
        league=league_of(row.target_sequence_length).name,
        tokens_per_sec=row.claimed_tokens_per_sec,
        measured_tokens_per_sec=measured,
        weighted_score=None if measured is None else weighted_score(measured, row.target_sequence_length),
        status=row.pooled_status if is_settled else status,
        created_at=row.created_at,
    )


def submission_detail(
    row: Row,
    verdicts: Sequence[Row],
    comparisons: Sequence[Row],
    standing: Standing,
    *,
    is_leased: bool,
    height: BlockHeight,
) -> SubmissionDetail:
    """Everything that the public may know of a submission, with its path so far.

    `verdicts`, `comparisons`: of these, the ones that are about it are shown, with what evidence they have.
    """
    is_public = row.judged_at is not None
    return SubmissionDetail(
        submission_id=row.id,
        miner_hotkey=row.miner_hotkey,
        state=_state(row, is_leased=is_leased, height=height),
        fork_url=row.fork_url if is_public else None,
        commit_hash=row.commit_hash if is_public else None,
        target_sequence_length=row.target_sequence_length,
        league=league_of(row.target_sequence_length).name,
        claimed_tokens_per_sec=row.claimed_tokens_per_sec,
        commit_block=row.commit_block,
        reveal_block=row.reveal_block,
        expires_block=row.expires_block,
        code_fixed_at=row.code_fixed_at,
        created_at=row.created_at,
        rank=standing.place_of(row.id),
        logit_outcome=standing.logit_outcome(row.miner_hotkey),
        verdicts=[
            _stored_verdict(verdict, is_public=is_public)
            for verdict in verdicts
            if verdict.submission_id == row.id
        ],
        comparisons=[
            StoredComparison.model_validate(_with_evidence(comparison))
            for comparison in comparisons
            if row.id in (comparison.later_submission_id, comparison.earlier_submission_id)
        ],
    )


def _stored_verdict(verdict: Row, *, is_public: bool) -> StoredVerdict:
    stored = StoredVerdict.model_validate(_with_evidence(verdict))
    # An infrastructure fault that will be tried again may quote the repository, which is still hidden.
    return stored if is_public else stored.model_copy(update={"evidence": {}})


def _with_evidence(row: Row) -> dict[str, Any]:
    """The fields of a verdict or a re-run; of one from a short list, the evidence is its reason."""
    fields = dict(row._mapping)
    if "evidence" not in fields:
        reason = fields.pop("reason")
        fields["evidence"] = {} if reason is None else {"reason": reason}
    return fields


def _state(row: Row, *, is_leased: bool, height: BlockHeight) -> str:
    if row.judged_at is not None:
        return "judged"
    if row.revealed_at is not None:
        return "evaluating" if is_leased else "queued"
    window = RevealWindow(opens=row.reveal_block, expires=row.expires_block)
    return "expired" if window.state(height) == "expired" else "committed"


def leaderboard_row(place: Place) -> LeaderboardRow:
    """One place of the ranking."""
    entry = place.entry
    return LeaderboardRow(
        place=place.place,
        submission_id=entry.submission_id,
        miner_hotkey=entry.hotkey,
        league=league_of(entry.target_sequence_length).name,
        target_sequence_length=entry.target_sequence_length,
        tokens_per_sec=entry.tokens_per_sec,
        weighted_score=place.score,
        share=place.share,
        code_fixed_at=entry.code_fixed_at,
    )


def current_round(row: Row, *, seconds_left: float, submissions: int) -> CurrentRound:
    """The open round."""
    return CurrentRound(
        id=row.id,
        round_number=row.round_number,
        start_time=row.start_time,
        end_time=row.end_time,
        status=row.status,
        time_remaining_seconds=max(0, round(seconds_left)),
        baseline_submission_id=row.baseline_submission_id,
        winner_hotkey=row.winner_hotkey,
        total_submissions=submissions,
    )
