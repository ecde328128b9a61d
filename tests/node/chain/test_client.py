"""The node's chain interface over the SDK, over both fronts."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from node.chain import AxonAddress, OnChainCommitment
from node.chain.client import BittensorChain
from protocol.errors import ChainRejected, ChainUnavailable, ConfigError, NotPermitted
from protocol.types import BlockHeight, Hotkey
from tests.fakes.subnet import NETUID, MakeSubnet, Subnet, registration
from tests.node.chain.conftest import PutFront
from tests.node.chain.fronts import Front, InProcess, limited


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


async def test_weight_rules(make_subnet: MakeSubnet, put_front: PutFront, wallets: list[Any]) -> None:
    owner = Hotkey(wallets[2].hotkey.ss58_address)
    subnet = make_subnet(
        owner_hotkey=owner,
        tempo=99,
        weights_rate_limit=7,
        min_allowed_weights=2,
        max_weight=0.5,
        version_key=4,
    )
    chain = (await put_front(subnet)).chain()
    rules = await chain.weight_rules()
    assert (rules.rate_limit_blocks, rules.min_allowed, rules.tempo, rules.version_key) == (7, 2, 99, 4)
    assert rules.max_weight == pytest.approx(0.5, abs=1e-4)
    assert rules.min_stake_tao == 1000.0
    assert rules.owner_hotkey == owner == (await chain.metagraph()).owner_hotkey
    assert not rules.commit_reveal


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
    subnet: Subnet, chain: BittensorChain, front: Front
) -> None:
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    subnet.chain.advance(4)
    with pytest.raises(
        ChainRejected, match=r"set 4 blocks ago .* rate limit is 10 blocks: try again in 6 blocks"
    ):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(2): 1.0})
    assert front.submitted == 1
    subnet.chain.advance(6)
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(2): 1.0})
    assert await chain.weights_of(subnet.hotkey(0)) == {subnet.hotkey(2): 1.0}


async def test_permit_and_stake_are_read_before_anything_is_sent(
    subnet: Subnet, chain: BittensorChain, front: Front
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
    assert front.submitted == 0


async def test_the_owner_needs_no_permit(
    make_subnet: MakeSubnet, put_front: PutFront, wallets: list[Any]
) -> None:
    subnet = make_subnet(owner_hotkey=Hotkey(wallets[1].hotkey.ss58_address))
    subnet.chain.adjust(subnet.hotkey(1), stake_tao=1000.0)
    chain = (await put_front(subnet)).chain()
    await chain.set_weights(subnet.wallets[1], {subnet.hotkey(2): 1.0})
    assert await chain.weights_of(subnet.hotkey(1)) == {subnet.hotkey(2): 1.0}


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
async def test_weights_that_are_no_numbers(subnet: Subnet, chain: BittensorChain, weight: float) -> None:
    with pytest.raises(ChainRejected, match=f"{subnet.hotkey(1)} is {weight}"):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): weight})


async def test_unknown_hotkey_is_named_and_nothing_set(
    subnet: Subnet, chain: BittensorChain, front: Front
) -> None:
    with pytest.raises(ChainRejected, match=f"{subnet.hotkey(4)} has weight 0.25 but is not registered"):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 0.6, subnet.hotkey(4): 0.25})
    with pytest.raises(ChainRejected, match="nothing to set"):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 0.0})
    assert front.submitted == 0
    assert await chain.weights_of(subnet.hotkey(0)) == {}


async def test_recycled_uid_is_not_paid(subnet: Subnet, chain: BittensorChain) -> None:
    subnet.chain.register(registration(subnet.wallets[4]), replace_uid=1)
    with pytest.raises(ChainRejected, match=subnet.hotkey(1)):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(4): 1.0})
    assert await chain.weights_of(subnet.hotkey(0)) == {subnet.hotkey(4): 1.0}


async def test_too_few_weights_are_filled_up_and_large_ones_clipped(
    make_subnet: MakeSubnet, put_front: PutFront, wallets: list[Any]
) -> None:
    owner = Hotkey(wallets[2].hotkey.ss58_address)
    subnet = make_subnet(min_allowed_weights=3, weights_rate_limit=0, owner_hotkey=owner)
    chain = (await put_front(subnet)).chain()
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    found = await chain.weights_of(subnet.hotkey(0))
    assert found.keys() == {subnet.hotkey(1), owner, subnet.hotkey(0)}, "the owner, then who has a permit"
    assert found[subnet.hotkey(1)] > 0.9999


async def test_large_weights_are_clipped(make_subnet: MakeSubnet, put_front: PutFront) -> None:
    subnet = make_subnet(max_weight=0.75, weights_rate_limit=0)
    chain = (await put_front(subnet)).chain()
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 0.9, subnet.hotkey(2): 0.1})
    found = await chain.weights_of(subnet.hotkey(0))
    assert found[subnet.hotkey(1)] == pytest.approx(0.75, abs=0.001)
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    found = await chain.weights_of(subnet.hotkey(0))
    assert found == pytest.approx({subnet.hotkey(1): 0.75, subnet.hotkey(0): 0.25}, abs=0.005)


async def test_a_subnet_too_small_for_its_own_rule_says_so(
    make_subnet: MakeSubnet, put_front: PutFront
) -> None:
    subnet = make_subnet(min_allowed_weights=5, weights_rate_limit=0)
    chain = (await put_front(subnet)).chain()
    with pytest.raises(ChainRejected, match="at least 5 weights"):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})


async def test_runtime_without_epoch_consensus(make_subnet: MakeSubnet, put_front: PutFront) -> None:
    subnet = make_subnet(max_weight=0.75, min_allowed_weights=2, version_key=5, weights_rate_limit=0)
    front = await put_front(subnet)
    front.lose_consensus()
    chain = front.chain()
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 0.9, subnet.hotkey(2): 0.1})
    found = await chain.weights_of(subnet.hotkey(0))
    assert found[subnet.hotkey(1)] == pytest.approx(0.75, abs=0.001)


async def test_commit_reveal_on_a_runtime_that_the_sdk_cannot_serve(
    make_subnet: MakeSubnet, put_front: PutFront
) -> None:
    subnet = make_subnet(commit_reveal=True)
    front = await put_front(subnet)
    front.lose_consensus()
    with pytest.raises(ChainRejected, match="commit-reveal"):
        await front.chain().set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    assert front.submitted == 0


async def test_weights_of_a_commit_reveal_subnet_are_committed_and_confirmed(
    make_subnet: MakeSubnet, put_front: PutFront
) -> None:
    subnet = make_subnet(commit_reveal=True, tempo=9)
    chain = (await put_front(subnet)).chain()
    subnet.chain.advance(20)
    assert (await chain.weight_rules()).commit_reveal
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 0.6, subnet.hotkey(2): 0.4})
    ((height, drand_round),) = subnet.chain.state().weight_commits[0]
    assert height == 21 == (await chain.metagraph()).neurons[subnet.hotkey(0)].last_update
    assert drand_round > 0
    assert await chain.weights_of(subnet.hotkey(0)) == {}, "nobody sees weights before their reveal"
    with pytest.raises(ChainRejected, match="rate limit"):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    subnet.chain.open_commit(subnet.hotkey(0), [1, 2], [65_535, 43_690])
    found = await chain.weights_of(subnet.hotkey(0))
    assert found[subnet.hotkey(1)] == pytest.approx(0.6, abs=0.001)


async def test_unrevealed_commits_are_limited(make_subnet: MakeSubnet, put_front: PutFront) -> None:
    subnet = make_subnet(commit_reveal=True, weights_rate_limit=0)
    chain = (await put_front(subnet)).chain()
    for _ in range(10):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
        subnet.chain.advance(1)
    with pytest.raises(ChainRejected, match="TooManyUnrevealedCommits"):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    subnet.chain.advance(361)
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})


async def test_a_lost_answer_is_settled_by_reading_back(
    subnet: Subnet, chain: BittensorChain, front: Front
) -> None:
    front.lose_answers(1)
    await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    front.lose_answers(1)
    await chain.serve_axon(subnet.wallets[1], "10.0.0.1", 8091)
    assert front.submitted == 2
    assert await chain.weights_of(subnet.hotkey(0)) == {subnet.hotkey(1): 1.0}


async def test_a_success_that_does_not_show_is_an_error(make_subnet: MakeSubnet, put_front: PutFront) -> None:
    subnet = make_subnet(block_time_s=0.05)
    front = await put_front(subnet)
    front.swallow(2)
    chain = front.chain()
    with pytest.raises(ChainRejected, match="last update is still before"):
        await chain.set_weights(subnet.wallets[0], {subnet.hotkey(1): 1.0})
    with pytest.raises(ChainRejected, match="does not show it"):
        await chain.serve_axon(subnet.wallets[1], "10.0.0.1", 8091)
    assert front.submitted == 2


async def test_a_black_hole_ends_at_the_deadline(front: Front) -> None:
    chain = front.chain()
    assert await chain.height() == 1
    front.hang(True)
    with limited(chain, 0.6), pytest.raises(ChainUnavailable, match="did not tell its height within"):
        await chain.height()
    front.hang(False)
    assert await chain.height() == 1


async def test_axon_is_published_only_when_it_changed(
    subnet: Subnet, chain: BittensorChain, front: Front
) -> None:
    for _ in range(2):
        await chain.serve_axon(subnet.wallets[1], "10.0.0.1", 8091)
    assert front.submitted == 1
    await chain.serve_axon(subnet.wallets[1], "10.0.0.1", 8092)
    assert (await chain.metagraph()).neurons[subnet.hotkey(1)].axon == AxonAddress("10.0.0.1", 8092)
    with pytest.raises(ConfigError, match="'my-host' is not an IP address"):
        await chain.serve_axon(subnet.wallets[1], "my-host", 8091)
    with pytest.raises(NotPermitted, match="not registered"):
        await chain.serve_axon(subnet.wallets[4], "10.0.0.1", 8091)
    with pytest.raises(ChainRejected, match="InvalidIpAddress"):
        await chain.serve_axon(subnet.wallets[1], "0.0.0.0", 8091)


async def test_a_commitment_on_chain_shows_when_it_was_made(
    subnet: Subnet, chain: BittensorChain, front: Front
) -> None:
    subnet.chain.advance(40)
    assert await chain.commitment(subnet.hotkey(1)) is None
    first = await chain.commit(subnet.wallets[1], bytes(range(32)))
    assert first == OnChainCommitment(height=BlockHeight(41), data=bytes(range(32)))
    subnet.chain.advance(5)
    assert await chain.commit(subnet.wallets[1], bytes(range(32))) == first, "it is there already"
    assert front.submitted == 1
    second = await chain.commit(subnet.wallets[1], b"other")
    assert await chain.commitment(subnet.hotkey(1)) == second
    assert (second.height, second.data) == (46, b"other")
    front.lose_answers(1)
    assert (await chain.commit(subnet.wallets[1], b"lost")).data == b"lost"
    with pytest.raises(NotPermitted, match="commit"):
        await chain.commit(subnet.wallets[4], b"stranger")
    assert await chain.commitment(subnet.hotkey(4)) is None


async def test_a_subnet_that_does_not_exist(chain: BittensorChain) -> None:
    elsewhere = BittensorChain(chain._connection, netuid=NETUID + 1)
    with pytest.raises(ConfigError, match="subnet 25 does not exist"):
        await elsewhere.metagraph()
    # Where it did exist, it is an endpoint that is behind: the next one is asked.
    await chain.metagraph()
    chain.netuid = NETUID + 1
    with pytest.raises(ChainUnavailable, match="as this endpoint has it"):
        await chain.metagraph()
    chain.netuid = NETUID
    await chain.metagraph()


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

asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), 120))
heavy = [name for name in ("torch", "triton", "transformers") if name in sys.modules]
assert not heavy, heavy
"""


async def test_two_processes_meet_on_one_chain(subnet: Subnet, tmp_path: Path) -> None:
    chain = InProcess(subnet).chain()
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
        async with asyncio.timeout(120):
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
    await chain.close()
