"""The SDK's own transport to a node that drops, closes, lags, refuses, goes away and comes back."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import bittensor as bt
import pytest

from node.chain import AxonAddress, open_chain
from node.chain.client import BittensorChain
from node.clock import SystemClock
from node.metrics import Metrics
from node.settings_model import ChainSection
from protocol.errors import ChainRejected, ChainUnavailable
from tests.fakes.subnet import NETUID, MakeSubnet, Subnet
from tests.fakes.subtensor.fixture import required_fixture
from tests.fakes.subtensor.node import SubtensorNode
from tests.node.chain.fronts import PATIENCE_S, limited


@pytest.fixture
async def node(subnet: Subnet) -> AsyncIterator[SubtensorNode]:
    """A node before the subnet's chain."""
    async with SubtensorNode(subnet.chain, required_fixture()) as node:
        yield node


@pytest.fixture
async def chain(node: SubtensorNode) -> AsyncIterator[BittensorChain]:
    """The node's client of that chain."""
    chain = client_of(node)
    yield chain
    await chain.close()


def client_of(
    node: SubtensorNode,
    *fallbacks: SubtensorNode | str,
    call_timeout_s: float = PATIENCE_S,
    metrics: Metrics | None = None,
) -> BittensorChain:
    """A chain at a node, with others to fall back on."""
    urls = tuple(other if isinstance(other, str) else other.url for other in fallbacks)
    section = ChainSection(
        network=node.url, netuid=NETUID, fallback_endpoints=urls, call_timeout_s=call_timeout_s
    )
    return open_chain(section, SystemClock(), metrics=metrics)


async def test_an_abrupt_drop_costs_one_attempt(node: SubtensorNode, chain: BittensorChain) -> None:
    assert await chain.height() == 1
    for _ in range(3):
        node.drop()
        assert await chain.height() == 1
    assert node.seen.connections >= 4


async def test_a_graceful_close_is_survived(node: SubtensorNode, chain: BittensorChain) -> None:
    assert await chain.height() == 1
    for _ in range(3):
        await node.close_gracefully()
        assert await chain.height() == 1


async def test_a_graceful_close_ends_the_sdks_own_subscription(node: SubtensorNode, subnet: Subnet) -> None:
    """Why heights are polled: the SDK's stream of blocks does not go on after a close."""
    substrate = bt.RpcSubstrate(node.url, fallback_endpoints=[])
    async with bt.Client(node.url, substrate=substrate) as client:
        blocks = client.blocks()
        first = await anext(blocks)
        subnet.chain.advance(1)
        await node.close_gracefully()

        async def follow() -> None:
            async with asyncio.timeout(2):
                while (await anext(blocks)).number <= first.number + 1:
                    subnet.chain.advance(1)

        with pytest.raises((bt.ChainError, bt.RpcConnectionError, TimeoutError, StopAsyncIteration)):
            await follow()


async def test_a_node_that_restarts_is_found_again(node: SubtensorNode) -> None:
    chain = client_of(node)
    assert await chain.height() == 1
    await node.stop()
    waiting = asyncio.create_task(chain.height())
    await asyncio.sleep(1.0)
    assert not waiting.done()
    await node.start()
    back_at = time.monotonic()
    assert await waiting == 1
    # An attempt that had to run into its own limit would take longer.
    assert time.monotonic() - back_at < 10.0
    await chain.close()


async def test_a_node_that_stays_away(node: SubtensorNode) -> None:
    chain = client_of(node)
    assert await chain.height() == 1
    await node.stop()
    unreachable = f"{node.url}.* cannot be reached to tell its height"
    with limited(chain, 1.0), pytest.raises(ChainUnavailable, match=unreachable):
        await chain.height()
    await chain.close()


async def test_a_slow_answer_is_waited_for_up_to_the_deadline(node: SubtensorNode) -> None:
    chain = client_of(node)
    assert await chain.height() == 1
    node.faults.delay_s = 0.3
    assert await chain.height() == 1
    node.faults.delay_s = 2.5
    with limited(chain, 2.0), pytest.raises(ChainUnavailable, match="did not tell its height within"):
        await chain.height()
    node.faults.delay_s = 0.0
    await chain.close()


async def test_the_fallback_answers_when_the_first_endpoint_is_away(
    node: SubtensorNode, subnet: Subnet
) -> None:
    async with SubtensorNode(subnet.chain, required_fixture()) as other:
        await node.stop()
        chain = client_of(node, other)
        assert await chain.height() == 1
        assert (node.seen.connections, other.seen.connections) == (0, 1)
        await chain.close()


