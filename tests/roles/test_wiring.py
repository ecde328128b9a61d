"""The graphs of miner and validator: built from settings alone, run, refused, and closed again."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from node.chain import LocalChain, Registration
from node.git import create_bare_repository
from node.http_server import HttpServer
from node.sandbox_spec import SandboxTier
from node.settings_model import (
    ApiSection,
    ChainSection,
    InferenceSection,
    MinerSection,
    NodeSection,
    Settings,
    ValidatorSection,
    WalletSection,
)
from node.wallets import create_wallet
from protocol.errors import ConfigError, DeviceBusy, NotPermitted, PortInUse, SandboxUnavailable
from protocol.types import Coldkey, Hotkey
from roles.graph import Graph
from roles.miner import wiring as miner
from roles.status import STATUS_FILE
from roles.validator import wiring as validator

BUILDERS: dict[str, Callable[[Settings], Awaitable[Graph]]] = {
    "miner": miner.build,
    "validator": validator.build,
}
ROLES = pytest.mark.parametrize("role", list(BUILDERS))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A local chain with fast blocks: wallet `validator` may set weights, `miner` is registered."""
    monkeypatch.setenv("BTCLI_TOKEN_SYMBOLS_CACHE", str(tmp_path / "symbols.json"))
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "runtime"))
    wallets = {name: create_wallet(tmp_path / "wallets", name) for name in ("miner", "validator", "stranger")}
    LocalChain.create(
        tmp_path / "chain.sqlite",
        block_time_s=0.1,
        netuid=24,
        owner_hotkey=None,
        neurons=[
            Registration(
                Hotkey(wallets[name].hotkey.ss58_address),
                Coldkey(wallets[name].coldkeypub.ss58_address),
                5000.0 if name == "validator" else 0.0,
                name == "validator",
            )
            for name in ("miner", "validator")
        ],
    ).close()
    create_bare_repository(tmp_path / "fork.git")
    return Settings(
        node=NodeSection(data_dir=tmp_path / "data", device="cpu", metrics_port=0, drain_s=1.0),
        chain=ChainSection(network="local", local_state=tmp_path / "chain.sqlite"),
        wallet=WalletSection(path=tmp_path / "wallets", miner_name="miner", validator_name="validator"),
        api=ApiSection(url="http://127.0.0.1:9"),
        miner=MinerSection(
            fork_remote=(tmp_path / "fork.git").as_uri(), agent_iterations=0, serve_inference=False
        ),
        inference=InferenceSection(port=8123),
        # Nothing is evaluated here: these tests also run where there is no sandbox.
        validator=ValidatorSection(unsafe_no_sandbox=True),
    )


def change(settings: Settings, section: str, **values: Any) -> Settings:
    """The settings with other values in one section."""
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})


@asynccontextmanager
async def running(graph: Graph) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run all components; they must still run at the end."""
    tasks = [asyncio.create_task(part.run(), name=part.name) for part in graph.components]
    try:
        yield tasks
        for task in tasks:
            if task.done():
                task.result()
                raise AssertionError(f"{task.get_name()} came to an end")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await close(graph)


async def close(graph: Graph) -> None:
    """Close what the graph stands on."""
    for one in reversed(graph.closers):
        await one()


async def until_status(settings: Settings, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until status.json says so."""
    path = settings.node.data_dir / STATUS_FILE
    async with asyncio.timeout(120):
        while True:
            if path.exists() and condition(status := json.loads(path.read_text())):
                return dict(status)
            await asyncio.sleep(0.05)


@ROLES
async def test_graph_runs_follows_the_chain_and_waits_for_an_api_that_is_away(
    role: str, settings: Settings
) -> None:
    graph = await BUILDERS[role](settings)
    assert len({part.name for part in graph.components}) == len(graph.components)
    async with running(graph):
        first = await until_status(settings, lambda status: status["height"] is not None)
        assert first["role"] == role
        later = await until_status(settings, lambda status: status["height"] > first["height"])
        assert later["hotkey"] == first["hotkey"]
        server = next(part for part in graph.components if isinstance(part, HttpServer))
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            async with session.get("/readyz") as response:
                assert response.status == 200, await response.text()
            async with session.get("/metrics") as response:
                assert f'role="{role}"' in await response.text()


