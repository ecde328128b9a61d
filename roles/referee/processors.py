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

    On an H200's host hand-overs that followed each other differed by 0.09 ms on one processor and by 0.32 ms
    on two, and the kernel leaves a worker on the one that it had.
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
