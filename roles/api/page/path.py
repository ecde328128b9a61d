"""A submission's path, commit to rank, as four steps."""

from dataclasses import dataclass
from typing import Literal

from protocol.messages import SubmissionDetail
from protocol.types import BlockHeight
from protocol.verdicts import Status
from roles.api.page.texts import figure, plural, spoken

StepState = Literal["done", "now", "open", "bad", "skipped"]
"""Behind it; where it is; ahead of it; where it ended; not on its path."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the verdicts on a submission amount to; tokens per second are None unless it passed."""

    status: Status
    tokens_per_sec: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the path."""

    name: str
    state: StepState
    text: str


def path_of(detail: SubmissionDetail, outcome: Outcome | None, height: BlockHeight) -> tuple[Step, ...]:
    """The four steps of a submission at a height; no outcome: none counts yet."""
    return (_commit(detail), _reveal(detail, height), _verdict(detail, outcome), _rank(detail, outcome))


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


def _verdict(detail: SubmissionDetail, outcome: Outcome | None) -> Step:
    if detail.state in ("committed", "expired"):
        return Step("Verdict", "open", "")
    if outcome is None:
        return Step("Verdict", "now", "undecided" if detail.state == "judged" else detail.state)
    if outcome.status is Status.PASSED and outcome.tokens_per_sec is not None:
        return Step("Verdict", "done", figure(outcome.tokens_per_sec))
    return Step("Verdict", "bad", spoken(outcome.status.value))


def _rank(detail: SubmissionDetail, outcome: Outcome | None) -> Step:
    if detail.rank is not None:
        return Step("Rank", "done", f"place {detail.rank}")
    if outcome is None:
        return Step("Rank", "open", "")
    return Step("Rank", "bad" if outcome.status is not Status.PASSED else "open", "unranked")
