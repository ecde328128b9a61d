"""The node's chain: `bittensor.Client` for public networks and the embedded local chain alike."""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import bittensor as bt

from node.chain.connection import Connection
from node.chain.interface import (
    AxonAddress,
    HotkeyHolder,
    Metagraph,
    Neuron,
    OnChainCommitment,
    WeightRules,
)
from node.chain.local_rules import raw_values
from node.chain.local_views import ZERO_ADDRESS
from node.chain.weights import (
    INCLUSION_BLOCKS,
    check_permission,
    check_rate_limit,
    submit_and_confirm,
    weights_by_uid,
    with_enough_targets,
)
from protocol.errors import ChainRejected, ChainUnavailable, ConfigError, NotPermitted
from protocol.types import BlockCount, BlockHeight, Coldkey, Hotkey, Uid

T = TypeVar("T")
RAO_PER_TAO = 10**9
U16_MAX = 65_535
SMALL_READ_S = 3.0
"""Limit of one attempt at a read of a few bytes; a healthy chain answers in well under a second."""


class BittensorChain:
    """The Chain protocol over a Connection; one subnet, any network."""

    def __init__(self, connection: Connection, *, netuid: int) -> None:
        self.netuid = netuid
        self._connection = connection
        self._has_subnet = False

    async def height(self) -> BlockHeight:
        """The head's block number."""

        async def read(client: Any) -> BlockHeight:
            return BlockHeight(await client.block())

        return await self._connection.read("tell its height", read, attempt_s=SMALL_READ_S)

    async def block_time_s(self) -> float:
        """Seconds per block as the chain states them."""

        async def read(client: Any) -> float:
            return float(await client.block_time())

        return await self._connection.read("tell its block time", read, attempt_s=SMALL_READ_S)

    async def block_hash(self, height: BlockHeight) -> str:
        """Hash of an existing block; ChainRejected for a height not reached yet."""

        async def read(client: Any) -> str | None:
            if not 0 <= height <= await client.block():
                return None
            # The client has no public way to one hash; whole blocks would have to be fetched for it.
            return str(await client._substrate.block_hash(height))

        found = await self._connection.read("tell a block's hash", read, attempt_s=SMALL_READ_S)
        if found is None:
            raise ChainRejected(f"block {height} does not exist on chain {self._connection.where} yet")
        return found

    async def metagraph(self) -> Metagraph:
        """The subnet's neurons, all read at one height."""

        async def read(client: Any) -> Any:
            snapshot = await client.at()
            return await snapshot.subnets.metagraph(self.netuid, commitments=False)

        found = await self._connection.read("tell the metagraph", read)
        if found is None:
            absent = f"subnet {self.netuid} does not exist on chain {self._connection.where}"
            if not self._has_subnet:
                raise ConfigError(f"{absent}: check chain.netuid")
            # It did a moment ago: an endpoint that is far behind, and not the only one.
            self._connection.discard()
            raise ChainUnavailable(f"{absent} as this endpoint has it now")
        self._has_subnet = True
        neurons = [_neuron(neuron) for neuron in found.neurons]
        return Metagraph(
            height=BlockHeight(int(found.block)),
            neurons={neuron.hotkey: neuron for neuron in neurons},
            owner_hotkey=_account(found.owner_hotkey),
        )

    async def weight_rules(self) -> WeightRules:
        """The subnet's rules for weights, from chain storage."""

        async def read(client: Any) -> WeightRules:
            snapshot = await client.at()

            async def item(name: str, *params: int) -> Any:
                return await snapshot.query(("SubtensorModule", name), list(params))

            netuid = self.netuid
            max_weight = await item("MaxWeightsLimit", netuid)
            return WeightRules(
                rate_limit_blocks=BlockCount(int(await item("WeightsSetRateLimit", netuid) or 0)),
                min_allowed=int(await item("MinAllowedWeights", netuid) or 0),
                max_weight=1.0 if max_weight is None else int(max_weight) / U16_MAX,
                tempo=BlockCount(int(await item("Tempo", netuid) or 0)),
                commit_reveal=bool(await item("CommitRevealWeightsEnabled", netuid)),
                min_stake_tao=int(await item("StakeThreshold") or 0) / RAO_PER_TAO,
                version_key=int(await item("WeightsVersionKey", netuid) or 0),
                owner_hotkey=_account(await item("SubnetOwnerHotkey", netuid)),
            )

        return await self._connection.read("tell the rules for weights", read)

    async def set_weights(self, wallet: HotkeyHolder, weights: Mapping[Hotkey, float]) -> None:
        """Set the wallet's weights and return once `last_update` on chain confirms them."""
        hotkey = Hotkey(wallet.hotkey.ss58_address)
        rules = await self.weight_rules()
        block_time_s = await self.block_time_s()
        metagraph = await self.metagraph()
        neuron = check_permission(metagraph.neurons.get(hotkey), hotkey, rules, netuid=self.netuid)
        check_rate_limit(neuron, rules, metagraph.height, block_time_s=block_time_s)
        uids = with_enough_targets(weights_by_uid(weights, metagraph), rules, metagraph)
        # The keypair itself, not the wallet: from a wallet the SDK would unlock an encrypted key anew.
        await submit_and_confirm(
            self._connection,
            wallet.hotkey,
            neuron,
            uids,
            rules,
            netuid=self.netuid,
            height=metagraph.height,
            block_time_s=block_time_s,
        )

    async def weights_of(self, hotkey: Hotkey) -> dict[Hotkey, float]:
        """Weights that a hotkey has set, from chain storage, summing to 1 (empty: none).

        Raises NotPermitted for a hotkey that is not registered.
        """
        metagraph = await self.metagraph()
        neuron = metagraph.neurons.get(hotkey)
        if neuron is None:
            raise NotPermitted(f"hotkey {hotkey} is not registered on subnet {self.netuid}")

        async def read(client: Any) -> list[tuple[int, int]]:
            # At the metagraph's block: UIDs may pass to other hotkeys in the next one.
            key = [self.netuid, int(neuron.uid)]
            row = await client.query(("SubtensorModule", "Weights"), key, block=metagraph.height)
            return [(int(target), int(value)) for target, value in row or []]

        row = await self._connection.read("tell the weights", read)
        hotkeys = {int(other.uid): other.hotkey for other in metagraph.neurons.values()}
        total = sum(value for _, value in row)
        return {hotkeys[uid]: value / total for uid, value in row if value and uid in hotkeys}

    async def serve_axon(self, wallet: HotkeyHolder, ip: str, port: int) -> None:
        """Publish the wallet's address; nothing is sent when the chain already has it."""
        try:
            wanted = AxonAddress(str(ipaddress.ip_address(ip)), port)
        except ValueError as error:
            raise ConfigError(
                f"axon address {ip!r} is not an IP address: set inference.external_ip"
            ) from error
        hotkey = Hotkey(wallet.hotkey.ss58_address)

        async def is_shown() -> bool | None:
            return await self._axon(hotkey) == wanted or None

        if await is_shown():
            return

        async def submit(client: Any) -> None:
            intent = bt.ServeAxon(netuid=self.netuid, ip=wanted.ip, port=port)
            result = await client.execute(intent, wallet.hotkey, wait_for_finalization=False)
            result.raise_for_failure()

        await self._publish(f"publish axon {wanted} of {hotkey}", submit, is_shown)

    async def commitment(self, hotkey: Hotkey) -> OnChainCommitment | None:
        """What the hotkey has committed on chain, None when it has nothing there."""

        async def read(client: Any) -> OnChainCommitment | None:
            record = await client.query(("Commitments", "CommitmentOf"), [self.netuid, hotkey])
            return None if record is None else _commitment(record)

        return await self._connection.read("tell a commitment", read)

    async def commit(self, wallet: HotkeyHolder, data: bytes) -> OnChainCommitment:
        """Put `data` into the hotkey's slot and return it as the chain shows it."""
        hotkey = Hotkey(wallet.hotkey.ss58_address)

        async def shown() -> OnChainCommitment | None:
            found = await self.commitment(hotkey)
            return found if found is not None and found.data == data else None

        known = await shown()
        if known is not None:
            return known

        async def submit(client: Any) -> None:
            info = {"fields": [[{f"Raw{len(data)}": f"0x{data.hex()}"}]]}
            call = bt.calls.Commitments.set_commitment(netuid=self.netuid, info=info)
            result = await client.submit_call(
                call, wallet.hotkey, signer="hotkey", wait_for_finalization=False
            )
            result.raise_for_failure()

        return await self._publish(f"commit {data.hex()} for {hotkey}", submit, shown)

    def reconnect(self) -> None:
        """Give the connection up: the next call opens another, at the next endpoint."""
        self._connection.discard()

    async def close(self) -> None:
        """Release the connection."""
        await self._connection.close()

    async def _publish(
        self, what: str, submit: Callable[[Any], Awaitable[None]], shown: Callable[[], Awaitable[T | None]]
    ) -> T:
        """Submit, and return what the chain then shows.

        Only that counts: a lost answer may have been a success, and a success that does not show is an error.
        """
        block_time_s = await self.block_time_s()
        timeout_s = self._connection.call_timeout_s + INCLUSION_BLOCKS * block_time_s
        lost: ChainUnavailable | None = None
        try:
            await self._connection.write(what, submit, timeout_s=timeout_s)
        except ChainUnavailable as error:
            lost = error
        for attempt in range(INCLUSION_BLOCKS + 1):
            if attempt:
                await asyncio.sleep(block_time_s)
            found = await shown()
            if found is not None:
                return found
        raise lost or ChainRejected(f"the chain reported success to {what} but does not show it: try again")

    async def _axon(self, hotkey: Hotkey) -> AxonAddress | None:
        neuron = (await self.metagraph()).neurons.get(hotkey)
        if neuron is None:
            raise NotPermitted(
                f"hotkey {hotkey} is not registered on subnet {self.netuid}: register it first"
            )
        return neuron.axon


def _neuron(neuron: Any) -> Neuron:
    return Neuron(
        hotkey=Hotkey(neuron.hotkey),
        coldkey=Coldkey(neuron.coldkey),
        uid=Uid(int(neuron.uid)),
        stake_tao=int(neuron.total_stake.rao) / RAO_PER_TAO,
        validator_permit=bool(neuron.validator_permit),
        axon=_address(neuron.axon),
        last_update=BlockHeight(int(neuron.last_update)),
    )


def _commitment(record: Mapping[str, Any]) -> OnChainCommitment:
    payloads = [value for field in record["info"]["fields"] for value in raw_values(field)]
    return OnChainCommitment(
        height=BlockHeight(int(record["block"])),
        data=b"".join(bytes.fromhex(str(payload).removeprefix("0x")) for payload in payloads),
    )


def _address(text: str | None) -> AxonAddress | None:
    """`ip:port` or `[ipv6]:port`; an address with port 0 cannot be reached and counts as none."""
    if not text:
        return None
    ip, _, port = text.rpartition(":")
    return AxonAddress(ip.strip("[]"), int(port)) if int(port) else None


def _account(value: Any) -> Hotkey | None:
    return None if value is None or str(value) == ZERO_ADDRESS else Hotkey(str(value))
