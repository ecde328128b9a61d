"""The whole inference role on one screen."""

from collections.abc import Awaitable, Callable

from node.chain import SDK_FOLDER, open_chain
from node.clock import SystemClock
from node.logs import get_logger
from node.metrics import LoopLagMonitor, Metrics
from node.settings_model import Settings
from node.wallets import HotkeySigner, hotkey_signer, load_wallet
from node.watchdog import open_watchdog
from protocol.errors import WalletError
from roles.graph import Graph
from roles.inference.callers import MetagraphProvider
from roles.inference.server import InferenceServer, requires_auth

_log = get_logger(__name__)


async def build(settings: Settings) -> Graph:
    """Join the server, the miner's hotkey, and the chain that names the validators.

    The axon is published by the miner. Raises ConfigError (no GPU, no model folder, no local chain) and
    WalletError.
    """
    clock = SystemClock()
    metrics = Metrics(role="inference")
    signer = load_signer(settings)
    metagraph: MetagraphProvider | None = None
    closers: list[Callable[[], Awaitable[None]]] = []
    if requires_auth(settings):
        chain = open_chain(settings.chain, clock, metrics=metrics, caches=settings.node.data_dir / SDK_FOLDER)
        metagraph = chain.metagraph
        closers.append(chain.close)
    server = InferenceServer(settings, signer, metagraph, metrics=metrics, clock=clock)
    return Graph(components=[server, LoopLagMonitor(metrics), open_watchdog(settings, {})], closers=closers)


def load_signer(settings: Settings) -> HotkeySigner | None:
    """The miner's hotkey; None, with a warning, where nobody is authenticated and there is no wallet."""
    section = settings.wallet
    try:
        return hotkey_signer(load_wallet(section, section.name or section.miner_name))
    except WalletError as error:
        if requires_auth(settings):
            raise
        _log.warning("answers will not be signed, so validators refuse them", reason=str(error))
        return None
