"""Commitments whose hash is on chain first: the wait counts from its block, and the API asks the chain."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from node.chain import OnChainCommitment, open_chain
from node.chain.client import BittensorChain
from node.clock import SystemClock
from protocol.errors import ChainRejected, ChainUnavailable
from roles.miner.ledger import Stage
from tests.node.chain.fronts import FRONTS
from tests.roles.api.harness import Client, Subnet, commit_message
from tests.roles.miner.harness import Miner
from tests.roles.proxy import SwitchedProxy


@pytest.fixture(params=FRONTS)
def front_kind(request: pytest.FixtureRequest) -> str:
    """Everything here runs over both fronts."""
    return str(request.param)


class Wallet:
    """Holds a hotkey."""

    def __init__(self, hotkey: Any) -> None:
        self.hotkey = hotkey


class Anchorer:
    """Anchors on the real local chain; fails first with what it was given."""

    def __init__(self, chain: BittensorChain, key: Any) -> None:
        self._chain = chain
        self._wallet = Wallet(key)
        self.failures: list[Exception] = []
        self.made: list[str] = []

    async def __call__(self, data: bytes) -> OnChainCommitment:
        if self.failures:
            raise self.failures.pop(0)
        self.made.append(data.hex())
        return await self._chain.commit(self._wallet, data)


@pytest.fixture
async def anchorer(miner: Miner, subnet: Subnet) -> AsyncIterator[Anchorer]:
    chain = open_chain(miner.settings.chain, SystemClock())
    anchorer = Anchorer(chain, subnet.miner)
    miner.anchor = anchorer
    yield anchorer
    await chain.close()


async def test_the_wait_counts_from_the_anchors_block(
    miner: Miner, proxy: SwitchedProxy, anchorer: Anchorer, api: Client
) -> None:
    proxy.cut_before["/commit_submission"] = 10_000
    await miner.start()
    anchored_at = miner.subnet.chain.height()
    await miner.offer()
    await miner.until_stage(Stage.DRAFTED)
    await miner.until(lambda: _is_cut(proxy))
    proxy.cut_before.clear()
    committed = await miner.until_stage(Stage.COMMITTED)
    assert committed.reveal_block == anchored_at + 10
    assert set(anchorer.made) == {committed.key}
    detail = (await api.get(f"/submissions/{committed.submission_id}")).body
    assert detail["commit_block"] == anchored_at
    await miner.tick(10)
    await miner.until_stage(Stage.REVEALED)
    assert proxy.accepted("/reveal_submission") == 1


async def test_blocks_between_anchor_and_api_count(
    miner: Miner, proxy: SwitchedProxy, anchorer: Anchorer, subnet: Subnet
) -> None:
    proxy.cut_before["/commit_submission"] = 10_000
    await miner.start()
    anchored_at = subnet.chain.height()
    await miner.offer()
    await miner.until_stage(Stage.DRAFTED)
    await miner.until(lambda: _is_anchored(subnet))
    subnet.chain.advance(7)
    proxy.cut_before.clear()
    committed = await miner.until_stage(Stage.COMMITTED)
    assert committed.reveal_block == anchored_at + 10


async def _is_cut(proxy: SwitchedProxy) -> bool:
    return proxy.cut_before["/commit_submission"] < 10_000


async def _is_anchored(subnet: Subnet) -> bool:
    return bool(subnet.chain.state().commitments)


async def test_one_slot_serves_several_commitments_one_after_another(
    miner: Miner, proxy: SwitchedProxy, anchorer: Anchorer, subnet: Subnet
) -> None:
    await miner.start()
    for text in ("x = 1\n", "x = 2\n", "x = 3\n"):
        await miner.offer(text)
    await miner.until_stage(Stage.COMMITTED, count=3)
    keys = [one.key for one in await miner.ledger.all()]
    assert sorted(anchorer.made) == sorted(keys)
    assert proxy.posts.count(("/commit_submission", 425)) == 0
    await miner.tick(10)
    await miner.until_stage(Stage.REVEALED, count=3)


async def test_a_chain_that_refuses_costs_the_anchor_and_not_the_commitment(
    miner: Miner, anchorer: Anchorer, caplog: pytest.LogCaptureFixture
) -> None:
    anchorer.failures = [ChainRejected("the chain refused to commit (SpaceLimitExceeded)")]
    await miner.start()
    await miner.offer()
    await miner.until_stage(Stage.COMMITTED)
    assert anchorer.made == []
    assert "SpaceLimitExceeded" in caplog.text


async def test_a_chain_that_is_away_is_waited_for(miner: Miner, anchorer: Anchorer) -> None:
    anchorer.failures = [ChainUnavailable("no route to host")]
    await miner.start()
    await miner.offer()
    committed = await miner.until_stage(Stage.COMMITTED)
    assert anchorer.made == [committed.key]


async def test_an_anchor_that_is_not_there_is_too_early(
    subnet: Subnet, anchorer: Anchorer, api: Client
) -> None:
    commitment_hash = "ab" * 32
    refused = await _send(api, subnet, commitment_hash)
    assert refused.status == 425
    assert "the chain shows no commitment" in refused.detail
    await anchorer(bytes.fromhex("cd" * 32))
    assert (await _send(api, subnet, commitment_hash)).status == 425
    await anchorer(bytes.fromhex(commitment_hash))
    assert (await _send(api, subnet, commitment_hash)).status == 200


async def test_an_anchor_whose_window_is_over_is_refused(
    subnet: Subnet, anchorer: Anchorer, api: Client
) -> None:
    commitment_hash = "ab" * 32
    await anchorer(bytes.fromhex(commitment_hash))
    subnet.chain.advance(30)
    refused = await _send(api, subnet, commitment_hash)
    assert refused.status == 409
    assert "make a new commitment" in refused.detail


async def _send(api: Client, subnet: Subnet, commitment_hash: str) -> Any:
    message = commit_message(subnet.miner, commitment_hash, is_anchored=True)
    return await api.post("/commit_submission", message)
