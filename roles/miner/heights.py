"""The chain's height as something to wait for."""

import asyncio

from node.bus import Bus
from protocol.events import BlockAdvanced
from protocol.types import BlockHeight


class Heights:
    """Follows BlockAdvanced; any number of tasks may wait for a height. `follow` runs beside them."""

    def __init__(self, bus: Bus) -> None:
        self._blocks = bus.subscribe(BlockAdvanced)
        self._changed = asyncio.Condition()
        self.height: BlockHeight | None = None

    async def follow(self) -> None:
        """Take in every block until cancelled."""
        async for event in self._blocks:
            async with self._changed:
                self.height = event.height
                self._changed.notify_all()

    async def reach(self, due: BlockHeight) -> BlockHeight:
        """Wait until the head is at `due` or above; heights come with gaps. The height then."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.height is not None and self.height >= due)
            assert self.height is not None
            return self.height
