"""This validator's own re-runs: how leads were settled, and what is to be tried again."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import nlargest
from typing import Any, Final, NamedTuple

from node.journal import Journal, Record
from protocol.leads import counts, is_final, retry_delay_s
from protocol.messages import Comparison
from protocol.types import CommitHash, SubmissionId
from protocol.verdicts import LeadOutcome
from roles.status import SHOWN
from roles.validator.verdict_store import ACKNOWLEDGED, RECORDED, REFUSED

COMPARISON: Final = "comparison"
OPEN: Final = "open"
"""It settled nothing and is tried again; the API does not hear of it."""


Commits = tuple[CommitHash | None, CommitHash | None]
"""The later submission's and the earlier one's; None of one that has no verdict here."""


class Pair(NamedTuple):
    """Two submissions, the later of which was measured ahead of the earlier."""

    later: SubmissionId
    earlier: SubmissionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """All re-runs of one pair."""

    outcome: LeadOutcome
    """Of the last one."""
    ratio: float | None
    times: Mapping[LeadOutcome, int] = field(default_factory=dict)
    """How often they came to each outcome."""
    tried_at: datetime
    commits: Commits | None
    """What ran; None in what an earlier build has kept."""

    @property
    def is_settled(self) -> bool:
        """Whether the last one is the last word."""
        return is_final(self.outcome, self.times[self.outcome])

    def is_due_at(self, now: datetime) -> bool:
        """Whether the next one is due, unless this is settled."""
        # A date that is to come is of a clock that was wrong.
        age = abs(now - self.tried_at)
        return age >= timedelta(seconds=retry_delay_s(sum(self.times.values())))


class ComparisonStore:
    """Re-runs in the journal, with what the ranking needs of them in memory."""

    def __init__(self, journal: Journal, commit_of: Callable[[SubmissionId], CommitHash | None]) -> None:
        self._journal = journal
        self._commit_of = commit_of
        """What a number stands for now: an API that was restored from a backup gives it again, to another."""
        self._tries: dict[Pair, Tries] = {}

    async def load(self) -> None:
        """Read what earlier runs have left; called once before use."""
        async for records in self._journal.pages(COMPARISON):
            for record in records:
                self._tries[_pair(_read(record))] = _read_tries(record)

    async def put(self, comparison: Comparison, commits: Commits, now: datetime) -> Tries:
        """Keep a signed re-run of these; one that settles the lead reaches the API, even after a crash."""
        pair = _pair(comparison)
        before = self._of(pair, commits)
        times = Counter(before.times if before is not None else {})
        times[comparison.outcome] += 1
        tries = Tries(
            outcome=comparison.outcome, ratio=comparison.ratio, times=times, tried_at=now, commits=commits
        )
        data = {
            "comparison": comparison.model_dump(mode="json"),
            "times": {outcome.value: count for outcome, count in times.items()},
            "tried_at": now.isoformat(),
            "commits": commits,
        }
        await self._journal.put(COMPARISON, _key(pair), RECORDED if tries.is_settled else OPEN, data)
        self._tries[pair] = tries
        return tries

    async def unacknowledged(self) -> list[Comparison]:
        """Re-runs that the API has yet to answer, oldest first."""
        return [_read(record) for record in await self._journal.list(COMPARISON, [RECORDED])]

    async def close(self, comparison: Comparison, *, is_refused: bool = False) -> None:
        """Note that the API has answered."""
        state = REFUSED if is_refused else ACKNOWLEDGED
        await self._journal.update(COMPARISON, _key(_pair(comparison)), state=state)

    def settled(self) -> dict[Pair, bool]:
        """Pairs with a last word, and whether the lead counts."""
        found = ((pair, self.tries(pair)) for pair in self._tries)
        return {pair: counts(tries.outcome) for pair, tries in found if tries and tries.is_settled}

    def tries(self, pair: Pair) -> Tries | None:
        """What became of a pair so far; None before its first re-run."""
        return self._of(pair, self.commits(pair))

    def commits(self, pair: Pair) -> Commits:
        """What the numbers of a pair stand for now."""
        return self._commit_of(pair.later), self._commit_of(pair.earlier)

    def _of(self, pair: Pair, commits: Commits) -> Tries | None:
        tries = self._tries.get(pair)
        return tries if tries is not None and tries.commits in (None, commits) else None

    def summary(self) -> list[dict[str, Any]]:
        """The pairs that were tried last in a few words, for people."""
        newest = nlargest(SHOWN, self._tries.items(), key=lambda item: item[1].tried_at)
        return [
            {
                "later": pair.later,
                "earlier": pair.earlier,
                "outcome": tries.outcome.value,
                "ratio": tries.ratio,
                "settled": tries.is_settled,
            }
            for pair, tries in reversed(newest)
        ]


def _pair(comparison: Comparison) -> Pair:
    return Pair(SubmissionId(comparison.later_submission_id), SubmissionId(comparison.earlier_submission_id))


def _key(pair: Pair) -> str:
    return f"{pair.later}:{pair.earlier}"


def _read(record: Record) -> Comparison:
    return Comparison.model_validate(record.data["comparison"])


def _read_tries(record: Record) -> Tries:
    comparison = _read(record)
    return Tries(
        outcome=comparison.outcome,
        ratio=comparison.ratio,
        times={LeadOutcome(outcome): count for outcome, count in record.data["times"].items()},
        tried_at=datetime.fromisoformat(record.data["tried_at"]),
        commits=tuple(commits) if (commits := record.data.get("commits")) else None,
    )
