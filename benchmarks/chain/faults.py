"""Faults of the chain's node and of the API, at random and from a seed."""

import asyncio
import random
import time
from collections import Counter
from typing import Any, Protocol

from tests.fakes.subtensor.process import NodeProcess

PAUSE_S = (2.0, 6.0)
OUTAGE_S = (0.2, 2.0)


class Killable(Protocol):
    """A process that can be killed and started again."""

    async def start(self) -> None:
        """Start it."""

    async def kill(self) -> None:
        """SIGKILL."""


class FaultMaker:
    """Makes one fault after the other; `recoveries` holds when each of the chain's was over."""

    def __init__(self, node: NodeProcess, api: Killable, draw: random.Random) -> None:
        self._node = node
        self._api = api
        self._draw = draw
        self.made: Counter[str] = Counter()
        self.windows: list[tuple[str, float, float]] = []
        """Kind, beginning and end, in seconds of the monotonic clock."""

    async def run(self, until_s: float) -> None:
        """Go on until that moment of the monotonic clock."""
        faults = {
            "drop": lambda: self._node.set_faults(drop=True),
            "close": lambda: self._node.set_faults(close=True),
            "silent": lambda: self._for_a_while(is_silent=True),
            "slow": lambda: self._for_a_while(delay_s=0.2),
            "stale": lambda: self._for_a_while(stale_blocks=8),
            "internal error": lambda: self._for_a_while(errors={"chain_getHeader": (-32603, "busy")}),
            "node killed": lambda: self._restart(self._node),
            "API killed": lambda: self._restart(self._api),
        }
        while True:
            await asyncio.sleep(self._draw.uniform(*PAUSE_S))
            if time.monotonic() >= until_s - OUTAGE_S[1] - 1:
                break
            kind = self._draw.choice(list(faults))
            self.made[kind] += 1
            began_s = time.monotonic()
            await faults[kind]()
            self.windows.append((kind, began_s, time.monotonic()))
        await asyncio.sleep(max(0.0, until_s - time.monotonic()))

    async def _for_a_while(self, **faults: Any) -> None:
        await self._node.set_faults(**faults)
        await asyncio.sleep(self._draw.uniform(*OUTAGE_S))
        well = {"is_silent": False, "delay_s": 0.0, "stale_blocks": 0, "errors": {}}
        await self._node.set_faults(**{name: well[name] for name in faults})

    async def _restart(self, what: Killable) -> None:
        await what.kill()
        await asyncio.sleep(self._draw.uniform(*OUTAGE_S))
        await what.start()
