"""What several validators' findings amount to."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from protocol.ranking import Compared
from protocol.types import SubmissionId
from protocol.verdicts import Fault, LeadOutcome, LogitOutcome, Status
from roles.api.consensus import (
    Pooled,
    has_quorum,
    pool_comparisons,
    pool_logit_checks,
    pool_verdicts,
    weighted_median,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def verdict(
    validator: str,
    status: Status,
    tokens_per_sec: float | None = None,
    fault: Fault = Fault.NOBODY,
    fingerprint: str | None = None,
) -> SimpleNamespace:
    """A row of the verdicts table."""
    return SimpleNamespace(
        validator_hotkey=validator,
        status=status.value,
        fault=fault.value,
        measured_tokens_per_sec=tokens_per_sec,
        fingerprint=fingerprint,
    )


STAKES = {"a": 1000.0, "b": 1000.0, "c": 1000.0, "whale": 10_000.0}
A_10 = verdict("a", Status.PASSED, 10.0)
B_30 = verdict("b", Status.PASSED, 30.0)
WHALE_50 = verdict("whale", Status.PASSED, 50.0)
B_CRASHED = verdict("b", Status.CRASHED, fault=Fault.MINER)
C_WRONG = verdict("c", Status.WRONG_OUTPUT, fault=Fault.MINER)
WHALE_WRONG = verdict("whale", Status.WRONG_OUTPUT, fault=Fault.MINER)
A_FETCH = verdict("a", Status.FETCH_FAILED)


@pytest.mark.parametrize(
    ("verdicts", "outcome"),
    [
        ([], None),
        ([A_10], Pooled(Status.PASSED, Fault.NOBODY, 10.0)),
        ([A_10, B_30], Pooled(Status.PASSED, Fault.NOBODY, 20.0)),
        ([A_10, B_30, C_WRONG], Pooled(Status.PASSED, Fault.NOBODY, 20.0)),
        ([A_10, B_30, WHALE_50], Pooled(Status.PASSED, Fault.NOBODY, 50.0)),
        ([A_10, B_30, WHALE_WRONG], Pooled(Status.WRONG_OUTPUT, Fault.MINER, None)),
        # Half of the stake is not more than half: neither passed nor the miner's fault.
        ([A_10, B_CRASHED], Pooled(Status.CRASHED, Fault.NOBODY, None)),
        ([A_10, B_CRASHED, C_WRONG], Pooled(Status.CRASHED, Fault.MINER, None)),
        ([A_FETCH], Pooled(Status.FETCH_FAILED, Fault.NOBODY, None)),
    ],
)
def test_verdicts(verdicts: list[SimpleNamespace], outcome: Pooled | None) -> None:
    assert pool_verdicts(verdicts, STAKES) == outcome


def test_a_fingerprint_is_what_most_of_the_stake_that_read_the_code_found() -> None:
    def found(**fingerprints: str | None) -> str | None:
        rows = [verdict(name, Status.WRONG_OUTPUT, fingerprint=text) for name, text in fingerprints.items()]
        pooled = pool_verdicts(rows, STAKES)
        assert pooled is not None
        return pooled.fingerprint

    assert found(a="f", b="f", c="other") == "f"
    assert found(a="f", whale=None) == "f"
    assert found(a="f", b="other") is None
    assert found(a="f", b="f", whale="other") == "other"
    assert found(a=None) is None


def test_verdicts_where_nobody_has_stake_count_alike() -> None:
    assert pool_verdicts([A_10, B_30, C_WRONG], {}) == Pooled(Status.PASSED, Fault.NOBODY, 20.0)


@pytest.mark.parametrize(
    ("pairs", "median"),
    [
        ([(1.0, 1.0)], 1.0),
        ([(3.0, 1.0), (1.0, 1.0)], 2.0),
        ([(1.0, 1.0), (2.0, 1.0), (9.0, 1.0)], 2.0),
        ([(1.0, 5.0), (2.0, 1.0), (9.0, 1.0)], 1.0),
        ([(1.0, 1.0), (2.0, 0.0), (9.0, 1.0)], 5.0),
    ],
)
def test_median_by_weight(pairs: list[tuple[float, float]], median: float) -> None:
    assert weighted_median(pairs) == median


@pytest.mark.parametrize(
    ("judges", "active", "enough"),
    [
        ({"a"}, {"a"}, True),
        ({"a"}, {"a", "b"}, False),
        ({"a", "b"}, {"a", "b", "c"}, True),
        ({"a", "b", "c"}, {"whale"}, False),
        ({"whale"}, {"a", "b", "c"}, True),
        ({"gone"}, {"a"}, False),
    ],
)
def test_quorum(judges: set[str], active: set[str], enough: bool) -> None:
    assert has_quorum(judges, active, STAKES) is enough


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["passed"], LogitOutcome.PASSED),
        (["failed"], LogitOutcome.FAILED),
        (["pending"], LogitOutcome.PENDING),
        (["passed", "failed"], LogitOutcome.PENDING),
        (["passed", "pending"], LogitOutcome.PASSED),
        (["passed", "failed", "passed"], LogitOutcome.PASSED),
        (["failed", "failed", "passed"], LogitOutcome.FAILED),
    ],
)
def test_logit_checks(outcomes: list[str], expected: LogitOutcome) -> None:
    checks = [
        SimpleNamespace(
            miner_hotkey="miner",
            validator_hotkey="abc"[number],
            outcome=outcome,
            checked_at=NOW + timedelta(seconds=number),
        )
        for number, outcome in enumerate(outcomes)
    ]
    [(hotkey, standing)] = pool_logit_checks(checks, STAKES).items()
    assert hotkey == "miner"
    assert standing.outcome is expected
    assert standing.checked_at == NOW + timedelta(seconds=len(outcomes) - 1)
    assert standing.validators == len(outcomes)


def rerun(validator: str, outcome: LeadOutcome, later: int = 2, earlier: int = 1) -> SimpleNamespace:
    """A row of the comparisons table."""
    return SimpleNamespace(
        validator_hotkey=validator,
        outcome=outcome.value,
        later_submission_id=later,
        earlier_submission_id=earlier,
    )


@pytest.mark.parametrize(
    ("found", "is_counted"),
    [
        ({"a": LeadOutcome.CONFIRMED}, True),
        ({"a": LeadOutcome.EARLIER_FAILED}, True),
        ({"a": LeadOutcome.LATER_FAILED}, False),
        ({"a": LeadOutcome.CONFIRMED, "b": LeadOutcome.NOT_CONFIRMED}, False),
        ({"a": LeadOutcome.CONFIRMED, "b": LeadOutcome.NOT_CONFIRMED, "c": LeadOutcome.CONFIRMED}, True),
        ({"a": LeadOutcome.CONFIRMED, "whale": LeadOutcome.NOT_CONFIRMED}, False),
    ],
)
def test_a_lead_counts_by_more_than_half_of_the_stake(
    found: dict[str, LeadOutcome], is_counted: bool
) -> None:
    rows = [rerun(validator, outcome) for validator, outcome in found.items()]
    [pooled] = pool_comparisons(rows, STAKES, {SubmissionId(1): 7.0})
    assert pooled == Compared(
        later=SubmissionId(2), earlier=SubmissionId(1), counts=is_counted, earlier_score=7.0
    )


def test_reruns_of_other_pairs_are_apart() -> None:
    rows = [rerun("a", LeadOutcome.CONFIRMED), rerun("whale", LeadOutcome.NOT_CONFIRMED, earlier=3)]
    assert [one.counts for one in pool_comparisons(rows, STAKES, {})] == [True, False]
