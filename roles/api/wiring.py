"""The whole API role on one screen."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from node.bus import Bus
from node.chain import SDK_FOLDER, open_chain
from node.chain.watcher import BlockWatcher
from node.clock import Clock, SystemClock
from node.http_server import HttpServer
from node.locks import FileLock
from node.metrics import LoopLagMonitor, Metrics
from node.settings_model import Settings
from node.watchdog import open_watchdog
from roles.api.authentication import Authentication
from roles.api.chain_view import ChainView
from roles.api.context import Api
from roles.api.database import Database
from roles.api.identity import load_identity
from roles.api.limits import Limits, MemoryWindows, SharedWindows, parse_networks
from roles.api.maintenance import lock_on, open_configured
from roles.api.page.wiring import build_page
from roles.api.rounds import RoundKeeper
from roles.api.routes import build_app
from roles.api.schema import upgrade
from roles.api.standing import StandingKeeper
from roles.graph import Graph

SWITCH_INTERVAL_S: Final = 0.001


async def build(settings: Settings, clock: Clock | None = None) -> Graph:
    """Open what the API stands on and join its parts.

    Raises ConfigError, WalletError, DeviceBusy (another API uses the same SQLite file), DatabaseUnavailable.
    """
    own = settings.api
    # Rows are read and ranked in threads: the event loop must not wait long for its turn.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    settings.node.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    clock = clock or SystemClock()
    metrics = Metrics(role="api")
    bus = Bus()
    chain = open_chain(settings.chain, clock, metrics=metrics, caches=settings.node.data_dir / SDK_FOLDER)
    view = ChainView(
        chain,
        bus,
        clock,
        metrics,
        netuid=settings.chain.netuid,
        metagraph_max_age_s=own.metagraph_max_age_s,
    )
    watcher = BlockWatcher(
        chain, bus, clock, unreachable_after_s=settings.chain.unreachable_after_s, metrics=metrics
    )
    signer = load_identity(settings)
    trusted_proxies = parse_networks(own.trusted_proxies)
    database, unlock = await open_database(settings)
    limits = Limits(
        MemoryWindows(clock) if database.is_sqlite else SharedWindows(database, clock),
        per_hotkey=own.writes_per_minute_per_hotkey,
        per_address=own.writes_per_minute_per_ip,
        trusted_proxies=trusted_proxies,
    )
    standing = StandingKeeper(database, view, clock, min_validator_stake_tao=own.min_validator_stake_tao)
    rounds = RoundKeeper(database, standing, view, clock, round_s=own.round_s)
    authentication = Authentication(own, database, view, limits, clock, self_hotkey=signer.ss58_address)
    api = Api(
        settings=settings,
        clock=clock,
        metrics=metrics,
        signer=signer,
        database=database,
        chain=view,
        authentication=authentication,
        limits=limits,
        rounds=rounds,
        standing=standing,
    )
    page, live = build_page(api)
    server = HttpServer(build_app(api, page), own.host, own.port, name="api", drain_s=settings.node.drain_s)
    watchdog = open_watchdog(settings, {watcher.name: lambda: watcher.idle_s})
    return Graph(
        components=[server, watcher, view, rounds, live, LoopLagMonitor(metrics), watchdog],
        closers=[unlock, database.close, chain.close, view.close, standing.close],
    )


async def open_database(settings: Settings) -> tuple[Database, Callable[[], Awaitable[None]]]:
    """The database at the schema of this version, and what gives back the lock on its file."""
    database = open_configured(settings)
    lock: FileLock | None = None
    if database.is_sqlite:
        # Several replicas need PostgreSQL: two processes on one SQLite file would each keep their own limits.
        lock = lock_on(Path(str(database.url.database)))
        lock.acquire()

    async def unlock() -> None:
        if lock is not None:
            lock.release()

    try:
        await upgrade(database)
    except BaseException:
        await database.close()
        await unlock()
        raise
    return database, unlock
