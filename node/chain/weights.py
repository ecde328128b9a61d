"""Setting weights so that afterwards it is known whether they were set."""

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import bittensor as bt
import structlog
from bittensor.intents.weights import clip_to_max_weight

from node.chain.connection import Connection
from node.chain.interface import Metagraph, Neuron, WeightRules
from protocol.errors import ChainRejected, ChainUnavailable, NotPermitted
from protocol.types import BlockHeight, Hotkey

log = structlog.get_logger(__name__)

U16_MAX = 65_535
INCLUSION_BLOCKS = 5
"""How many blocks an extrinsic may take to be included, and the read-back to show it."""


def check_permission(neuron: Neuron | None, hotkey: Hotkey, rules: WeightRules, *, netuid: int) -> Neuron:
    """The hotkey's neuron; raises NotPermitted when it may not set weights on the subnet."""
    if neuron is None:
        raise NotPermitted(f"hotkey {hotkey} is not registered on subnet {netuid}: register it first")
    if not neuron.validator_permit and hotkey != rules.owner_hotkey:
        raise NotPermitted(
            f"hotkey {hotkey} (UID {neuron.uid}) has no validator permit on subnet {netuid}: "
            "it needs more stake, and permits are given at the end of an epoch"
        )
    if neuron.stake_tao < rules.min_stake_tao:
        raise NotPermitted(
            f"hotkey {hotkey} (UID {neuron.uid}) has {neuron.stake_tao:g} TAO of stake on subnet {netuid}, "
            f"setting weights needs {rules.min_stake_tao:g}"
        )
    return neuron


def check_rate_limit(neuron: Neuron, rules: WeightRules, height: BlockHeight, *, block_time_s: float) -> None:
    """Raise ChainRejected when the neuron set weights too recently."""
    since = height - neuron.last_update
    if neuron.last_update > 0 and since < rules.rate_limit_blocks:
        left = rules.rate_limit_blocks - since
        raise ChainRejected(
            f"weights of {neuron.hotkey} were set {since} blocks ago and the rate limit is "
            f"{rules.rate_limit_blocks} blocks: try again in {left} blocks, about {left * block_time_s:.0f} s"
        )


def weights_by_uid(weights: Mapping[Hotkey, float], metagraph: Metagraph) -> dict[int, float]:
    """Weights by the UIDs that the hotkeys hold right now, zeros left out.

    Raises ChainRejected naming the hotkey for one that is not registered or a weight that is no number.
    """
    found: dict[int, float] = {}
    for hotkey, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise ChainRejected(f"weight of {hotkey} is {weight}: it must be finite and not negative")
        if weight == 0:
            continue
        neuron = metagraph.neurons.get(hotkey)
        if neuron is None:
            raise ChainRejected(
                f"hotkey {hotkey} has weight {weight:g} but is not registered at block {metagraph.height}: "
                "leave it out"
            )
        found[int(neuron.uid)] = weight
    if not found:
        raise ChainRejected("no weight is above zero: nothing to set")
    return found


def with_enough_targets(
    uids: Mapping[int, float], rules: WeightRules, metagraph: Metagraph
) -> dict[int, float]:
    """Weights for at least as many UIDs as the subnet demands; those added get the smallest weight there is.

    It demands a number, and, by the largest share that one may have, implies another. Without enough the
    chain would refuse everything that fewer have earned, and old weights would stay. The owner comes first,
    then validators by stake: none of them earns by a miner's weight what a miner would.
    """
    lacking = max(rules.min_allowed, math.ceil(1 / rules.max_weight) if rules.max_weight else 0) - len(uids)
    if lacking <= 0:
        return dict(uids)
    others = sorted(
        (neuron for neuron in metagraph.neurons.values() if int(neuron.uid) not in uids),
        key=lambda one: (
            one.hotkey != metagraph.owner_hotkey,
            not one.validator_permit,
            -one.stake_tao,
            one.uid,
        ),
    )[:lacking]
    least = max(uids.values()) / U16_MAX
    log.info("weights filled up", earned=len(uids), min_allowed=rules.min_allowed, added=len(others))
    return {**uids, **{int(neuron.uid): least for neuron in others}}


