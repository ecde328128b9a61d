"""A running API with something to see, and a browser to see it with."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright

from node.chain.local import LocalChain
from tests.roles.api.harness import Client, Subnet, running
from tests.roles.api.page.browser import launch
from tests.roles.api.page.populated import BLOCK_TIME_S, found_subnet, page_settings, populate


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of an API and a chain with submissions in every state, made once."""
    folder = tmp_path_factory.mktemp("populated")

    async def make() -> None:
        subnet = found_subnet(folder, block_time_s=BLOCK_TIME_S)
        async with running(page_settings(subnet)) as api:
            await populate(api, subnet)
        subnet.chain.close()

    asyncio.run(make())
    return folder


@pytest.fixture
def populated(made: Path, tmp_path: Path) -> Iterator[Subnet]:
    """A copy of them for one test."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    chain = LocalChain.open(tmp_path / "chain.sqlite")
    yield Subnet(tmp_path, chain)
    chain.close()


@pytest.fixture
async def site(populated: Subnet) -> AsyncIterator[Client]:
    """The running API."""
    async with running(page_settings(populated)) as client:
        yield client


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A headless Chromium."""
    async with async_playwright() as driver:
        browser = await launch(driver)
        yield browser
        await browser.close()
