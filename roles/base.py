"""What miner and validator stand on alike: wallet, chain, journal, API, metrics."""

import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

from node.bus import Bus
from node.chain import SDK_FOLDER, Chain, open_chain
from node.chain.watcher import BlockWatcher
from node.clock import Clock, SystemClock
from node.http_server import HttpServer, base_app
from node.journal import Journal, load_key
from node.locks import FileLock
from node.metrics import Metrics
from node.settings_model import Settings
from node.wallets import HotkeySigner, hotkey_signer, load_wallet
from node.watchdog import Watchdog, open_watchdog
from protocol.types import Hotkey
from roles.api_client import SubnetApi, open_api

SILENT_S: Final = 60.0
"""A chain that has not answered for so long makes the node not ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The opened parts; the stack that they were opened on closes them."""

    clock: Clock
    metrics: Metrics
    bus: Bus
    wallet: Any
    """A `bittensor.Wallet` whose hotkey is unlocked."""
    signer: HotkeySigner
    chain: Chain
    watcher: BlockWatcher
    journal: Journal
    api: SubnetApi
    metrics_server: HttpServer
    watchdog: Watchdog

    @property
    def hotkey(self) -> Hotkey:
        """The node's identity."""
        return Hotkey(self.signer.ss58_address)


async def open_base(settings: Settings, role: str, wallet_name: str, opened: AsyncExitStack) -> Base:
    """Open everything and push its closing on `opened`; the chain and the API are called later.

    Raises WalletError, ConfigError, DeviceBusy (another node uses the data directory), PortInUse.
    """
    clock = SystemClock()
    metrics = Metrics(role=role)
    wallet = load_wallet(settings.wallet, wallet_name)
    signer = hotkey_signer(wallet)
    bus = Bus()
    chain = open_chain(settings.chain, clock, metrics=metrics, caches=settings.node.data_dir / SDK_FOLDER)
    opened.push_async_callback(chain.close)
    data_dir = settings.node.data_dir
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    opened.enter_context(FileLock(data_dir / f"{role}.lock", f"data directory {data_dir} (role {role})"))
    key = load_key(data_dir, os.environ, configured=settings.node.journal_key)
    journal = Journal(data_dir / f"{role}.sqlite", key, clock=clock)
    opened.push_async_callback(journal.close)
    api = open_api(settings, signer, clock)
    opened.push_async_callback(api.close)
    watcher = BlockWatcher(
        chain, bus, clock, unreachable_after_s=settings.chain.unreachable_after_s, metrics=metrics
    )

    async def readiness() -> str | None:
        if watcher.height is None:
            return "the chain has not answered yet"
        return None if watcher.silent_s < SILENT_S else f"the chain is silent for {watcher.silent_s:.0f} s"

    server = HttpServer(
        base_app(readiness=readiness, metrics=metrics),
        settings.node.metrics_host,
        settings.node.metrics_port,
        name="metrics",
        drain_s=settings.node.drain_s,
    )
    await server.start()
    opened.push_async_callback(server.close)
    return Base(
        clock=clock,
        metrics=metrics,
        bus=bus,
        wallet=wallet,
        signer=signer,
        chain=chain,
        watcher=watcher,
        journal=journal,
        api=api,
        metrics_server=server,
        watchdog=open_watchdog(settings, {watcher.name: lambda: watcher.idle_s}),
    )
