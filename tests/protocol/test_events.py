"""Events are facts: frozen, named by their fields, told apart by whether only the latest matters."""

import dataclasses
import inspect

import pytest

from protocol import events
from protocol.events import BlockAdvanced, Event, KernelJudged, StateEvent
from protocol.types import BlockHeight, Hotkey, SubmissionId
from protocol.verdicts import Status

ALL = [one for _, one in inspect.getmembers(events, inspect.isclass) if issubclass(one, Event)]


@pytest.mark.parametrize("event", ALL)
def test_every_event_is_a_frozen_slotted_keyword_only_record(event: type[Event]) -> None:
    assert dataclasses.is_dataclass(event)
    assert event.__doc__
    assert "__slots__" in vars(event)
    for field in dataclasses.fields(event):
        assert field.kw_only


def test_an_event_does_not_change() -> None:
    judged = KernelJudged(
        submission_id=SubmissionId(1), hotkey=Hotkey("a"), status=Status.PASSED, tokens_per_sec=1.0
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        judged.status = Status.CRASHED  # type: ignore[misc]


def test_heights_are_state() -> None:
    assert isinstance(BlockAdvanced(height=BlockHeight(2), previous=None), StateEvent)
    assert not issubclass(KernelJudged, StateEvent)
