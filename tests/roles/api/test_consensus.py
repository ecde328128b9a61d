"""What several validators' findings amount to."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from protocol.verdicts import LogitOutcome, Status
from roles.api.consensus import Pooled, pool_logit_checks, pool_verdicts

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def verdict(status: Status, tokens_per_sec: float | None = None) -> SimpleNamespace:
    """A row of the verdicts table."""
    return SimpleNamespace(status=status.value, measured_tokens_per_sec=tokens_per_sec)


PASSED_10 = verdict(Status.PASSED, 10.0)
PASSED_30 = verdict(Status.PASSED, 30.0)
CRASHED = verdict(Status.CRASHED)
WRONG = verdict(Status.WRONG_OUTPUT)


@pytest.mark.parametrize(
    ("verdicts", "outcome"),
    [
        ([], None),
        ([PASSED_10], Pooled(Status.PASSED, 10.0)),
        ([PASSED_10, PASSED_30], Pooled(Status.PASSED, 20.0)),
        ([PASSED_10, PASSED_30, CRASHED], Pooled(Status.PASSED, 20.0)),
        ([PASSED_10, CRASHED], Pooled(Status.CRASHED, None)),
        ([WRONG, CRASHED, WRONG], Pooled(Status.WRONG_OUTPUT, None)),
        ([PASSED_10, WRONG, CRASHED, WRONG], Pooled(Status.WRONG_OUTPUT, None)),
    ],
)
def test_verdicts(verdicts: list[SimpleNamespace], outcome: Pooled | None) -> None:
    assert pool_verdicts(verdicts) == outcome


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
        SimpleNamespace(miner_hotkey="miner", outcome=outcome, checked_at=NOW + timedelta(seconds=number))
        for number, outcome in enumerate(outcomes)
    ]
    [(hotkey, standing)] = pool_logit_checks(checks).items()
    assert hotkey == "miner"
    assert standing.outcome is expected
    assert standing.checked_at == NOW + timedelta(seconds=len(outcomes) - 1)
    assert standing.validators == len(outcomes)
