"""The node's chain interface over the SDK, on a good day and on bad ones."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bittensor as bt
import pytest

from node.chain import AxonAddress, LocalChain, Registration, open_chain
from node.chain.client import BittensorChain
from node.chain.connection import Connection
from node.chain.substrate import LocalSubstrate
from node.clock import SystemClock
from node.settings_model import ChainSection
from protocol.errors import ChainRejected, ChainUnavailable, ConfigError, NotPermitted
from protocol.types import BlockHeight, Coldkey, Hotkey
from tests.fakes.subnet import NETUID, MakeSubnet, Subnet


@dataclass
class Faults:
    """What goes wrong on the way to the chain; counts what was opened, closed and submitted."""

    opened: int = 0
    closed: int = 0
    submitted: int = 0
    read: Callable[[], BaseException | None] = lambda: None
    hang: bool = False
    lose_answer: bool = False
    swallow: bool = False
    missing: frozenset[str] = frozenset()
    override: dict[str, Any] = field(default_factory=dict)


class FaultySubstrate(LocalSubstrate):
    def __init__(self, chain: LocalChain, faults: Faults) -> None:
        super().__init__(chain)
        self.faults = faults

    async def connect(self) -> None:
        self.faults.opened += 1

    async def close(self) -> None:
        self.faults.closed += 1

    async def block_number(self) -> int:
        if self.faults.hang:
            await asyncio.Event().wait()
        error = self.faults.read()
        if error is not None:
            raise error
        return await super().block_number()

    async def query(self, module: str, storage_function: str, *args: Any, **options: Any) -> Any:
        if storage_function in self.faults.missing:
            raise ValueError(f"storage function {module}.{storage_function} not found")
        if storage_function in self.faults.override:
            return self.faults.override[storage_function]
        return await super().query(module, storage_function, *args, **options)

    async def submit(self, call: Any, keypair: Any, **options: Any) -> Any:
        self.faults.submitted += 1
        if self.faults.swallow:
            return bt.ExtrinsicResult(success=True)
        result = await super().submit(call, keypair, **options)
        if self.faults.lose_answer:
            raise bt.ChainError("received 1006 (connection closed abnormally)")
        return result


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
async def chain(subnet: Subnet, faults: Faults) -> AsyncIterator[BittensorChain]:
    chain = faulty(subnet, faults)
    yield chain
    await chain.close()


def faulty(subnet: Subnet, faults: Faults, *, call_timeout_s: float = 2.0) -> BittensorChain:
    def open_client() -> Any:
        return bt.Client("local", substrate=FaultySubstrate(subnet.chain, faults))

    connection = Connection(open_client, where="'local'", call_timeout_s=call_timeout_s)
    return BittensorChain(connection, netuid=NETUID)


def section(subnet: Subnet, **options: Any) -> ChainSection:
    return ChainSection(**({"network": "local", "netuid": NETUID, "local_state": subnet.path} | options))


async def test_reads(subnet: Subnet, chain: BittensorChain) -> None:
    subnet.chain.advance(41)
    subnet.chain.serve_axon(subnet.hotkey(1), "2001:db8::1", 8091)
    assert await chain.height() == 42
    assert await chain.block_time_s() == 3600.0
    assert await chain.block_hash(BlockHeight(42)) == subnet.chain.block_hash(42)
    with pytest.raises(ChainRejected, match="block 43 does not exist"):
        await chain.block_hash(BlockHeight(43))
    metagraph = await chain.metagraph()
    assert metagraph.height == 42
    assert metagraph.owner_hotkey is None
    assert list(metagraph.neurons) == [subnet.hotkey(index) for index in range(4)]
    validator, miner = metagraph.neurons[subnet.hotkey(0)], metagraph.neurons[subnet.hotkey(1)]
    assert (validator.uid, validator.stake_tao, validator.validator_permit) == (0, 2000.0, True)
    assert (miner.uid, miner.stake_tao, miner.validator_permit) == (1, 0.0, False)
    assert miner.coldkey == subnet.wallets[1].coldkeypub.ss58_address
    assert miner.axon == AxonAddress("2001:db8::1", 8091)
    assert str(miner.axon) == "[2001:db8::1]:8091"
    assert validator.axon is None


async def test_weight_rules(make_subnet: MakeSubnet, wallets: list[Any]) -> None:
    owner = Hotkey(wallets[2].hotkey.ss58_address)
    subnet = make_subnet(
        owner_hotkey=owner,
        tempo=99,
        weights_rate_limit=7,
        min_allowed_weights=2,
        max_weight=0.5,
        version_key=4,
    )
    chain = faulty(subnet, Faults())
    rules = await chain.weight_rules()
    assert (rules.rate_limit_blocks, rules.min_allowed, rules.tempo, rules.version_key) == (7, 2, 99, 4)
    assert rules.max_weight == pytest.approx(0.5, abs=1e-4)
    assert rules.min_stake_tao == 1000.0
    assert rules.owner_hotkey == owner == (await chain.metagraph()).owner_hotkey
    assert not rules.commit_reveal
    await chain.close()


async def test_weights_read_back_in_their_ratio(subnet: Subnet, chain: BittensorChain) -> None:
    subnet.chain.advance(100)
    assert await chain.weights_of(subnet.hotkey(0)) == {}
    weights = {subnet.hotkey(1): 0.6, subnet.hotkey(2): 0.25, subnet.hotkey(3): 0.0}
    await chain.set_weights(subnet.wallets[0], weights)
    found = await chain.weights_of(subnet.hotkey(0))
    assert set(found) == {subnet.hotkey(1), subnet.hotkey(2)}
    assert sum(found.values()) == pytest.approx(1.0)
    assert found[subnet.hotkey(1)] / found[subnet.hotkey(2)] == pytest.approx(2.4, abs=0.01)
    assert (await chain.metagraph()).neurons[subnet.hotkey(0)].last_update == 101


async def test_rate_limit_is_read_before_anything_is_sent(
    subnet: Subnet, chain: BittensorChain, faults: Faults
) -> None:
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    subnet.chain.advance(4)
    with pytest.raises(
        ChainRejected, match=r"set 4 blocks ago .* rate limit is 10 blocks: try again in 6 blocks"
    ):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(2): 1.0})
    assert faults.submitted == 1
    subnet.chain.advance(6)
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(2): 1.0})
    assert await chain.weights_of(subnet.hotkey(0)) == {subnet.hotkey(2): 1.0}


async def test_permit_and_stake_are_read_before_anything_is_sent(
    subnet: Subnet, chain: BittensorChain, faults: Faults
) -> None:
    weights = {subnet.hotkey(1): 1.0}
    with pytest.raises(NotPermitted, match=f"{subnet.hotkey(4)} is not registered on subnet 24"):
        await chain.set_weights(subnet.wallets[4], weights)
    with pytest.raises(NotPermitted, match="no validator permit"):
        await chain.set_weights(subnet.wallets[1], weights)
    subnet.chain.adjust(subnet.hotkey(0), stake_tao=999.0)
    with pytest.raises(NotPermitted, match=r"999 TAO of stake .* needs 1000"):
        await chain.set_weights(subnet.wallets[0], weights)
    with pytest.raises(NotPermitted, match="not registered"):
        await chain.weights_of(subnet.hotkey(4))
    assert faults.submitted == 0


async def test_the_owner_needs_no_permit(make_subnet: MakeSubnet, wallets: list[Any]) -> None:
    subnet = make_subnet(owner_hotkey=Hotkey(wallets[1].hotkey.ss58_address))
    subnet.chain.adjust(subnet.hotkey(1), stake_tao=1000.0)
    chain = faulty(subnet, Faults())
    await chain.set_weights(subnet.wallets[1], {subnet.hotkey(2): 1.0})
    assert await chain.weights_of(subnet.hotkey(1)) == {subnet.hotkey(2): 1.0}
    await chain.close()


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
async def test_weights_that_are_no_numbers(subnet: Subnet, chain: BittensorChain, weight: float) -> None:
    with pytest.raises(ChainRejected, match=f"{subnet.hotkey(1)} is {weight}"):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): weight})


async def test_unknown_hotkey_is_named_and_nothing_set(
    subnet: Subnet, chain: BittensorChain, faults: Faults
) -> None:
    with pytest.raises(ChainRejected, match=f"{subnet.hotkey(4)} has weight 0.25 but is not registered"):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 0.6, subnet.hotkey(4): 0.25})
    with pytest.raises(ChainRejected, match="nothing to set"):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 0.0})
    assert faults.submitted == 0
    assert await chain.weights_of(subnet.hotkey(0)) == {}


async def test_recycled_uid_is_not_paid(subnet: Subnet, chain: BittensorChain) -> None:
    newcomer = Registration(subnet.hotkey(4), Coldkey("coldkey"))
    subnet.chain.register(newcomer, replace_uid=1)
    with pytest.raises(ChainRejected, match=subnet.hotkey(1)):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(4): 1.0})
    assert await chain.weights_of(subnet.hotkey(0)) == {subnet.hotkey(4): 1.0}


async def test_too_few_weights_and_clipped_weights(make_subnet: MakeSubnet) -> None:
    subnet = make_subnet(min_allowed_weights=2, max_weight=0.75, weights_rate_limit=0)
    chain = faulty(subnet, Faults())
    with pytest.raises(ChainRejected, match="at least 2 weights"):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 0.9, subnet.hotkey(2): 0.1})
    found = await chain.weights_of(subnet.hotkey(0))
    assert found[subnet.hotkey(1)] == pytest.approx(0.75, abs=0.001)
    await chain.close()


async def test_runtime_without_epoch_consensus(make_subnet: MakeSubnet) -> None:
    faults = Faults(missing=frozenset({"SubnetEpochConsensus"}))
    subnet = make_subnet(max_weight=0.75, min_allowed_weights=2, version_key=5, weights_rate_limit=0)
    chain = faulty(subnet, faults)
    with pytest.raises(ChainRejected, match="at least 2 weights"):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 0.9, subnet.hotkey(2): 0.1})
    found = await chain.weights_of(subnet.hotkey(0))
    assert found[subnet.hotkey(1)] == pytest.approx(0.75, abs=0.001)
    faults.override["CommitRevealWeightsEnabled"] = True
    with pytest.raises(ChainRejected, match="commit-reveal"):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 0.6, subnet.hotkey(2): 0.4})
    await chain.close()


async def test_a_lost_answer_is_settled_by_reading_back(
    subnet: Subnet, chain: BittensorChain, faults: Faults
) -> None:
    faults.lose_answer = True
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    await chain.serve_axon(subnet.wallets[1], "10.0.0.1", 8091)
    assert faults.submitted == 2
    assert await chain.weights_of(subnet.hotkey(0)) == {subnet.hotkey(1): 1.0}


async def test_a_success_that_does_not_show_is_an_error(make_subnet: MakeSubnet) -> None:
    faults = Faults(swallow=True)
    subnet = make_subnet(block_time_s=0.05)
    chain = faulty(subnet, faults)
    with pytest.raises(ChainRejected, match="last update is still before"):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    with pytest.raises(ChainRejected, match="does not show it"):
        await chain.serve_axon(subnet.wallets[1], "10.0.0.1", 8091)
    assert faults.submitted == 2
    await chain.close()


async def test_axon_is_published_only_when_it_changed(
    subnet: Subnet, chain: BittensorChain, faults: Faults
) -> None:
    for _ in range(2):
        await chain.serve_axon(subnet.wallets[1], "10.0.0.1", 8091)
    assert faults.submitted == 1
    await chain.serve_axon(subnet.wallets[1], "10.0.0.1", 8092)
    assert (await chain.metagraph()).neurons[subnet.hotkey(1)].axon == AxonAddress("10.0.0.1", 8092)
    with pytest.raises(ConfigError, match="'my-host' is not an IP address"):
        await chain.serve_axon(subnet.wallets[1], "my-host", 8091)
    with pytest.raises(NotPermitted, match="not registered"):
        await chain.serve_axon(subnet.wallets[4], "10.0.0.1", 8091)
    with pytest.raises(ChainRejected, match="InvalidIpAddress"):
        await chain.serve_axon(subnet.wallets[1], "0.0.0.0", 8091)


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
    chain = faulty(subnet, faults, call_timeout_s=0.3)
    faults.read = lambda: bt.RpcConnectionError("no route to host")
    with pytest.raises(
        ChainUnavailable, match="'local' cannot be reached to tell its height: no route to host"
    ):
        await chain.height()
    assert faults.opened > 1
    await chain.close()
    assert faults.closed == faults.opened


async def test_a_black_hole_ends_at_the_deadline(subnet: Subnet, faults: Faults) -> None:
    chain = faulty(subnet, faults, call_timeout_s=0.2)
    faults.hang = True
    with pytest.raises(ChainUnavailable, match="did not tell its height within"):
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
    calls: list[tuple[str, float]] = []
    chain = open_chain(section(subnet), SystemClock(), observe=lambda what, s: calls.append((what, s)))
    assert await chain.height() == 1
    assert calls[0][0] == "tell its height"
    assert calls[0][1] > 0
    subnet.path.rename(subnet.path.with_name("gone"))
    chain._connection.call_timeout_s = 0.2
    with pytest.raises(ChainUnavailable, match="cannot be used"):
        await chain.height()
    subnet.path.with_name("gone").rename(subnet.path)
    assert await chain.height() == 1
    await chain.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"local_state": None}, "chain.local_state names no file"),
        ({"local_state": Path("/nonexistent/chain")}, "'/nonexistent/chain' does not exist"),
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
        chain = open_chain(ChainSection(network=f"ws://127.0.0.1:{port}", call_timeout_s=0.6), SystemClock())
        with pytest.raises(ChainUnavailable, match="tell its height"):
            await chain.height()
        await chain.close()
        assert ended
        for event in ended:
            await event.wait()
    assert [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_a_subnet_that_does_not_exist(subnet: Subnet, faults: Faults) -> None:
    def open_client() -> Any:
        return bt.Client("local", substrate=FaultySubstrate(subnet.chain, faults))

    chain = BittensorChain(Connection(open_client, where="'local'", call_timeout_s=2.0), netuid=NETUID + 1)
    with pytest.raises(ConfigError, match="subnet 25 does not exist"):
        await chain.metagraph()
    await chain.close()


MINER = """
import asyncio, sys
from pathlib import Path
import bittensor as bt
from node.chain import open_chain
from node.clock import SystemClock
from node.settings_model import ChainSection