async def test_the_fallback_answers_when_the_first_endpoint_is_mute(subnet: Subnet) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    mute = await asyncio.start_server(swallow, "127.0.0.1", 0)
    async with mute, SubtensorNode(subnet.chain, required_fixture()) as other:
        section = ChainSection(
            network=f"ws://127.0.0.1:{mute.sockets[0].getsockname()[1]}",
            netuid=NETUID,
            fallback_endpoints=(other.url,),
            call_timeout_s=10.0,
        )
        chain = open_chain(section, SystemClock())
        assert await chain.height() == 1
        await chain.close()


async def test_reconnecting_goes_to_the_next_endpoint(node: SubtensorNode, subnet: Subnet) -> None:
    subnet.chain.advance(20)
    metrics = Metrics()
    async with SubtensorNode(subnet.chain, required_fixture()) as other:
        node.faults.stale_blocks = 15
        chain = client_of(node, other, metrics=metrics)
        assert await chain.height() == 6
        chain.reconnect()
        assert await chain.height() == 21
        assert metrics.values()["quasar_chain_connections_total"] == 2
        await chain.close()


@pytest.mark.parametrize("status", [403, 429])
async def test_an_endpoint_that_refuses_is_not_hammered(node: SubtensorNode, status: int) -> None:
    node.faults.refuse_handshake = status
    chain = client_of(node)
    with pytest.raises(ChainUnavailable, match=f"HTTP {status}"):
        await chain.height()
    await chain.close()


async def test_an_internal_error_of_the_node_is_no_verdict_on_the_call(node: SubtensorNode) -> None:
    chain = client_of(node)
    assert await chain.height() == 1
    node.faults.errors["chain_getHeader"] = (-32603, "database is busy")
    with limited(chain, 1.0), pytest.raises(ChainUnavailable, match="database is busy"):
        await chain.height()
    await chain.close()


async def test_a_wrong_nonce_is_refused_and_the_next_attempt_is_right(
    node: SubtensorNode, chain: BittensorChain, subnet: Subnet
) -> None:
    weights = {subnet.hotkey(1): 1.0}
    node.faults.nonce_offset = 3
    with pytest.raises((ChainRejected, ChainUnavailable)):
        await chain.serve_axon(subnet.wallets[1], "10.0.0.1", 8091)
    assert node.seen.extrinsics == []
    node.faults.nonce_offset = 0
    await chain.serve_axon(subnet.wallets[1], "10.0.0.1", 8091)
    await chain.set_weights(subnet.wallets[0], weights)
    assert node.seen.extrinsics == ["SubtensorModule.serve_axon", "SubtensorModule.set_mechanism_weights"]


async def test_a_forged_signature_does_not_enter_a_block(
    node: SubtensorNode, chain: BittensorChain, subnet: Subnet
) -> None:
    class Forger:
        """Claims another hotkey's address."""

        public_key = subnet.wallets[1].hotkey.public_key
        ss58_address = subnet.wallets[1].hotkey.ss58_address
        crypto_type = 1

        def sign(self, data: bytes) -> bytes:
            return bytes(subnet.wallets[2].hotkey.sign(data))

    class Wallet:
        hotkey = Forger()

    with pytest.raises((ChainRejected, ChainUnavailable), match="BadProof"):
        await chain.serve_axon(Wallet(), "10.0.0.1", 8091)
    assert (await chain.metagraph()).neurons[subnet.hotkey(1)].axon is None


async def test_a_refusal_inside_the_block_keeps_the_chains_name_for_it(
    node: SubtensorNode, chain: BittensorChain, subnet: Subnet
) -> None:
    node.faults.reject_dispatch = "ServingRateLimitExceeded"
    with pytest.raises(ChainRejected, match="ServingRateLimitExceeded"):
        await chain.serve_axon(subnet.wallets[1], "10.0.0.1", 8091)
    node.faults.reject_dispatch = None
    await chain.serve_axon(subnet.wallets[1], "10.0.0.1", 8091)
    shown = (await chain.metagraph()).neurons[subnet.hotkey(1)].axon
    assert shown == AxonAddress("10.0.0.1", 8091)


async def test_a_restarted_node_remembers_nonces(make_subnet: MakeSubnet) -> None:
    subnet = make_subnet()
    async with SubtensorNode(subnet.chain, required_fixture()) as node:
        chain = client_of(node)
        await chain.serve_axon(subnet.wallets[1], "10.0.0.1", 8091)
        await chain.close()
    async with SubtensorNode(subnet.chain, required_fixture()) as node:
        chain = client_of(node)
        await chain.serve_axon(subnet.wallets[1], "10.0.0.1", 8092)
        await chain.close()


async def test_a_node_of_a_local_chain_leaves_no_trace_in_the_users_home(
    node: SubtensorNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    section = ChainSection(network="local", local_endpoint=node.url, netuid=NETUID)
    chain = open_chain(section, SystemClock(), caches=tmp_path / "data" / "sdk")
    assert await chain.height() == 1
    await chain.close()
    assert list(home.iterdir()) == []
    assert list((tmp_path / "data" / "sdk" / "runtime").glob("*.bin"))
