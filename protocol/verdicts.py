"""Outcomes of an evaluation: the closed list of statuses and whose fault each is."""

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


class Fault(StrEnum):
    """Who answers for an outcome."""

    MINER = "miner"
    NOBODY = "nobody"
    INFRASTRUCTURE = "infrastructure"


class LogitOutcome(StrEnum):
    """State of a hotkey's logit verification."""

    PASSED = "passed"
    FAILED = "failed"
    PENDING = "pending"
