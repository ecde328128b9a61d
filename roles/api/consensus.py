"""What several validators' findings amount to: one outcome per submission, one per hotkey's logits."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from protocol.leads import counts
from protocol.ranking import Compared
from protocol.rules import LOGIT_PASS_SECONDS
from protocol.types import Hotkey, SubmissionId
from protocol.verdicts import Fault, LeadOutcome, LogitOutcome, Status
from roles.api.tables import Row

ACTIVE_S: Final = 24 * 3600.0
"""A validator that has handed in no verdict for so long is not waited for."""

Stakes = Mapping[str, float]
"""TAO of every validator; one that is not named has none."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """The common outcome of a submission; measured in tokens per second, None unless it passed."""

    status: Status
    fault: Fault
    tokens_per_sec: float | None
    fingerprint: str | None = None
    """Of the code, when more than half of the stake that could read it found the same."""


def pool_verdicts(final_verdicts: Sequence[Row], stakes: Stakes) -> Pooled | None:
    """The outcome on which more than half of the stake agrees to pass; else the heaviest reason not to.

    The measurement is the stake-weighted median of those that passed it; a fault is the miner's only when
    more than half of the stake says so. None without a final verdict.
    """
    if not final_verdicts:
        return None
    weights = weigh([row.validator_hotkey for row in final_verdicts], stakes)
    half = sum(weights) / 2
    pairs = list(zip(final_verdicts, weights, strict=True))
    fingerprint = _agreed_fingerprint(pairs)
    passed = [(row.measured_tokens_per_sec, weight) for row, weight in pairs if row.status == Status.PASSED]
    if sum(weight for _, weight in passed) > half:
        return Pooled(Status.PASSED, Fault.NOBODY, weighted_median(passed), fingerprint)
    failed = [pair for pair in pairs if pair[0].status != Status.PASSED]
    status, _ = _heaviest(failed, lambda row: row.status)
    fault, weight = _heaviest(pairs, lambda row: row.fault)
    agreed = fault if weight > half else Fault.NOBODY
    return Pooled(Status(status), Fault(agreed), None, fingerprint)


def weigh(hotkeys: Sequence[str], stakes: Stakes) -> list[float]:
    """The stake of each; where nobody has any, all count alike."""
    weights = [stakes.get(hotkey, 0.0) for hotkey in hotkeys]
    return weights if sum(weights) > 0 else [1.0] * len(weights)


def weighted_median(pairs: Sequence[tuple[float, float]]) -> float:
    """The value with half of the weight on either side, between two values their mean."""
    ordered = sorted(pair for pair in pairs if pair[1] > 0)
    half = sum(weight for _, weight in ordered) / 2
    reached = 0.0
    for index, (value, weight) in enumerate(ordered):
        reached += weight
        if reached > half:
            return value
        if reached == half:
            return (value + ordered[index + 1][0]) / 2
    raise ValueError("a median needs a value with a weight")


def _agreed_fingerprint(pairs: Sequence[tuple[Row, float]]) -> str | None:
    read = [(row, weight) for row, weight in pairs if row.fingerprint is not None]
    if not read:
        return None
    fingerprint, weight = _heaviest(read, lambda row: row.fingerprint)
    return fingerprint if 2 * weight > sum(weight for _, weight in read) else None


def _heaviest(pairs: Iterable[tuple[Row, float]], key: Callable[[Row], str]) -> tuple[str, float]:
    weights: dict[str, float] = defaultdict(float)
    for row, weight in pairs:
        weights[key(row)] += weight
    return max(weights.items(), key=lambda item: item[1])


def has_quorum(judges: Collection[str], active: Collection[str], stakes: Stakes) -> bool:
    """True when the judges hold more than half of the stake of all validators that judge these days."""
    everybody = sorted({*judges, *active})
    weights = dict(zip(everybody, weigh(everybody, stakes), strict=True))
    return 2 * sum(weights[hotkey] for hotkey in set(judges)) > sum(weights.values())


def pool_comparisons(
    outcomes: Iterable[Row], stakes: Stakes, scores: Mapping[SubmissionId, float]
) -> list[Compared]:
    """Which leads count: those that more than half of the stake that ran a pair again has found to.

    `scores`: weighted scores, by submission.
    """
    by_pair: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in outcomes:
        by_pair[row.later_submission_id, row.earlier_submission_id].append(row)
    compared = []
    for (later, earlier), rows in by_pair.items():
        weights = weigh([row.validator_hotkey for row in rows], stakes)
        for_it = sum(
            weight for row, weight in zip(rows, weights, strict=True) if counts(LeadOutcome(row.outcome))
        )
        compared.append(
            Compared(
                later=SubmissionId(later),
                earlier=SubmissionId(earlier),
                counts=2 * for_it > sum(weights),
                earlier_score=scores.get(SubmissionId(earlier), 0.0),
            )
        )
    return compared


@dataclass(frozen=True, slots=True)
class LogitStanding:
    """Whether a hotkey's logits count as verified, by how many validators, and when last looked at."""

    outcome: LogitOutcome
    checked_at: datetime
    validators: int


def pool_logit_checks(latest: Iterable[Row], stakes: Stakes) -> dict[Hotkey, LogitStanding]:
    """From every validator's latest check of every miner: passed and failed by stake, a tie is pending."""
    by_miner: dict[Hotkey, list[Row]] = {}
    for check in latest:
        by_miner.setdefault(Hotkey(check.miner_hotkey), []).append(check)
    return {hotkey: _pool(checks, stakes) for hotkey, checks in by_miner.items()}


def _pool(checks: Sequence[Row], stakes: Stakes) -> LogitStanding:
    weights = weigh([check.validator_hotkey for check in checks], stakes)
    balance = dict.fromkeys(LogitOutcome, 0.0)
    for check, weight in zip(checks, weights, strict=True):
        balance[LogitOutcome(check.outcome)] += weight
    passed, failed = balance[LogitOutcome.PASSED], balance[LogitOutcome.FAILED]
    outcome = LogitOutcome.PENDING
    if passed != failed:
        outcome = LogitOutcome.PASSED if passed > failed else LogitOutcome.FAILED
    return LogitStanding(outcome, max(check.checked_at for check in checks), len(checks))


def logit_horizon(now: datetime) -> datetime:
    """Checks made before this moment no longer count."""
    return now - timedelta(seconds=LOGIT_PASS_SECONDS)
