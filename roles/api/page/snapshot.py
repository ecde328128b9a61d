"""What the page shows at one moment: plain data that the templates write down."""

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.messages import CurrentRound, PendingReveal, SubmissionDetail
from protocol.ranking import Place
from protocol.types import BlockHeight
from protocol.verdicts import LogitOutcome
from roles.api.page.path import Outcome, Step
from roles.api.tables import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """Where and when the page was read."""

    network: str
    netuid: int
    height: BlockHeight
    block_time_s: float | None
    """None while the chain has not said."""
    trouble: str | None
    """Why the heights may be out of date."""

    def blocks_in(self, seconds: float) -> int | None:
        """A span of time in blocks, None while the block time is unknown."""
        return None if not self.block_time_s else max(0, round(seconds / self.block_time_s))

    def seconds_of(self, blocks: int) -> float | None:
        """The time that blocks take, None while the block time is unknown."""
        return None if self.block_time_s is None else blocks * self.block_time_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """The worst that any validator found; None where none reported it."""

    cosine_similarity: float | None
    relative_error: float | None
    gpu: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A submission as the public may see it, with its path and the reason for its rank."""

    detail: SubmissionDetail
    outcome: Outcome | None
    score: float | None
    path: tuple[Step, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The front page."""

    subnet: Subnet
    round: CurrentRound
    places: Sequence[Place]
    accuracy: dict[int, Accuracy]
    """By submission; of the places that are shown."""
    recent: Sequence[Shown]
    pending: Sequence[PendingReveal]
    """The next due."""
    pending_total: int
    queued: int
    wait_blocks: int
    """Between a commitment and its reveal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerPage:
    """Everything about one hotkey."""

    subnet: Subnet
    hotkey: str
    uid: int | None
    """At this moment: UIDs are recycled."""
    is_registered: bool
    place: Place | None
    reason: str
    logits: LogitOutcome
    checks: Sequence[Row]
    submissions: Sequence[Shown]
    """The newest, newest first."""
    has_more: bool
    finishes: Sequence[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionPage:
    """Everything that is public about one submission."""

    subnet: Subnet
    shown: Shown
