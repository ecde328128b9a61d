"""Waiting for something that happens in another process."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], what: Callable[[], object], timeout_s: float = 60.0) -> T:
    """What `condition` gives once it is true; fails, and then asks `what` for the reason."""
    end_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end_s, what()
        time.sleep(0.1)
    return found
