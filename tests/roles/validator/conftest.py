"""The parts of a validator on a subnet with a running API."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.settings_model import NodeSection, Settings, ValidatorSection
from tests.roles.api.harness import Subnet
from tests.roles.proxy import SwitchedProxy
from tests.roles.running_subnet import (
    api,
    api_settings,
    chain_settings,
    front_kind,
    migrated,
    private_caches,
    proxy,
    subnet,
)
from tests.roles.validator.harness import Validator

__all__ = [
    "api",
    "api_settings",
    "chain_settings",
    "front_kind",
    "migrated",
    "private_caches",
    "proxy",
    "subnet",
]


@pytest.fixture
async def validator(
    api_settings: Settings, proxy: SwitchedProxy, subnet: Subnet, tmp_path: Path
) -> AsyncIterator[Validator]:
    """A validator's parts, which the test starts, kills and starts again."""
    (tmp_path / "validator").mkdir()
    settings = api_settings.model_copy(
        update={
            "node": NodeSection(data_dir=tmp_path / "validator", device="cpu"),
            "api": api_settings.api.model_copy(update={"url": proxy.url}),
            "validator": ValidatorSection(poll_s=0.1, logit_interval_s=1000.0, weights_interval_blocks=100),
        }
    )
    validator = Validator(settings, subnet)
    yield validator
    await validator.kill()
