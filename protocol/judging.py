"""Decisions on a referee's figures: which status they make, whose fault it is, whether it counts."""

import math
from dataclasses import dataclass

from protocol.claims import claim_holds
from protocol.rules import (
    MAX_ABS_DIFFERENCE,
    MAX_RELATIVE_TO_YARDSTICK,
    MIN_COSINE_SIMILARITY,
    NEGLIGIBLE_RELATIVE_ERROR,
)
from protocol.verdicts import Fault, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """What the referee measured, over all trials."""

    cosine_similarity: float
    """The worst over tokens, heads and trials, against the float32 reference."""
    max_abs_diff: float
    """The worst over tokens, heads and trials."""
    relative_error: float
    yardstick_relative_error: float
    """Of the pinned kernel on the same inputs."""
    tokens_per_sec: float
    """Median over trials."""
    spread: float
    """Interquartile range of the trials over the measured time; informs, decides nothing."""


def judge(
    m: Measurements, claimed_tokens_per_sec: float | None, *, roofline_tokens_per_sec: float | None = None
) -> Status:
    """Decide the status of a submission that ran to its end.

    The first that applies, in this order:

    1. `infrastructure`: the referee's own figures (the yardstick's error, the throughput) are not finite or
       make no sense; no submission answers for them.
    2. `nan_or_inf`: an error figure of the submission is not finite.
    3. `wrong_output`: cosine similarity or maximum difference misses the subnet's threshold.
    4. `inaccurate`: the relative error exceeds its multiple of the yardstick's and is not negligible.
    5. `implausible`: faster than the roofline of the device (None: not known).
    6. `below_claim`: the throughput misses the claim (None: no claim).
    7. `passed`.
    """
    if not (math.isfinite(m.tokens_per_sec) and m.tokens_per_sec > 0):
        return Status.INFRASTRUCTURE
    if not (math.isfinite(m.yardstick_relative_error) and m.yardstick_relative_error >= 0):
        return Status.INFRASTRUCTURE
    if not all(map(math.isfinite, (m.cosine_similarity, m.max_abs_diff, m.relative_error))):
        return Status.NAN_OR_INF
    if not (m.cosine_similarity >= MIN_COSINE_SIMILARITY and m.max_abs_diff <= MAX_ABS_DIFFERENCE):
        return Status.WRONG_OUTPUT
    bound = max(MAX_RELATIVE_TO_YARDSTICK * m.yardstick_relative_error, NEGLIGIBLE_RELATIVE_ERROR)
    if not m.relative_error <= bound:
        return Status.INACCURATE
    if roofline_tokens_per_sec is not None and not m.tokens_per_sec <= roofline_tokens_per_sec:
        return Status.IMPLAUSIBLE
    if claimed_tokens_per_sec is not None and not claim_holds(m.tokens_per_sec, claimed_tokens_per_sec):
        return Status.BELOW_CLAIM
    return Status.PASSED


def fault_of(status: Status, *, scoring_gpu: bool = True) -> Fault:
    """Say who answers for a status; only the miner's faults count towards a ban.

    - `infrastructure` is the infrastructure's.
    - Nobody's: `passed`; `duplicate`, `inaccurate` and `implausible`, which cost the rank and no strike; and
      `fetch_failed`, because a repository may be refused by its host's mistake.
    - `below_claim` is the miner's on the GPU type that the subnet scores on (`scoring_gpu`), elsewhere
      nobody's: a claim is made for that type.
    - Everything else is the miner's.
    """
    match status:
        case Status.INFRASTRUCTURE:
            return Fault.INFRASTRUCTURE
        case Status.PASSED | Status.DUPLICATE | Status.INACCURATE | Status.IMPLAUSIBLE | Status.FETCH_FAILED:
            return Fault.NOBODY
        case Status.BELOW_CLAIM if not scoring_gpu:
            return Fault.NOBODY
        case _:
            return Fault.MINER


def is_scored(status: Status) -> bool:
    """Tell whether a submission with this status has a score."""
    return status is Status.PASSED
