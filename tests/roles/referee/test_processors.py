"""The processor that the trials have in common, on this machine's own processors."""

import os
from collections.abc import Iterator

import pytest

from roles.referee import processors
from roles.referee.processors import shared_processor


@pytest.fixture(autouse=True)
def restored() -> Iterator[set[int]]:
    allowed = os.sched_getaffinity(0)
    yield allowed
    os.sched_setaffinity(0, allowed)


def test_the_referee_keeps_off_it(restored: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "FEWEST", 2)
    with shared_processor() as chosen:
        assert chosen in restored
        assert os.sched_getaffinity(0) == restored - {chosen}
    assert os.sched_getaffinity(0) == restored


def test_a_host_with_too_few_has_none(restored: set[int]) -> None:
    few = set(sorted(restored)[: processors.FEWEST - 1])
    os.sched_setaffinity(0, few)
    with shared_processor() as chosen:
        assert chosen is None
        assert os.sched_getaffinity(0) == few
