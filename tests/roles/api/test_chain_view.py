"""What the API knows of a chain that answers, hangs, or is away."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from node.bus import Bus
from node.chain.interface import Metagraph, Neuron
from node.metrics import Metrics
from protocol.errors import ChainUnavailable, NotPermitted
from protocol.events import BlockAdvanced
from protocol.types import BlockHeight, Coldkey, Hotkey, Uid
from roles.api.chain_view import ChainView
from tests.fakes.clock import FakeClock


class ScriptedChain:
    """A public chain that a test steers: it counts calls, hangs or refuses when told to."""

    def __init__(self) -> None:
        self.head = 10
        self.registered: list[str] = ["alice"]
        self.calls: list[str] = []
        self.is_away = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def _answer(self, name: str) -> None:
        self.calls.append(name)
        await self.answers.wait()
        if self.is_away:
            raise ChainUnavailable("nobody there")

    async def height(self) -> BlockHeight:
        await self._answer("height")
        return BlockHeight(self.head)

    async def block_time_s(self) -> float:
        await self._answer("block_time_s")
        return 12.0

    async def block_hash(self, height: BlockHeight) -> str:
        await self._answer("block_hash")
        return f"0x{height:064x}"

    async def metagraph(self) -> Metagraph:
        await self._answer("metagraph")
        neurons = {
            Hotkey(name): Neuron(
                hotkey=Hotkey(name),
                coldkey=Coldkey("cold"),
                uid=Uid(number),
                stake_tao=100.0,
                validator_permit=name == "alice",
                axon=None,
                last_update=BlockHeight(0),
            )
            for number, name in enumerate(self.registered)
        }
        return Metagraph(height=BlockHeight(self.head), neurons=neurons, owner_hotkey=None)


@pytest.fixture
def chain() -> ScriptedChain:
    """The chain."""
    return ScriptedChain()


@pytest.fixture
def clock() -> FakeClock:
    """The time."""
    return FakeClock()


@pytest.fixture
def bus() -> Bus:
    """The bus on which heads arrive."""
    return Bus()


@pytest.fixture
async def view(chain: ScriptedChain, clock: FakeClock, bus: Bus) -> AsyncIterator[ChainView]:
    """What the API sees."""
    made = ChainView(chain, bus, clock, Metrics(), netuid=1, metagraph_max_age_s=60.0)  # type: ignore[arg-type]
    yield made
    await made.close()


async def test_callers_share_one_question(view: ChainView, chain: ScriptedChain) -> None:
    chain.answers.clear()
    callers = [asyncio.create_task(view.fresh_height()) for _ in range(20)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    chain.answers.set()
    assert await asyncio.gather(*callers) == [10] * 20
    assert chain.calls == ["height"]


async def test_height_is_asked_for_again_after_a_second(
    view: ChainView, chain: ScriptedChain, clock: FakeClock
) -> None:
    assert await view.height() == 10
    chain.head = 11
    assert await view.height() == 10
    await clock.advance(1.1)
    assert await view.height() == 11
    assert await view.fresh_height() == 11


async def test_a_head_that_steps_back_moves_no_deadline(
    view: ChainView, chain: ScriptedChain, clock: FakeClock
) -> None:
    assert await view.height() == 10
    chain.head = 8
    assert await view.fresh_height() == 10
    assert view.last_height == 10


async def test_chain_that_is_away(view: ChainView, chain: ScriptedChain, clock: FakeClock) -> None:
    chain.is_away = True
    with pytest.raises(ChainUnavailable, match="nobody there"):
        await view.fresh_height()
    asked = len(chain.calls)
    # Those who ask right after are refused without asking again.
    with pytest.raises(ChainUnavailable, match="nobody there"):
        await view.fresh_height()
    assert len(chain.calls) == asked
    assert await view.height_or_last() == 0
    chain.is_away = False
    await clock.advance(1.1)
    assert await view.fresh_height() == 10


async def test_readers_do_not_wait_for_a_chain_that_hangs(view: ChainView, chain: ScriptedChain) -> None:
    assert await view.height_or_last() == 10
    chain.answers.clear()
    # Would never return if it waited for the chain.
    async with asyncio.timeout(60.0):
        view._height._known = None
        assert await view.height_or_last() == 10


async def test_permissions_outlive_the_chain_for_an_hour(
    view: ChainView, chain: ScriptedChain, clock: FakeClock
) -> None:
    assert (await view.validator("alice", 100.0)).hotkey == "alice"
    chain.is_away = True
    await clock.advance(3000)
    assert (await view.neuron("alice")).hotkey == "alice"
    await clock.advance(1000)
    with pytest.raises(ChainUnavailable):
        await view.neuron("alice")


async def test_permissions(view: ChainView, chain: ScriptedChain, clock: FakeClock) -> None:
    chain.registered.append("bob")
    with pytest.raises(NotPermitted, match="no validator permit"):
        await view.validator("bob", 100.0)
    with pytest.raises(NotPermitted, match=r"stake of 100 TAO: validators need 100\.5"):
        await view.validator("alice", 100.5)
    with pytest.raises(NotPermitted, match="carol is not registered on subnet 1"):
        await view.neuron("carol")
    chain.registered.append("carol")
    with pytest.raises(NotPermitted):
        await view.neuron("carol")
    # One block later a newcomer is looked for on the chain, long before the copy is old.
    await clock.advance(12.1)
    assert (await view.neuron("carol")).uid == 2
    assert chain.calls.count("metagraph") == 2


async def test_component_follows_heads_and_refreshes_the_metagraph(
    view: ChainView, chain: ScriptedChain, clock: FakeClock, bus: Bus
) -> None:
    assert "metagraph has not been read" in str(view.unreadiness(60.0))
    task = asyncio.create_task(view.run())
    await bus.publish(BlockAdvanced(height=BlockHeight(42), previous=None))
    async with asyncio.timeout(60.0):
        while view.last_metagraph is None:
            await asyncio.sleep(0)
    assert view.last_height == 42
    assert view.unreadiness(60.0) is None
    chain.is_away = True
    await clock.advance(121)
    await bus.publish(BlockAdvanced(height=BlockHeight(43), previous=BlockHeight(42)))
    async with asyncio.timeout(60.0):
        while view.last_height != 43:
            await asyncio.sleep(0)
    assert "has not answered for 121 s" in str(view.unreadiness(60.0))
    assert not task.done()
    task.cancel()
    await asyncio.wait({task})