@ROLES
async def test_second_node_on_one_data_directory_is_refused_until_the_first_has_closed(
    role: str, settings: Settings
) -> None:
    first = await BUILDERS[role](settings)
    with pytest.raises(DeviceBusy, match=str(settings.node.data_dir)):
        await BUILDERS[role](settings)
    await close(first)
    await close(await BUILDERS[role](settings))


@ROLES
async def test_stranger_is_refused_and_leaves_nothing_locked(role: str, settings: Settings) -> None:
    with pytest.raises(NotPermitted, match="not registered"):
        await BUILDERS[role](change(settings, "wallet", name="stranger"))
    await close(await BUILDERS[role](settings))


async def test_validator_starts_without_one_of_its_devices(settings: Settings) -> None:
    graph = await validator.build(change(settings, "evaluation", devices=("cpu", "cuda:99")))
    async with running(graph):
        server = next(part for part in graph.components if isinstance(part, HttpServer))
        await until_status(settings, lambda status: status["height"] is not None)
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session,
            session.get("/metrics") as response,
        ):
            metrics = await response.text()
    assert 'quasar_device_in_service{device="cpu"} 1.0' in metrics
    assert 'quasar_device_in_service{device="cuda:99"} 0.0' in metrics


async def test_validator_without_permit_is_refused(settings: Settings) -> None:
    with pytest.raises(NotPermitted, match="permit"):
        await validator.build(change(settings, "wallet", name="miner"))


@ROLES
async def test_metrics_port_that_is_taken_is_named(role: str, settings: Settings) -> None:
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(PortInUse, match=str(port)):
            await BUILDERS[role](change(settings, "node", metrics_port=port))


async def test_miner_without_github_is_told_what_is_missing(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="GITHUB_USERNAME and GITHUB_TOKEN"):
        await miner.build(change(settings, "miner", fork_remote=None))


async def test_miner_publishes_where_its_inference_server_listens(settings: Settings) -> None:
    graph = await miner.build(settings)
    chain = LocalChain.open(settings.chain.local_state)
    async with running(graph):
        status = await until_status(settings, lambda status: status["height"] is not None)
        hotkey = status["hotkey"]
        found = None
        async with asyncio.timeout(120):
            while found is None:
                await asyncio.sleep(0.05)
                found = next(one.axon for one in chain.state().neurons if one.hotkey == hotkey)
    chain.close()
    assert (found.ip, found.port) == ("127.0.0.1", 8123)


async def test_host_without_isolation_is_no_place_for_a_validator(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validator, "detect_tier", lambda: SandboxTier.NONE)
    with pytest.raises(SandboxUnavailable, match="bubblewrap"):
        await validator.build(change(settings, "validator", unsafe_no_sandbox=False))
    # On the local chain it may be asked for; elsewhere its verdicts would score beside a wallet.
    await validator.require_sandbox(settings)
    public = change(settings, "chain", network="test")
    with pytest.raises(SandboxUnavailable):
        await validator.require_sandbox(public)
    # Of what other hosts offer this one knows nothing.
    await validator.require_sandbox(change(public, "executor", backend="ray"))
    # Landlock alone serves where no wallet is worth protecting.
    monkeypatch.setattr(validator, "detect_tier", lambda: SandboxTier.LANDLOCK)
    await validator.require_sandbox(change(settings, "validator", unsafe_no_sandbox=False))
    with pytest.raises(SandboxUnavailable):
        await validator.require_sandbox(public)
    monkeypatch.setattr(validator, "detect_tier", lambda: SandboxTier.BWRAP)
    await validator.require_sandbox(public)