def within_limit(uids: Mapping[int, float], rules: WeightRules) -> dict[int, float]:
    """Weights as shares of 1 with none above the subnet's limit.

    The limit is taken a little lower than stated: rounding to 16 bits may raise the largest share, and
    the chain then refuses what the SDK has clipped to the exact limit.
    """
    total = sum(uids.values())
    shares = {uid: weight / total for uid, weight in uids.items()}
    limit = rules.max_weight - len(uids) / U16_MAX
    if rules.max_weight >= 1.0 or len(uids) == 1 or max(shares.values()) <= limit:
        return shares
    clipped = clip_to_max_weight(list(shares.values()), limit)
    log.warning("weights clipped to the subnet's limit", max_weight=rules.max_weight, largest=max(clipped))
    return dict(zip(shares, clipped, strict=True))


async def submit_weights(
    connection: Connection,
    hotkey: Any,
    uids: Mapping[int, float],
    rules: WeightRules,
    *,
    netuid: int,
    timeout_s: float,
) -> None:
    """Sign and submit by the route that the runtime knows; raises when the chain says no.

    `hotkey` is the keypair that signs. On a runtime without SubnetEpochConsensus, which the SDK's own
    intent reads, plain weights are submitted directly.
    """
    shares = within_limit(uids, rules)

    async def submit(client: Any) -> None:
        if await _knows_consensus(client, netuid):
            intent = bt.SetWeights(netuid=netuid, weights=shares, version_key=rules.version_key)
            result = await client.execute(intent, hotkey, wait_for_finalization=False)
        elif rules.commit_reveal:
            raise ChainRejected(
                f"subnet {netuid} uses commit-reveal on a runtime without SubnetEpochConsensus: "
                "upgrade the chain or the bittensor package"
            )
        else:
            call = _plain_call(shares, rules, netuid)
            result = await client.submit_call(call, hotkey, signer="hotkey", wait_for_finalization=False)
        result.raise_for_failure()

    await connection.write("set weights", submit, timeout_s=timeout_s)


async def _knows_consensus(client: Any, netuid: int) -> bool:
    try:
        await client.query(("SubtensorModule", "SubnetEpochConsensus"), [netuid])
    except ValueError:
        return False
    return True


def _plain_call(shares: Mapping[int, float], rules: WeightRules, netuid: int) -> Any:
    targets, values = bt.intents.normalize(list(shares), list(shares.values()))
    if len(targets) < rules.min_allowed:
        raise ChainRejected(
            f"subnet {netuid} needs at least {rules.min_allowed} weights, only {len(targets)} are above zero"
        )
    return bt.calls.SubtensorModule.set_mechanism_weights(
        netuid=netuid, mecid=0, dests=targets, weights=values, version_key=rules.version_key
    )


async def confirm_update(
    connection: Connection,
    uid: int,
    *,
    netuid: int,
    not_before: BlockHeight,
    block_time_s: float,
) -> BlockHeight | None:
    """Height of the neuron's last update once it is `not_before` or later, None when it stays older.

    Endpoints behind a balancer may lag, so it is asked for a few blocks' time.
    """

    async def read(client: Any) -> int:
        column = await client.query(("SubtensorModule", "LastUpdate"), [netuid])
        return int(column[uid]) if column is not None and uid < len(column) else 0

    for attempt in range(INCLUSION_BLOCKS + 1):
        if attempt:
            await asyncio.sleep(block_time_s)
        updated = BlockHeight(await connection.read("read the last update", read))
        if updated >= not_before:
            return updated
    return None


async def submit_and_confirm(
    connection: Connection,
    hotkey: Any,
    neuron: Neuron,
    uids: Mapping[int, float],
    rules: WeightRules,
    *,
    netuid: int,
    height: BlockHeight,
    block_time_s: float,
) -> BlockHeight:
    """Submit weights and return the height at which the chain shows them.

    Only what the chain shows counts: an answer that got lost may have been a success, and a success
    that does not show is an error.
    """
    lost: ChainUnavailable | None = None
    timeout_s = connection.call_timeout_s + INCLUSION_BLOCKS * block_time_s
    try:
        await submit_weights(connection, hotkey, uids, rules, netuid=netuid, timeout_s=timeout_s)
    except ChainUnavailable as error:
        lost = error
    updated = await confirm_update(
        connection, int(neuron.uid), netuid=netuid, not_before=height, block_time_s=block_time_s
    )
    if updated is not None:
        return updated
    if lost is not None:
        raise lost
    raise ChainRejected(
        f"the chain reported weights of {neuron.hotkey} as set, but its last update is still before "
        f"block {height}: read it again before another attempt"
    )
