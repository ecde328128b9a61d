"""What the node makes of a connection that fails, and of settings that name a chain."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import bittensor as bt
import pytest

from node.chain import open_chain
from node.chain.client import BittensorChain
from node.clock import SystemClock
from node.metrics import Metrics
from node.settings_model import ChainSection
from protocol.errors import ChainRejected, ChainUnavailable, ConfigError
from tests.fakes.subnet import NETUID, Subnet
from tests.node.chain.fronts import Faults, InProcess, limited


@pytest.fixture
def faults() -> Faults:
    return Faults()


def faulty(subnet: Subnet, faults: Faults, *, call_timeout_s: float = 20.0) -> BittensorChain:
    """A chain in this process whose connection fails in the SDK's own terms."""
    front = InProcess(subnet)
    front.faults = faults
    return front.chain(call_timeout_s=call_timeout_s)


@pytest.fixture
def chain(subnet: Subnet, faults: Faults) -> BittensorChain:
    return faulty(subnet, faults)


def section(subnet: Subnet, **options: Any) -> ChainSection:
    return ChainSection(**({"network": "local", "netuid": NETUID, "local_state": subnet.path} | options))


async def test_a_read_survives_failures_on_a_fresh_client(
    subnet: Subnet, chain: BittensorChain, faults: Faults
) -> None:
    errors: list[BaseException] = [
        bt.RpcConnectionError("gone"),
        ConnectionResetError("reset"),
        bt.ChainError("received 1000 (OK)"),
    ]
    faults.read = lambda: errors.pop() if errors else None
    assert await chain.height() == 1
    assert faults.opened == 4
    await chain.close()
    assert faults.closed == 4


async def test_a_chain_that_stays_down(subnet: Subnet, faults: Faults) -> None:
    chain = faulty(subnet, faults, call_timeout_s=2.0)
    faults.read = lambda: bt.RpcConnectionError("no route to host")
    with pytest.raises(
        ChainUnavailable, match="'local' cannot be reached to tell its height: no route to host"
    ):
        await chain.height()
    assert faults.opened > 1
    await chain.close()
    assert faults.closed == faults.opened


async def test_a_black_hole_ends_at_the_deadline(subnet: Subnet, faults: Faults) -> None:
    # Half of it for an attempt, and a tenth of a second at most before the next one.
    chain = faulty(subnet, faults)
    faults.hang = True
    with limited(chain, 3.0), pytest.raises(ChainUnavailable, match="did not tell its height within"):
        await chain.height()
    assert faults.opened >= 2
    faults.hang = False
    assert await chain.height() == 1
    await chain.close()


async def test_an_endpoint_that_refuses_is_left_alone(
    subnet: Subnet, chain: BittensorChain, faults: Faults
) -> None:
    faults.read = lambda: bt.RpcPolicyError("429 too many requests", status_code=429)
    with pytest.raises(ChainUnavailable, match="429"):
        await chain.height()
    assert faults.opened == 1


async def test_cancelling_a_call_cancels_it(subnet: Subnet, chain: BittensorChain, faults: Faults) -> None:
    faults.hang = True
    call = asyncio.create_task(chain.height())
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_missing_state_is_named(subnet: Subnet, faults: Faults) -> None:
    faults.missing = frozenset({"Tempo"})
    chain = faulty(subnet, faults)
    with pytest.raises(ChainRejected, match=r"cannot tell the rules for weights: .*Tempo"):
        await chain.weight_rules()
    await chain.close()


async def test_open_chain_on_the_local_network(subnet: Subnet) -> None:
    metrics = Metrics()
    chain = open_chain(section(subnet), SystemClock(), metrics=metrics)
    assert await chain.height() == 1
    assert metrics.values()["quasar_chain_rpc_duration_seconds_count"] == 1
    assert metrics.values()["quasar_chain_connections_total"] == 1
    subnet.path.rename(subnet.path.with_name("gone"))
    with limited(chain, 2.0), pytest.raises(ChainUnavailable, match="cannot be used"):
        await chain.height()
    subnet.path.with_name("gone").rename(subnet.path)
    assert await chain.height() == 1
    assert b'quasar_chain_failures_total{reason="ChainUnavailable"}' in metrics.render()
    await chain.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"local_state": None}, "neither chain.local_state nor chain.local_endpoint"),
        ({"local_state": Path("/nonexistent/chain")}, "'/nonexistent/chain' does not exist"),
        ({"local_endpoint": "ws://127.0.0.1:9944"}, "name two local chains"),
        ({"local_endpoint": "ws://example.com:9944", "local_state": None}, "must be ws://127.0.0.1"),
        ({"netuid": 25}, "chain.netuid is 25 but .* holds subnet 24"),
        ({"network": "fynney"}, "chain network 'fynney' is unknown"),
        ({"network": "test", "fallback_endpoints": ("http://x",)}, "chain network 'http://x' is unknown"),
    ],
)
def test_open_chain_refuses(subnet: Subnet, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        open_chain(section(subnet, **options), SystemClock())


async def test_an_endpoint_where_nobody_listens(unused_tcp_port: int) -> None:
    chain = open_chain(
        ChainSection(network=f"ws://127.0.0.1:{unused_tcp_port}", call_timeout_s=1.0), SystemClock()
    )
    with pytest.raises(ChainUnavailable, match=f"ws://127.0.0.1:{unused_tcp_port}"):
        await chain.height()
    await chain.close()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 Nonsense\r\n\r\n"])
async def test_an_endpoint_that_is_no_chain_leaves_nothing_open(answer: bytes) -> None:
    ended: list[asyncio.Event] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(asyncio.Event())
        here = ended[-1]
        writer.write(answer)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        here.set()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    async with server, asyncio.timeout(20):
        port = server.sockets[0].getsockname()[1]
        chain = open_chain(ChainSection(network=f"ws://127.0.0.1:{port}", call_timeout_s=3.0), SystemClock())
        with pytest.raises(ChainUnavailable, match="tell its height"):
            await chain.height()
        await chain.close()
        assert ended
        for event in ended:
            await event.wait()
        # What took the connections is still a task when it sets the event.
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.01)
    assert [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
