"""What a role's wiring hands to the runtime."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from node.runtime import Component


@dataclass(frozen=True, slots=True)
class Graph:
    """The components that run together, and what to close after them (last opened first)."""

    components: list[Component]
    closers: list[Callable[[], Awaitable[None]]]
