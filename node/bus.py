"""Typed event bus: facts go from the component that saw them to those that subscribed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Generic

from typing_extensions import TypeVar

from protocol.errors import BusError
from protocol.events import Event, StateEvent

E_co = TypeVar("E_co", bound=Event, default=Event, covariant=True)
E = TypeVar("E", bound=Event, default=Event)


class Subscription(Generic[E_co]):
    """A bounded queue of events, read with `async for` by one component.

    Work events keep their order and none is lost; of every StateEvent type only the latest waits.
    """

    def __init__(self, event_types: tuple[type[Event], ...], capacity: int) -> None:
        self._event_types = event_types
        self._capacity = capacity
        # Keyed by type for state events (a newer one takes the older one's place in the line) and by
        # number for work events.
        self._pending: dict[object, Event] = {}
        self._delivered = 0
        self._room = asyncio.Semaphore(capacity)
        self._readable = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[E_co]:
        return self

    async def __anext__(self) -> E_co:
        while not self._pending:
            self._readable.clear()
            await self._readable.wait()
        key = next(iter(self._pending))
        event = self._pending.pop(key)
        if not isinstance(event, StateEvent):
            self._room.release()
        return event  # type: ignore[return-value]  # `wants` let in nothing else

    def __len__(self) -> int:
        return len(self._pending)

    def __repr__(self) -> str:
        names = ", ".join(event_type.__name__ for event_type in self._event_types)
        return f"Subscription({names}, {len(self)} of {self._capacity} waiting)"

    def wants(self, event: Event) -> bool:
        """True when the event is of a subscribed type."""
        return isinstance(event, self._event_types)

    async def deliver(self, event: Event) -> None:
        """Queue the event, waiting for room when it is a work event (the bus limits the wait)."""
        if isinstance(event, StateEvent):
            self._pending[type(event)] = event
        else:
            await self._room.acquire()
            self._delivered += 1
            self._pending[self._delivered] = event
        self._readable.set()


class Bus:
    """Joins the components of one process; every event must have a subscriber.

    `patience_s`: how long a publisher waits for a full subscriber before the bus gives up.
    """

    def __init__(self, *, patience_s: float = 30.0) -> None:
        self._patience_s = patience_s
        self._subscriptions: list[Subscription[Event]] = []
        self._is_published = False

    def subscribe(self, *event_types: type[E], capacity: int = 64) -> Subscription[E]:
        """Open a queue for the given event types; called in constructors, before anything is published.

        Raises BusError when events have been published already: a late subscriber has missed facts.
        """
        if not event_types or capacity < 1:
            raise BusError(
                f"a subscription needs at least one event type and room for one event, not {capacity}"
            )
        if self._is_published:
            names = ", ".join(event_type.__name__ for event_type in event_types)
            raise BusError(f"subscribed to {names} after events were published: subscribe in the constructor")
        subscription: Subscription[E] = Subscription(event_types, capacity)
        self._subscriptions.append(subscription)
        return subscription

    async def publish(self, event: Event) -> None:
        """Hand the event to every subscriber of its type.

        Raises BusError when there is none, or when one stays full for longer than `patience_s`.
        """
        self._is_published = True
        readers = [subscription for subscription in self._subscriptions if subscription.wants(event)]
        if not readers:
            raise BusError(
                f"nobody subscribed to {type(event).__name__}: wire a consumer or do not publish it"
            )
        waiting = readers[0]
        try:
            async with asyncio.timeout(self._patience_s):
                for waiting in readers:
                    await waiting.deliver(event)
        except TimeoutError as error:
            raise BusError(
                f"{waiting!r} took no {type(event).__name__} for {self._patience_s:g} s: its reader is stuck"
            ) from error
