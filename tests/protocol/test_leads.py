"""What a re-run says, and when its word is the last."""

import math

import pytest

from protocol.leads import FAILED_ATTEMPTS, LONGEST_RETRY_S, counts, is_final, judge_lead, retry_delay_s
from protocol.verdicts import LeadOutcome


@pytest.mark.parametrize(
    ("ratio", "outcome"),
    [
        (1.0201, LeadOutcome.CONFIRMED),
        (1.02, LeadOutcome.NOT_CONFIRMED),
        (0.5, LeadOutcome.NOT_CONFIRMED),
        (0.0, LeadOutcome.INFRASTRUCTURE),
        (math.nan, LeadOutcome.INFRASTRUCTURE),
        (math.inf, LeadOutcome.INFRASTRUCTURE),
    ],
)
def test_more_than_the_margin_confirms(ratio: float, outcome: LeadOutcome) -> None:
    assert judge_lead(ratio) is outcome


def test_a_lead_counts_when_it_is_confirmed_or_the_earlier_one_does_not_run_any_more() -> None:
    assert {outcome for outcome in LeadOutcome if counts(outcome)} == {
        LeadOutcome.CONFIRMED,
        LeadOutcome.EARLIER_FAILED,
    }


def test_figures_settle_at_once_failures_when_they_repeat_and_the_infrastructure_never() -> None:
    assert is_final(LeadOutcome.CONFIRMED, 1)
    assert is_final(LeadOutcome.NOT_CONFIRMED, 1)
    for outcome in (LeadOutcome.LATER_FAILED, LeadOutcome.EARLIER_FAILED):
        assert not is_final(outcome, FAILED_ATTEMPTS - 1)
        assert is_final(outcome, FAILED_ATTEMPTS)
    assert not is_final(LeadOutcome.INFRASTRUCTURE, 1000)


def test_waiting_grows_from_a_minute_to_an_hour() -> None:
    assert [retry_delay_s(number) for number in (1, 2, 3)] == [60.0, 120.0, 240.0]
    assert retry_delay_s(1000) == LONGEST_RETRY_S
