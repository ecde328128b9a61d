"""The unmodified SDK over the embedded chain."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import bittensor as bt
import pytest

from node.chain.substrate import LocalSubstrate
from tests.fakes.subnet import NETUID, MakeSubnet, Subnet


@pytest.fixture
async def client(subnet: Subnet) -> AsyncIterator[Any]:
    async with bt.Client("local", substrate=LocalSubstrate(subnet.chain)) as client:
        yield client


async def test_sdk_reads_blocks(subnet: Subnet, client: Any) -> None:
    subnet.chain.advance(9)
    assert await client.block() == await client.finalized_block() == 10
    assert await client.block_time() == 3600.0
    info = await client.block_info(7)
    assert info.number == 7
    assert info.hash == subnet.chain.block_hash(7)
    assert info.header["parentHash"] == subnet.chain.block_hash(6)
    with pytest.raises(bt.ChainError, match="no block at height 11"):
        await client.block_info(11)


async def test_sdk_streams_every_block_once(make_subnet: MakeSubnet) -> None:
    subnet = make_subnet(block_time_s=0.02)
    seen: list[int] = []
    async with bt.Client("local", substrate=LocalSubstrate(subnet.chain)) as client, asyncio.timeout(20):
        async for header in client.blocks():
            seen.append(header.number)
            if len(seen) == 3:
                subnet.chain.advance(5)
            if len(seen) == 12:
                break
        reached = await client.wait_for_block(seen[-1] + 3)
    assert seen == list(range(seen[0], seen[0] + 12))
    assert reached.number >= seen[-1] + 3


async def test_sdk_reads_the_metagraph(subnet: Subnet, client: Any) -> None:
    subnet.chain.serve_axon(subnet.hotkey(1), "10.1.2.3", 8091)
    subnet.chain.serve_axon(subnet.hotkey(2), "2001:db8::1", 8092)
    metagraph = await client.subnets.metagraph(NETUID)
    assert metagraph.hotkeys == [subnet.hotkey(index) for index in range(4)]
    assert metagraph.tempo == 360
    validator, first, second, third = metagraph
    assert validator.validator_permit
    assert validator.total_stake.rao == 2000 * 10**9
    assert (first.axon, second.axon, third.axon) == ("10.1.2.3:8091", "[2001:db8::1]:8092", None)
    assert await client.subnets.metagraph(NETUID + 1) is None
    neurons = await client.neurons.all(NETUID)
    assert [neuron.uid for neuron in neurons] == [0, 1, 2, 3]
    assert neurons[0].total_stake.rao == 2000 * 10**9


async def test_sdk_sets_weights(subnet: Subnet, client: Any) -> None:
    intent = bt.SetWeights(netuid=NETUID, weights={1: 0.6, 2: 0.25})
    result = await client.execute(intent, subnet.wallets[0], wait_for_finalization=False)
    assert result.success
    assert result.extrinsic_id == "1-0001"
    rows = await client.read("weights", netuid=NETUID)
    assert rows[0][1] / rows[0][2] == pytest.approx(2.4, abs=0.01)
    with pytest.raises(bt.ChainError) as caught:
        await client.execute(intent, subnet.wallets[0])
    assert caught.value.code is bt.ErrorCode.RATE_LIMITED


async def test_sdk_reports_refusals_in_the_result(subnet: Subnet, client: Any) -> None:
    intent = bt.SetWeights(netuid=NETUID, weights={1: 1.0})
    result = await client.execute(intent, subnet.wallets[1])
    assert not result.success
    assert result.error.name == "NeuronNoValidatorPermit"
    with pytest.raises(bt.ChainError) as caught:
        await client.execute(intent, subnet.wallets[4])
    assert caught.value.code is bt.ErrorCode.NOT_REGISTERED
    foreign = bt.ServeAxon(netuid=NETUID + 1, ip="10.0.0.1", port=80)
    assert (await client.execute(foreign, subnet.wallets[1])).error.name == "SubnetNotExists"
    unknown = await client.submit_call(bt.calls.System.remark(remark="0x00"), subnet.wallets[1])
    assert "no call System.remark" in unknown.message


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"ip_type": 5}, "InvalidIpType"), ({"ip": 2**40}, "InvalidIpAddress"), ({"port": 0}, "InvalidPort")],
)
async def test_malformed_axons_are_refused(
    subnet: Subnet, client: Any, changes: dict[str, int], name: str
) -> None:
    params = {"netuid": NETUID, "version": 1, "ip": 2**24, "port": 80, "ip_type": 4, "protocol": 4}
    call = bt.calls.SubtensorModule.serve_axon(**(params | {"placeholder1": 0, "placeholder2": 0} | changes))
    assert (await client.submit_call(call, subnet.wallets[1], signer="hotkey")).error.name == name


async def test_there_is_one_mechanism(subnet: Subnet, client: Any) -> None:
    call = bt.calls.SubtensorModule.set_mechanism_weights(
        netuid=NETUID, mecid=1, dests=[1], weights=[1], version_key=0
    )
    result = await client.submit_call(call, subnet.wallets[0], signer="hotkey")
    assert result.error.name == "MechanismDoesNotExist"


async def test_single_items_read_as_on_the_real_chain(subnet: Subnet, client: Any) -> None:
    subnet.chain.serve_axon(subnet.hotkey(1), "10.0.0.1", 80)

    async def item(name: str, *params: Any) -> Any:
        return await client.query(("SubtensorModule", name), list(params))

    assert await item("Uids", NETUID, subnet.hotkey(2)) == 2
    assert await item("Uids", NETUID, subnet.hotkey(4)) is None
    assert await item("Keys", NETUID, 3) == subnet.hotkey(3)
    assert await item("Keys", NETUID, 4) is None
    assert await item("Owner", subnet.hotkey(1)) == subnet.wallets[1].coldkeypub.ss58_address
    assert (await item("Axons", NETUID, subnet.hotkey(1)))["port"] == 80
    assert await item("Axons", NETUID, subnet.hotkey(2)) is None
    assert await item("ValidatorPermit", NETUID) == [True, False, False, False]
    assert await item("LastUpdate", NETUID + 1) == []
    assert await item("SubnetworkN", NETUID) == 4
    assert await item("NetworksAdded", NETUID + 1) is False


async def test_sdk_serves_an_axon(subnet: Subnet, client: Any) -> None:
    result = await client.execute(bt.ServeAxon(netuid=NETUID, ip="127.0.0.1", port=8091), subnet.wallets[3])
    assert result.success
    metagraph = await client.subnets.metagraph(NETUID, commitments=False)
    assert metagraph.by_hotkey(subnet.hotkey(3)).axon == "127.0.0.1:8091"


async def test_sdk_commits_and_reads_back(subnet: Subnet, client: Any) -> None:
    subnet.chain.advance(41)
    info = {"fields": [[{"Raw5": "0x" + b"hello".hex()}]]}
    call = bt.calls.Commitments.set_commitment(netuid=NETUID, info=info)
    assert (await client.submit_call(call, subnet.wallets[1], signer="hotkey")).success
    found = await client.read("commitment", netuid=NETUID, hotkey_ss58=subnet.hotkey(1))
    assert (found.data, found.block) == ("hello", 42)
    metagraph = await client.subnets.metagraph(NETUID)
    assert metagraph.commitments[1].value == "hello"
    assert await client.read("commitment", netuid=NETUID, hotkey_ss58=subnet.hotkey(2)) is None


async def test_unknown_state_is_a_value_error_as_on_the_real_transport(client: Any) -> None:
    with pytest.raises(ValueError, match=r"SubtensorModule\.Nothing"):
        await client.query(("SubtensorModule", "Nothing"), [NETUID])
    with pytest.raises(ValueError, match=r"storage map"):
        await client.query_map(("SubtensorModule", "Nothing"))
    with pytest.raises(ValueError, match=r"runtime API"):
        await client.runtime(("NoApi", "nothing"), [])
    with pytest.raises(ValueError, match=r"constant"):
        await client.constant(("NoPallet", "Nothing"))


async def test_what_the_chain_cannot_do_says_so(subnet: Subnet, client: Any) -> None:
    call = bt.calls.System.remark(remark="0x00")
    with pytest.raises(bt.ChainError, match="multisig"):
        await client.multisig([subnet.hotkey(0), subnet.hotkey(1)], 2)
    with pytest.raises(bt.ChainError, match="offline signing"):
        await client.prepare_call(call, address=subnet.hotkey(0))
    with pytest.raises(bt.ChainError, match="SCALE"):
        await client.decode_scale("Call", "0x00")


async def test_token_symbols_come_from_this_chain(client: Any) -> None:
    assert client.token_symbols == {NETUID: "Q"}
    assert str(client.balance(10**9, NETUID)).endswith("Q")


async def test_a_missing_file_is_a_connection_error(subnet: Subnet, client: Any) -> None:
    subnet.path.unlink()
    with pytest.raises(bt.RpcConnectionError, match="cannot be used"):
        await client.block()
