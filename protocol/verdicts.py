"""Outcomes: the closed lists of what an evaluation, a re-run or a logit check can come to."""

from enum import StrEnum


class Status(StrEnum):
    """How the evaluation of one submission ended."""

    PASSED = "passed"
    DUPLICATE = "duplicate"
    IMPORTS_FORBIDDEN = "imports_forbidden"
    IMPORTS_MISSING = "imports_missing"
    FETCH_FAILED = "fetch_failed"
    BUILD_FAILED = "build_failed"
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    NAN_OR_INF = "nan_or_inf"
    WRONG_OUTPUT = "wrong_output"
    INACCURATE = "inaccurate"
    INCONSISTENT = "inconsistent"
    BELOW_CLAIM = "below_claim"
    IMPLAUSIBLE = "implausible"
    TAMPERED = "tampered"
    INFRASTRUCTURE = "infrastructure"


class Isolation(StrEnum):
    """The least that stands between a submission and the host that judges it."""

    TO_SCORE = "to_score"
    """A sandbox strong enough for verdicts that count beside a wallet."""
    ANY = "any"
    NONE = "none"
    """Without a sandbox where there is none."""


class Fault(StrEnum):
    """Who answers for an outcome."""

    MINER = "miner"
    NOBODY = "nobody"
    INFRASTRUCTURE = "infrastructure"


class LeadOutcome(StrEnum):
    """How a re-run of two submissions in turn ended, of which the later was measured ahead of the earlier."""

    CONFIRMED = "confirmed"
    NOT_CONFIRMED = "not_confirmed"
    LATER_FAILED = "later_failed"
    """It could not be fetched, or failed to run as its verdict says that it does."""
    EARLIER_FAILED = "earlier_failed"
    INFRASTRUCTURE = "infrastructure"


class LogitOutcome(StrEnum):
    """State of a hotkey's logit verification."""

    PASSED = "passed"
    FAILED = "failed"
    PENDING = "pending"
