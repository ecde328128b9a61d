"""Who may run as what."""

from collections.abc import AsyncIterator

import pytest

from node.chain import Chain, open_chain
from node.clock import SystemClock
from node.settings_model import Settings
from protocol.errors import NotPermitted
from protocol.types import Hotkey
from roles.permission import require_registered, require_validator
from tests.roles.api.harness import Subnet, key, registration
from tests.roles.running_subnet import (
    api_settings,
    chain_settings,
    front_kind,
    migrated,
    private_caches,
    subnet,
)

__all__ = ["api_settings", "chain_settings", "front_kind", "migrated", "private_caches", "subnet"]


@pytest.fixture
async def chain(api_settings: Settings) -> AsyncIterator[Chain]:
    chain = open_chain(api_settings.chain, SystemClock())
    yield chain
    await chain.close()


def hotkey(name: str) -> Hotkey:
    """Address of a key."""
    return Hotkey(key(name).ss58_address)


async def test_registered_hotkeys_pass(chain: Chain) -> None:
    _, neuron = await require_registered(chain, hotkey("miner"), netuid=24)
    assert neuron.hotkey == hotkey("miner")
    validator = await require_validator(chain, hotkey("validator"), netuid=24, min_stake_tao=1000.0)
    assert validator.validator_permit


async def test_strangers_are_told_to_register(chain: Chain) -> None:
    with pytest.raises(NotPermitted, match=r"not registered on subnet 24.*btcli") as caught:
        await require_registered(chain, hotkey("stranger"), netuid=24)
    assert caught.value.exit_code == 77


async def test_miner_is_no_validator(chain: Chain) -> None:
    with pytest.raises(NotPermitted, match="no validator permit"):
        await require_validator(chain, hotkey("miner"), netuid=24, min_stake_tao=1000.0)


async def test_poor_validator_is_told_what_it_needs(chain: Chain, subnet: Subnet) -> None:
    subnet.chain.register(registration("poor", "cold-p", 10.0, permit=True))
    with pytest.raises(NotPermitted, match=r"10 TAO .* needs 1000"):
        await require_validator(chain, hotkey("poor"), netuid=24, min_stake_tao=500.0)
    with pytest.raises(NotPermitted, match=r"5000 TAO .* needs 6000"):
        await require_validator(chain, hotkey("validator"), netuid=24, min_stake_tao=6000.0)