async def main(state, root, name):
    chain = open_chain(ChainSection(network="local", netuid=24, local_state=Path(state)), SystemClock())
    wallet = bt.Wallet(name, path=root)
    await chain.serve_axon(wallet, "127.0.0.1", 8091)
    weights = {}
    while not weights:
        metagraph = await chain.metagraph()
        validator = next(n.hotkey for n in metagraph.neurons.values() if n.validator_permit)
        weights = await chain.weights_of(validator)
        await asyncio.sleep(0.02)
    print(weights[wallet.hotkey.ss58_address])
    await chain.close()

asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), 30))
heavy = [name for name in ("torch", "triton", "transformers") if name in sys.modules]
assert not heavy, heavy
"""


async def test_two_processes_meet_on_one_chain(subnet: Subnet, chain: BittensorChain, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    wallet = subnet.wallets[1]
    miner = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", MINER, str(subnet.path), str(wallet.path), wallet.name),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"HOME": str(home), "BTCLI_TOKEN_SYMBOLS_CACHE": ""},
    )
    try:
        async with asyncio.timeout(30):
            while (await chain.metagraph()).neurons[subnet.hotkey(1)].axon is None:
                assert miner.returncode is None, await miner.communicate()
                await asyncio.sleep(0.02)
            await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 3.0, subnet.hotkey(2): 1.0})
            out, err = await miner.communicate()
    finally:
        if miner.returncode is None:
            miner.kill()
            await miner.wait()
    assert miner.returncode == 0, err.decode()
    assert float(out) == pytest.approx(0.75, abs=0.001)
    assert list(home.iterdir()) == [], "the SDK wrote into the user's home"
