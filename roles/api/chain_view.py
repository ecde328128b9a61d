"""What the API knows of the chain: a fresh height for deadlines, a cached metagraph for permissions."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from node.bus import Bus
from node.chain.interface import Chain, Metagraph, Neuron, OnChainCommitment
from node.clock import Clock
from node.metrics import Metrics
from protocol.errors import ChainRejected, ChainUnavailable, NotPermitted
from protocol.events import BlockAdvanced
from protocol.types import BlockHeight, Hotkey

T = TypeVar("T")

REQUEST_PATIENCE_S: Final = 5.0
"""A caller waits no longer than this for the chain; then it is told to come back."""
READ_PATIENCE_S: Final = 0.5
HEIGHT_MAX_AGE_S: Final = 1.0
HEIGHT_MAX_AGE_BLOCKS: Final = 0.25
STALE_METAGRAPH_S: Final = 3600.0
"""With the chain away, permissions are taken from a metagraph up to this old."""
REFUSAL_MEMORY_S: Final = 1.0
"""After a failed call the next callers within this time are refused at once instead of waiting too."""


@dataclass(slots=True)
class _Known(Generic[T]):
    value: T
    at_s: float


class _Cached(Generic[T]):
    """The latest answer to one question; everybody who asks meanwhile shares one call to the chain."""

    def __init__(self, ask: Callable[[], Awaitable[T]], clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._known: _Known[T] | None = None
        self._asking: asyncio.Task[T] | None = None
        self._refusal: _Known[str] | None = None

    @property
    def age_s(self) -> float:
        """Seconds since the answer was asked for; infinite without one."""
        return float("inf") if self._known is None else self._clock.monotonic() - self._known.at_s

    @property
    def last(self) -> T | None:
        """The latest answer, however old."""
        return None if self._known is None else self._known.value

    async def get(self, max_age_s: float, *, patience_s: float = REQUEST_PATIENCE_S) -> T:
        """An answer no older than `max_age_s`; raises ChainUnavailable after `patience_s` at the latest."""
        if self._known is not None and self.age_s <= max_age_s:
            return self._known.value
        if self._refusal is not None and self._clock.monotonic() - self._refusal.at_s < REFUSAL_MEMORY_S:
            raise ChainUnavailable(self._refusal.value)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._refresh())
        # A shield: one impatient caller must not take the answer from the others.
        try:
            async with asyncio.timeout(patience_s):
                return await asyncio.shield(self._asking)
        except TimeoutError as error:
            sentence = "the chain has not answered in time: try again"
            self._refusal = _Known(sentence, self._clock.monotonic())
            raise ChainUnavailable(sentence) from error

    async def _refresh(self) -> T:
        started_s = self._clock.monotonic()
        try:
            value = await self._ask()
        except (ChainUnavailable, ChainRejected) as error:
            sentence = f"the chain does not answer: {error}"
            self._refusal = _Known(sentence, self._clock.monotonic())
            raise ChainUnavailable(sentence) from error
        self._known = _Known(value, started_s)
        self._refusal = None
        return value

    async def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})


class ChainView:
    """Component that follows the chain's head, and the answers that request handlers need.

    `metagraph_max_age_s`: how old the metagraph may be before it is read again.
    """

    name = "chain-view"

    def __init__(
        self,
        chain: Chain,
        bus: Bus,
        clock: Clock,
        metrics: Metrics,
        *,
        netuid: int,
        metagraph_max_age_s: float,
    ) -> None:
        self._chain = chain
        self._clock = clock
        self._metrics = metrics
        self._netuid = netuid
        self._metagraph_max_age_s = metagraph_max_age_s
        self._heads = bus.subscribe(BlockAdvanced)
        self._height = _Cached(chain.height, clock)
        self._metagraph = _Cached(chain.metagraph, clock)
        self._block_time = _Cached(chain.block_time_s, clock)
        self._seen = BlockHeight(0)

    async def run(self) -> None:
        """Follow the head and keep the metagraph fresh while nobody asks, for ever."""
        async for head in self._heads:
            self._note_height(head.height)
            if self._metagraph.age_s > self._metagraph_max_age_s:
                try:
                    await self._metagraph.get(self._metagraph_max_age_s)
                except ChainUnavailable:
                    # The watcher of the head logs and judges the chain's silence.
                    continue

    async def close(self) -> None:
        """Stop what is still being asked."""
        for cached in (self._height, self._metagraph, self._block_time):
            await cached.close()

    @property
    def last_height(self) -> BlockHeight:
        """The highest block seen, 0 before the first; never asks the chain."""
        return self._seen

    async def block_time_s(self) -> float:
        """Seconds per block. Raises ChainUnavailable."""
        return await self._block_time.get(STALE_METAGRAPH_S)

    async def height(self) -> BlockHeight:
        """The head, at most a second and a quarter of a block old. Raises ChainUnavailable."""
        max_age_s = min(HEIGHT_MAX_AGE_S, HEIGHT_MAX_AGE_BLOCKS * await self.block_time_s())
        self._note_height(await self._height.get(max_age_s))
        return self._seen

    async def height_or_last(self) -> BlockHeight:
        """The head, or the highest block seen when the chain does not answer at once; for reading only."""
        try:
            block_time_s = await self._block_time.get(STALE_METAGRAPH_S, patience_s=READ_PATIENCE_S)
            max_age_s = min(HEIGHT_MAX_AGE_S, HEIGHT_MAX_AGE_BLOCKS * block_time_s)
            self._note_height(await self._height.get(max_age_s, patience_s=READ_PATIENCE_S))
        except ChainUnavailable:
            return self._seen
        return self._seen

    async def fresh_height(self) -> BlockHeight:
        """The head as of now, for an answer that would refuse. Raises ChainUnavailable."""
        self._note_height(await self._height.get(0.0))
        return self._seen

    async def block_hash(self, height: BlockHeight) -> str:
        """Hash of a block. Raises ChainUnavailable."""
        try:
            async with asyncio.timeout(REQUEST_PATIENCE_S):
                return await self._chain.block_hash(height)
        except (TimeoutError, ChainRejected) as error:
            raise ChainUnavailable(f"the chain did not give the hash of block {height}: try again") from error

    async def commitment(self, hotkey: str) -> OnChainCommitment | None:
        """What a hotkey has committed on chain. Raises ChainUnavailable."""
        try:
            async with asyncio.timeout(REQUEST_PATIENCE_S):
                return await self._chain.commitment(Hotkey(hotkey))
        except (TimeoutError, ChainRejected) as error:
            raise ChainUnavailable(f"the chain did not tell the commitment of {hotkey}: try again") from error

    async def metagraph(self) -> Metagraph:
        """The subnet's neurons; an older copy while the chain is slow or away.

        Raises ChainUnavailable when there is no copy, or it is too old to go by.
        """
        known = self._metagraph.last
        is_usable = known is not None and self._metagraph.age_s <= STALE_METAGRAPH_S
        patience_s = READ_PATIENCE_S if is_usable else REQUEST_PATIENCE_S
        try:
            return await self._metagraph.get(self._metagraph_max_age_s, patience_s=patience_s)
        except ChainUnavailable:
            if known is None or not is_usable:
                raise
            return known

    @property
    def last_metagraph(self) -> Metagraph | None:
        """The metagraph last read, None before the first; never asks the chain."""
        return self._metagraph.last

    async def neuron(self, hotkey: str) -> Neuron:
        """The neuron of a registered hotkey. Raises NotPermitted, ChainUnavailable."""
        neuron = (await self.metagraph()).neurons.get(Hotkey(hotkey))
        if neuron is None and self._metagraph.age_s > await self.block_time_s():
            # Registered a moment ago, perhaps: nobody should wait for the cache to grow old.
            neuron = (await self._metagraph.get(await self.block_time_s())).neurons.get(Hotkey(hotkey))
        if neuron is None:
            raise NotPermitted(
                f"hotkey {hotkey} is not registered on subnet {self._netuid}: register it first"
            )
        return neuron

    async def validator(self, hotkey: str, min_stake_tao: float) -> Neuron:
        """The neuron of a hotkey that may judge. Raises NotPermitted, ChainUnavailable."""
        neuron = await self.neuron(hotkey)
        if not neuron.validator_permit:
            raise NotPermitted(f"hotkey {hotkey} has no validator permit on subnet {self._netuid}")
        if neuron.stake_tao < min_stake_tao:
            raise NotPermitted(
                f"hotkey {hotkey} has a stake of {neuron.stake_tao:g} TAO: validators need {min_stake_tao:g}"
            )
        return neuron

    def stakes(self, min_stake_tao: float) -> dict[str, float]:
        """TAO of every hotkey that may judge, by the metagraph last read; never asks the chain."""
        known = self._metagraph.last
        return (
            {}
            if known is None
            else {
                hotkey: neuron.stake_tao
                for hotkey, neuron in known.neurons.items()
                if neuron.validator_permit and neuron.stake_tao >= min_stake_tao
            }
        )

    def unreadiness(self, silent_after_s: float) -> str | None:
        """Why the chain is no use right now, None when it is fine."""
        if self._metagraph.last is None:
            return "the metagraph has not been read from the chain yet"
        if self._metagraph.age_s > self._metagraph_max_age_s + silent_after_s:
            return f"the chain has not answered for {self._metagraph.age_s:.0f} s"
        return None

    def _note_height(self, height: BlockHeight) -> None:
        # A head may step back in a fork; a deadline that has passed stays passed.
        self._seen = max(self._seen, height)
        self._metrics.block_height.set(self._seen)
