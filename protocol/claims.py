"""The claim gate: a measurement must come near enough to what the miner claimed."""

import math

from protocol.rules import CLAIM_FRACTION


def claim_holds(measured: float, claimed: float) -> bool:
    """Tell whether a measured throughput reaches the required fraction of the claim.

    Both in tokens per second. Anything that is not finite, and a claim that is not positive, does not hold.
    """
    if not (math.isfinite(measured) and math.isfinite(claimed) and claimed > 0):
        return False
    return measured >= CLAIM_FRACTION * claimed
