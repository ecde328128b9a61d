"""The axon on the chain: published when it changed, and only with an address that validators can reach."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from node.chain import AxonAddress, Chain, open_chain
from node.clock import SystemClock
from node.settings_model import InferenceSection, Settings
from protocol.errors import ChainRejected, NotPermitted
from roles.miner.axon import AxonPublisher
from tests.node.chain.fronts import FRONTS
from tests.roles.api.harness import Subnet


@pytest.fixture(params=FRONTS)
def front_kind(request: pytest.FixtureRequest) -> str:
    """Everything here runs over both fronts."""
    return str(request.param)


class Wallet:
    """Holds a hotkey."""

    def __init__(self, hotkey: Any) -> None:
        self.hotkey = hotkey


@pytest.fixture
async def chain(api_settings: Settings) -> AsyncIterator[Chain]:
    chain = open_chain(api_settings.chain, SystemClock())
    yield chain
    await chain.close()


async def published(
    settings: Settings, chain: Chain, key: Any, *, port: int = 8001, network: str = "local", **inference: Any
) -> AxonAddress | None:
    """Run the publisher for a moment; what the chain shows then."""
    settings = settings.model_copy(
        update={
            "inference": InferenceSection.model_validate(inference),
            "chain": settings.chain.model_copy(update={"network": network}),
        }
    )
    publisher = AxonPublisher(
        settings=settings, chain=chain, wallet=Wallet(key), clock=SystemClock(), bound_port=port
    )
    task = asyncio.create_task(publisher.run())

    async def shown() -> AxonAddress | None:
        return (await chain.metagraph()).neurons[key.ss58_address].axon

    for _ in range(40):
        await asyncio.sleep(0.02)
        if task.done():
            task.result()
        if (found := await shown()) is not None:
            break
    assert not task.done()
    task.cancel()
    return found


async def test_local_chain_shows_loopback_and_the_bound_port(
    api_settings: Settings, chain: Chain, subnet: Subnet
) -> None:
    assert await published(api_settings, chain, subnet.miner, port=8123) == AxonAddress("127.0.0.1", 8123)


async def test_elsewhere_the_external_address_is_shown(
    api_settings: Settings, chain: Chain, subnet: Subnet
) -> None:
    found = await published(
        api_settings, chain, subnet.miner, network="test", external_ip="198.51.100.7", external_port=9000
    )
    assert found == AxonAddress("198.51.100.7", 9000)


async def test_without_an_external_address_nothing_is_published(
    api_settings: Settings, chain: Chain, subnet: Subnet, caplog: pytest.LogCaptureFixture
) -> None:
    assert await published(api_settings, chain, subnet.miner, network="test") is None
    assert "inference.external_ip" in caplog.text


async def test_without_a_port_nothing_is_published(
    api_settings: Settings, chain: Chain, subnet: Subnet, caplog: pytest.LogCaptureFixture
) -> None:
    assert await published(api_settings, chain, subnet.miner, port=0) is None
    assert "inference.external_port" in caplog.text


async def test_refusal_is_tried_again(
    api_settings: Settings, chain: Chain, subnet: Subnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_axon = chain.serve_axon
    failures = [ChainRejected("ServingRateLimitExceeded")]

    async def refuse_once(wallet: Any, ip: str, port: int) -> None:
        if failures:
            raise failures.pop()
        await serve_axon(wallet, ip, port)

    monkeypatch.setattr(chain, "serve_axon", refuse_once)
    assert await published(api_settings, chain, subnet.miner) == AxonAddress("127.0.0.1", 8001)


async def test_stranger_ends_with_a_sentence(api_settings: Settings, chain: Chain, subnet: Subnet) -> None:
    publisher = AxonPublisher(
        settings=api_settings,
        chain=chain,
        wallet=Wallet(subnet.stranger),
        clock=SystemClock(),
        bound_port=8001,
    )
    with pytest.raises(NotPermitted, match="not registered"):
        await publisher.run()
