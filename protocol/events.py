"""Facts that travel on the event bus, named in the past tense."""

from dataclasses import dataclass

from protocol.types import BlockHeight, CommitHash, Hotkey, SubmissionId
from protocol.verdicts import LogitOutcome, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of every event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateEvent(Event):
    """An event of which only the latest matters; queues keep one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockAdvanced(StateEvent):
    """The chain's head moved from `previous` (None at start) to `height`; gaps are real gaps."""

    height: BlockHeight
    previous: BlockHeight | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateVerified(Event):
    """The miner's referee passed a candidate worth submitting."""

    fork_url: str
    commit_hash: CommitHash
    target_sequence_length: int
    tokens_per_sec: float
    claim_tokens_per_sec: float
    vram_mb: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentRecorded(Event):
    """The API took a commitment; it may be revealed from `reveal_block`."""

    submission_id: SubmissionId
    reveal_block: BlockHeight


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionRevealed(Event):
    """The API took a reveal (or a direct submission)."""

    submission_id: SubmissionId
    fork_url: str
    commit_hash: CommitHash


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelJudged(Event):
    """This validator recorded a verdict of its own."""

    submission_id: SubmissionId
    hotkey: Hotkey
    status: Status
    tokens_per_sec: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsChecked(Event):
    """This validator finished a logit check of a miner."""

    hotkey: Hotkey
    outcome: LogitOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSet(Event):
    """Weights were read back from the chain after being set at `height`."""

    height: BlockHeight
    weights: tuple[tuple[Hotkey, float], ...]
