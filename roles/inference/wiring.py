"""The whole inference role on one screen."""

from collections.abc import Awaitable, Callable
from typing import Any

from node.chain import open_chain
from node.clock import SystemClock
from node.logs import get_logger
from node.metrics import LoopLagMonitor, Metrics
from node.runtime import Component
from node.settings_model import Settings
from node.wallets import hotkey_signer, load_wallet
from protocol.errors import WalletError
from roles.graph import Graph
from roles.inference.server import InferenceServer, requires_auth
from roles.miner.axon import AxonPublisher

_log = get_logger(__name__)


async def build(settings: Settings) -> Graph:
    """Join the server, the miner's hotkey and the chain, which names the validators and is told the address.

    Raises ConfigError (no GPU, no model folder, no local chain) and WalletError.
    """
    clock = SystemClock()
    metrics = Metrics(role="inference")
    wallet = load_hotkey(settings)
    closers: list[Callable[[], Awaitable[None]]] = []
    chain = None
    if not settings.is_local_chain or settings.chain.local_state is not None:
        chain = open_chain(
            settings.chain, clock, observe=lambda _call, s: metrics.chain_rpc_duration.observe(s)
        )
        closers.append(chain.close)
    server = InferenceServer(
        settings,
        None if wallet is None else hotkey_signer(wallet),
        None if chain is None else chain.metagraph,
        metrics=metrics,
        clock=clock,
    )
    components: list[Component] = [server, LoopLagMonitor(metrics)]
    if chain is not None and wallet is not None:
        components.append(
            AxonPublisher(
                settings=settings, chain=chain, wallet=wallet, clock=clock, bound_port=server.bound_port
            )
        )
    return Graph(components=components, closers=closers)


def load_hotkey(settings: Settings) -> Any | None:
    """The miner's wallet; None, with a warning, where nobody is authenticated and there is no wallet."""
    section = settings.wallet
    try:
        return load_wallet(section, section.name or section.miner_name)
    except WalletError as error:
        if requires_auth(settings):
            raise
        _log.warning("answers will not be signed, so validators refuse them", reason=str(error))
        return None
