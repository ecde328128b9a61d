"""What several validators' findings amount to: one outcome per submission, one per hotkey's logits."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from protocol.rules import LOGIT_PASS_SECONDS
from protocol.types import Hotkey
from protocol.verdicts import LogitOutcome, Status
from roles.api.tables import Row


@dataclass(frozen=True, slots=True)
class Pooled:
    """The common outcome of a submission; measured in tokens per second, None unless it passed."""

    status: Status
    tokens_per_sec: float | None


def pool_verdicts(final_verdicts: Sequence[Row]) -> Pooled | None:
    """The outcome on which more than half agree to pass; else the most frequent reason not to.

    The measurement is the median of those that passed it. None without a final verdict.
    """
    if not final_verdicts:
        return None
    passed = [row.measured_tokens_per_sec for row in final_verdicts if row.status == Status.PASSED]
    if 2 * len(passed) > len(final_verdicts):
        return Pooled(Status.PASSED, median(passed))
    reasons = Counter(row.status for row in final_verdicts if row.status != Status.PASSED)
    return Pooled(Status(reasons.most_common(1)[0][0]), None)


@dataclass(frozen=True, slots=True)
class LogitStanding:
    """Whether a hotkey's logits count as verified, by how many validators, and when last looked at."""

    outcome: LogitOutcome
    checked_at: datetime
    validators: int


def pool_logit_checks(latest: Iterable[Row]) -> dict[Hotkey, LogitStanding]:
    """From every validator's latest check of every miner: passed and failed by majority, a tie is pending."""
    by_miner: dict[Hotkey, list[Row]] = {}
    for check in latest:
        by_miner.setdefault(Hotkey(check.miner_hotkey), []).append(check)
    return {hotkey: _pool(checks) for hotkey, checks in by_miner.items()}


def _pool(checks: Sequence[Row]) -> LogitStanding:
    passed = sum(check.outcome == LogitOutcome.PASSED for check in checks)
    failed = sum(check.outcome == LogitOutcome.FAILED for check in checks)
    outcome = LogitOutcome.PENDING
    if passed != failed:
        outcome = LogitOutcome.PASSED if passed > failed else LogitOutcome.FAILED
    return LogitStanding(outcome, max(check.checked_at for check in checks), len(checks))


def logit_horizon(now: datetime) -> datetime:
    """Checks made before this moment no longer count."""
    return now - timedelta(seconds=LOGIT_PASS_SECONDS)
