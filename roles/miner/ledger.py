"""What the miner must not forget: its submissions with their salts."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

from node.journal import Journal, Record
from protocol.leagues import weighted_score
from protocol.types import BlockHeight, CommitHash, SubmissionId
from protocol.verdicts import Status

SUBMISSION: Final = "submission"


class Stage(StrEnum):
    """How far a submission has come. Pushed code is public code: what comes before is a secret."""

    DRAFTED = "drafted"
    """In the journal; the API may or may not have heard of it."""
    COMMITTED = "committed"
    """The API has recorded the commitment; the code waits here."""
    PUSHED = "pushed"
    """The remote shows the code; the API may or may not have the reveal."""
    REVEALED = "revealed"
    """The API has the code (by reveal or directly); verdicts are awaited."""
    JUDGED = "judged"
    EXPIRED = "expired"
    REJECTED = "rejected"


UNFINISHED: Final = (Stage.DRAFTED, Stage.COMMITTED, Stage.PUSHED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One kernel on its way from a local commit to a verdict."""

    key: str
    """The commitment hash; for a direct submission a name made of what it submits."""
    stage: Stage
    is_direct: bool
    fork_url: str
    commit_hash: CommitHash
    target_sequence_length: int
    measured_tokens_per_sec: float | None
    claim_tokens_per_sec: float
    vram_mb: float | None
    salt: str | None
    submission_id: SubmissionId | None
    reveal_block: BlockHeight | None
    expires_block: BlockHeight | None
    reason: str
    """Why it was rejected or expired, or what the verdict says."""
    verdict: Status | None
    rank: int | None

    def __repr__(self) -> str:
        return (
            f"Submission({self.key[:16]}, {self.stage}, id={self.submission_id}, commit={self.commit_hash})"
        )

    @property
    def is_in_flight(self) -> bool:
        """True from its draft until its verdict, or until it is over without one."""
        return self.stage in UNFINISHED or self.stage is Stage.REVEALED

    @property
    def is_live(self) -> bool:
        """True while it may earn something: under way, waiting for a verdict, or passed."""
        if self.stage is Stage.JUDGED:
            return self.verdict is Status.PASSED
        return self.stage not in (Stage.EXPIRED, Stage.REJECTED)

    @property
    def score(self) -> float:
        """Weighted score of the own measurement, of the claim when nothing was measured."""
        return weighted_score(
            self.measured_tokens_per_sec or self.claim_tokens_per_sec, self.target_sequence_length
        )

    @classmethod
    def read(cls, record: Record) -> Self:
        """The submission of a journal record."""
        data = record.data
        verdict = data.get("verdict")
        return cls(
            key=record.key,
            stage=Stage(record.state),
            is_direct=data["is_direct"],
            fork_url=data["fork_url"],
            commit_hash=CommitHash(data["commit_hash"]),
            target_sequence_length=data["target_sequence_length"],
            measured_tokens_per_sec=data.get("measured_tokens_per_sec"),
            claim_tokens_per_sec=data["claim_tokens_per_sec"],
            vram_mb=data.get("vram_mb"),
            salt=record.secret,
            submission_id=data.get("submission_id"),
            reveal_block=data.get("reveal_block"),
            expires_block=data.get("expires_block"),
            reason=data.get("reason", ""),
            verdict=None if verdict is None else Status(verdict),
            rank=data.get("rank"),
        )


class SubmissionLedger:
    """The miner's submissions in its journal; every change is on disk when the call returns."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def draft(self, key: str, *, salt: str | None, **data: Any) -> Submission:
        """Write down a submission before anything of it leaves this machine."""
        await self._journal.put(SUBMISSION, key, Stage.DRAFTED, data, salt)
        record = await self._journal.get(SUBMISSION, key)
        assert record is not None
        return Submission.read(record)

    async def advance(self, submission: Submission, stage: Stage, **data: Any) -> Submission:
        """Move a submission on, with what was learnt."""
        return Submission.read(await self._journal.update(SUBMISSION, submission.key, state=stage, data=data))

    async def all(self, *stages: Stage) -> list[Submission]:
        """Submissions in the given stages (in any when none is given), oldest first."""
        return [Submission.read(record) for record in await self._journal.list(SUBMISSION, stages or None)]

    async def find_code(self, commit_hash: CommitHash, target_sequence_length: int) -> Submission | None:
        """The newest submission of a commit for a target length."""
        code = {"commit_hash": commit_hash, "target_sequence_length": target_sequence_length}
        for record in await self._journal.list(SUBMISSION, where=code, newest=1):
            return Submission.read(record)
        return None

    async def latest(self, count: int, *stages: Stage) -> list[Submission]:
        """The newest submissions in the given stages (in any when none is given), oldest first."""
        records = await self._journal.list(SUBMISSION, stages or None, newest=count)
        return [Submission.read(record) for record in records]
