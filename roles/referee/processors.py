"""The processor on which yardstick and submission take turns: what is slow about it is so for both."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

FEWEST: Final = 3
"""For the referee, for whoever's turn it is, and for everything else."""


@contextmanager
def shared_processor() -> Iterator[int | None]:
    """Choose one at random, which the calling thread keeps off meanwhile; None where there are too few.

    The kernel leaves a worker on the processor that it had. On one that is slower, or that a neighbour of
    this machine shares, a hand-over took longer in all trials of a verdict, and the yardstick's did not.
    """
    allowed = os.sched_getaffinity(0)
    if len(allowed) < FEWEST:
        yield None
        return
    chosen = random.SystemRandom().choice(sorted(allowed))
    os.sched_setaffinity(0, allowed - {chosen})
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, allowed)
