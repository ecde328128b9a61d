"""Decisions on leads: what a re-run of two submissions says, and when its word is the last."""

import math
from typing import Final

from protocol.rules import TIE_MARGIN
from protocol.verdicts import LeadOutcome

FAILED_ATTEMPTS: Final = 8
"""A submission that fails in so many re-runs has lost them; one failure may have been the host's."""
FIRST_RETRY_S: Final = 60.0
LONGEST_RETRY_S: Final = 3600.0


def judge_lead(ratio: float) -> LeadOutcome:
    """Decide on the ratio of the weighted scores, later to earlier, of a re-run to its end."""
    if not (math.isfinite(ratio) and ratio > 0):
        return LeadOutcome.INFRASTRUCTURE
    return LeadOutcome.CONFIRMED if ratio > 1.0 + TIE_MARGIN else LeadOutcome.NOT_CONFIRMED


def counts(outcome: LeadOutcome) -> bool:
    """Tell whether the lead counts: it was confirmed, or the earlier submission does not run any more."""
    return outcome in (LeadOutcome.CONFIRMED, LeadOutcome.EARLIER_FAILED)


def is_final(outcome: LeadOutcome, times: int) -> bool:
    """Tell whether re-runs that came to the same outcome `times` times settle the lead.

    Those of which the infrastructure is at fault never do.
    """
    match outcome:
        case LeadOutcome.INFRASTRUCTURE:
            return False
        case LeadOutcome.LATER_FAILED | LeadOutcome.EARLIER_FAILED:
            return times >= FAILED_ATTEMPTS
        case _:
            return True


def retry_delay_s(attempts: int) -> float:
    """Return the seconds to wait after so many attempts that settled nothing, doubling up to an hour."""
    return float(min(FIRST_RETRY_S * 2 ** min(attempts - 1, 10), LONGEST_RETRY_S))
