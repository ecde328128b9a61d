"""A submission's path, commit to rank, as four steps."""

from dataclasses import dataclass
from typing import Literal

from protocol.messages import SubmissionDetail
from protocol.types import BlockHeight
from protocol.verdicts import Status
from roles.api.consensus import Pooled
from roles.api.page.texts import figure, plural, spoken

StepState = Literal["done", "now", "open", "bad", "skipped"]
"""Behind it; where it is; ahead of it; where it ended; not on its path."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the path."""

    name: str
    state: StepState
    text: str


def path_of(detail: SubmissionDetail, pooled: Pooled | None, height: BlockHeight) -> tuple[Step, ...]:
    """The four steps of a submission at a height."""
    return (_commit(detail), _reveal(detail, height), _verdict(detail, pooled), _rank(detail, pooled))


def _commit(detail: SubmissionDetail) -> Step:
    if detail.commit_block is None:
        return Step("Commit", "skipped", "none")
    return Step("Commit", "done", f"block {detail.commit_block:,}")


def _reveal(detail: SubmissionDetail, height: BlockHeight) -> Step:
    if detail.state == "expired":
        return Step("Reveal", "bad", "expired")
    if detail.state != "committed":
        return Step("Reveal", "done", "sent directly" if detail.commit_block is None else "revealed")
    left = (detail.reveal_block or 0) - height
    return Step("Reveal", "now", f"in {plural(left, 'block')}" if left > 0 else "due")


def _verdict(detail: SubmissionDetail, pooled: Pooled | None) -> Step:
    if detail.state in ("committed", "expired"):
        return Step("Verdict", "open", "")
    if pooled is None:
        return Step("Verdict", "now", "undecided" if detail.state == "judged" else detail.state)
    if pooled.status is Status.PASSED and pooled.tokens_per_sec is not None:
        return Step("Verdict", "done", figure(pooled.tokens_per_sec))
    return Step("Verdict", "bad", spoken(pooled.status.value))


def _rank(detail: SubmissionDetail, pooled: Pooled | None) -> Step:
    if detail.rank is not None:
        return Step("Rank", "done", f"place {detail.rank}")
    if pooled is None:
        return Step("Rank", "open", "")
    return Step("Rank", "bad" if pooled.status is not Status.PASSED else "open", "unranked")
