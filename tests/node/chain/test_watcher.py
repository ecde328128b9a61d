"""Heights on the bus: monotone, with honest gaps, through every kind of trouble."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from node.bus import Bus, Subscription
from node.chain import open_chain
from node.chain.client import BittensorChain
from node.chain.watcher import BlockWatcher
from node.clock import SystemClock
from node.metrics import Metrics
from node.settings_model import ChainSection
from protocol.errors import ChainRejected, ChainUnavailable
from protocol.events import BlockAdvanced
from protocol.types import BlockHeight
from tests.fakes.clock import FakeClock
from tests.fakes.subnet import NETUID, MakeSubnet
from tests.fakes.subtensor.fixture import required_fixture
from tests.fakes.subtensor.node import SubtensorNode
from tests.node.chain.conftest import PutFront
from tests.node.chain.fronts import IN_PROCESS, PATIENCE_S, fronted


@dataclass
class ScriptedChain:
    """A public chain whose head, block time and failures the test dictates."""

    block_time: float = 12.0
    head: int = 1
    error: Exception | None = None
    polls: int = 0
    reconnections: int = 0
    heads: list[int] = field(default_factory=list)

    async def height(self) -> BlockHeight:
        self.polls += 1
        if self.error is not None:
            raise self.error
        if self.heads:
            self.head = self.heads.pop(0)
        return BlockHeight(self.head)

    def reconnect(self) -> None:
        self.reconnections += 1

    async def block_time_s(self) -> float:
        if self.error is not None:
            raise self.error
        return self.block_time


@dataclass
class Watched:
    chain: ScriptedChain
    clock: FakeClock
    watcher: BlockWatcher
    subscription: Subscription[BlockAdvanced]
    task: asyncio.Task[None]
    metrics: Metrics

    async def next_event(self) -> tuple[int, int | None]:
        async with asyncio.timeout(5):
            event = await anext(aiter(self.subscription))
        return event.height, event.previous


@asynccontextmanager
async def watching(chain: ScriptedChain, *, unreachable_after_s: float = 60.0) -> AsyncIterator[Watched]:
    bus, clock, metrics = Bus(), FakeClock(), Metrics()
    subscription = bus.subscribe(BlockAdvanced)
    watcher = BlockWatcher(
        chain,  # type: ignore[arg-type]
        bus,
        clock,
        unreachable_after_s=unreachable_after_s,
        metrics=metrics,
    )
    task = asyncio.create_task(watcher.run())
    try:
        await clock.advance(0)
        yield Watched(chain, clock, watcher, subscription, task, metrics)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_gaps_are_gaps() -> None:
    async with watching(ScriptedChain(head=10)) as watched:
        assert await watched.next_event() == (10, None)
        assert watched.watcher.height == 10
        watched.chain.head = 17
        await watched.clock.advance(3)
        assert await watched.next_event() == (17, 10)
        await watched.clock.advance(30)
        assert len(watched.subscription) == 0, "a head that stands still is no event"


async def test_polls_at_half_a_block_and_at_least_every_three_seconds() -> None:
    for block_time, expected in ((12.0, 4), (2.0, 11), (0.25, 81)):
        async with watching(ScriptedChain(block_time=block_time)) as watched:
            await watched.clock.advance(10.01)
            assert watched.chain.polls == expected


async def test_a_head_that_goes_back_waits_until_it_is_passed() -> None:
    chain = ScriptedChain(heads=[100, 90, 95, 100, 101, 50, 1000])
    async with watching(chain) as watched:
        seen = []
        for _ in range(7):
            if len(watched.subscription):
                seen.append(await watched.next_event())
            await watched.clock.advance(3)
        if len(watched.subscription):
            seen.append(await watched.next_event())
        assert seen == [(100, None), (101, 100), (1000, 101)]
        assert watched.watcher.height == 1000


@pytest.mark.parametrize("error", [ChainUnavailable("black hole"), ChainRejected("internal error")])
async def test_an_outage_is_survived(error: Exception) -> None:
    async with watching(ScriptedChain(head=5)) as watched:
        assert await watched.next_event() == (5, None)
        watched.chain.error = error
        await watched.clock.advance(50)
        assert not watched.task.done()
        assert watched.watcher.silent_s > 40
        assert watched.watcher.height == 5
        watched.chain.error = None
        watched.chain.head = 9
        await watched.clock.advance(3)
        assert await watched.next_event() == (9, 5)
        assert watched.watcher.silent_s <= 3


@pytest.mark.parametrize("answers_first", [True, False])
async def test_a_silent_chain_ends_the_watcher(answers_first: bool) -> None:
    error = ChainUnavailable("no route to host")
    chain = ScriptedChain(error=None if answers_first else error)
    async with watching(chain, unreachable_after_s=30) as watched:
        chain.error = error
        await watched.clock.advance(25)
        assert not watched.task.done()
        await watched.clock.advance(10)
        sentence = r"not answered for 3\d s, the limit is 30 s .*: no route to host"
        with pytest.raises(ChainUnavailable, match=sentence):
            await watched.task
        assert watched.task.exception().exit_code == 69  # type: ignore[union-attr]


async def test_a_bug_is_not_taken_for_an_outage() -> None:
    async with watching(ScriptedChain(error=RuntimeError("bug"))) as watched:
        with pytest.raises(RuntimeError, match="bug"):
            await watched.task


async def collect(chain: BittensorChain, act: Callable[[list[BlockAdvanced]], bool]) -> list[BlockAdvanced]:
    """Watch a chain until `act`, called after every event, is satisfied."""
    bus, clock = Bus(), SystemClock()
    subscription = bus.subscribe(BlockAdvanced)
    watcher = BlockWatcher(chain, bus, clock, unreachable_after_s=20, metrics=Metrics())
    task = asyncio.create_task(watcher.run())
    events: list[BlockAdvanced] = []
    try:
        async with asyncio.timeout(60):
            async for event in subscription:
                events.append(event)
                if act(events):
                    break
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    return events


def assert_monotone(events: list[BlockAdvanced]) -> None:
    assert events[0].previous is None
    for earlier, later in pairwise(events):
        assert later.previous == earlier.height
        assert later.height > earlier.height


async def test_a_chain_is_followed_through_jumps(make_subnet: MakeSubnet, put_front: PutFront) -> None:
    subnet = make_subnet(block_time_s=0.05)
    front = await put_front(subnet)

    def act(events: list[BlockAdvanced]) -> bool:
        if len(events) == 3:
            subnet.chain.advance(100)
        if len(events) == 6:
            subnet.chain.advance(-5)
        return len(events) == 10

    events = await collect(front.chain(), act)
    assert_monotone(events)
    assert any(event.previous and event.height - event.previous >= 100 for event in events)


async def test_a_black_hole_of_a_second_is_survived(make_subnet: MakeSubnet, put_front: PutFront) -> None:
    subnet = make_subnet(block_time_s=0.05)
    front = await put_front(subnet)
    chain = front.chain()

    def act(events: list[BlockAdvanced]) -> bool:
        if len(events) == 3:
            front.hang(True)
            chain._connection.call_timeout_s = 0.6
            asyncio.get_running_loop().call_later(1.0, end)
        return len(events) >= 8

    def end() -> None:
        front.hang(False)
        chain._connection.call_timeout_s = PATIENCE_S

    events = await collect(chain, act)
    assert_monotone(events)
    assert largest_gap(events) >= 10


def largest_gap(events: list[BlockAdvanced]) -> int:
    return max(later.height - (later.previous or later.height) for later in events)


async def test_the_local_chain_goes_away_and_comes_back(make_subnet: MakeSubnet) -> None:
    subnet = make_subnet(block_time_s=0.05)
    away = subnet.path.with_name("away")

    def act(events: list[BlockAdvanced]) -> bool:
        if len(events) == 3:
            subnet.path.rename(away)
            asyncio.get_running_loop().call_later(0.6, away.rename, subnet.path)
        return len(events) >= 8

    async with fronted(IN_PROCESS, subnet) as front:
        events = await collect(front.chain(call_timeout_s=0.3), act)
    assert_monotone(events)
    assert largest_gap(events) >= 5


async def test_a_chain_locked_by_a_writer_is_still_read(make_subnet: MakeSubnet) -> None:
    subnet = make_subnet(block_time_s=0.05)
    with subnet.chain._store.writing() as connection:
        connection.execute("UPDATE parameters SET tempo = 1")
        section = ChainSection(network="local", netuid=NETUID, local_state=subnet.path)
        chain = open_chain(section, SystemClock())
        events = await collect(chain, lambda events: len(events) >= 5)
        await chain.close()
    assert_monotone(events)


async def test_a_node_is_followed_through_drops_closes_and_a_restart(make_subnet: MakeSubnet) -> None:
    subnet = make_subnet(block_time_s=0.05)
    acts: set[asyncio.Task[None]] = set()

    async def restart(node: SubtensorNode) -> None:
        await node.stop()
        await asyncio.sleep(0.5)
        await node.start()

    async with SubtensorNode(subnet.chain, required_fixture()) as node:

        def act(events: list[BlockAdvanced]) -> bool:
            if len(events) == 3:
                node.drop()
            if len(events) == 6:
                acts.add(asyncio.create_task(node.close_gracefully()))
            if len(events) == 9:
                acts.add(asyncio.create_task(restart(node)))
            if len(events) == 12:
                node.faults.stale_blocks = 10
            if len(events) == 15:
                node.faults.stale_blocks = 0
            return len(events) >= 18

        section = ChainSection(network=node.url, netuid=NETUID)
        chain = open_chain(section, SystemClock())
        events = await collect(chain, act)
        await chain.close()
        assert len(acts) == 2
        await asyncio.gather(*acts)
    assert_monotone(events)
    assert largest_gap(events) >= 8
    assert node.seen.connections >= 4


async def test_a_head_that_stands_still_changes_the_connection() -> None:
    async with watching(ScriptedChain(head=5), unreachable_after_s=10_000) as watched:
        assert await watched.next_event() == (5, None)
        await watched.clock.advance(60)
        assert watched.chain.reconnections == 0
        assert watched.watcher.lag_s == pytest.approx(48, abs=3)
        assert watched.metrics.values()["quasar_block_lag_seconds"] == pytest.approx(48, abs=3)
        await watched.clock.advance(30)
        assert watched.chain.reconnections == 1
        await watched.clock.advance(65)
        assert watched.chain.reconnections == 2
        watched.chain.head = 6
        await watched.clock.advance(3)
        assert watched.watcher.lag_s == 0


async def test_a_silent_chain_is_no_stalled_one() -> None:
    async with watching(ScriptedChain(head=5), unreachable_after_s=10_000) as watched:
        assert await watched.next_event() == (5, None)
        watched.chain.error = ChainUnavailable("no route to host")
        await watched.clock.advance(200)
        assert watched.chain.reconnections == 0
        assert watched.watcher.idle_s <= 3, "an attempt that fails is progress too"
