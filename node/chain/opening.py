"""From settings to a chain."""

import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bittensor as bt

from node.chain.client import BittensorChain
from node.chain.connection import Connection
from node.chain.local import LocalChain
from node.chain.remote import ClosingRpcSubstrate
from node.chain.substrate import LocalSubstrate
from node.clock import Clock
from node.metrics import Metrics
from node.settings_model import ChainSection
from protocol.errors import ConfigError

SDK_FOLDER = "sdk"
"""In a node's data directory: what the SDK remembers of a local chain."""
LOOPBACK_URL = re.compile(r"ws://(127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}")


def open_chain(
    chain: ChainSection, clock: Clock, *, metrics: Metrics | None = None, caches: Path | None = None
) -> BittensorChain:
    """The chain that the settings name; it connects at the first call.

    `metrics` counts its calls; `caches` is the folder for what the SDK remembers of a local chain's node.
    Raises ConfigError for an unknown network, and for a local chain whose state is not named, missing,
    something else or of another subnet.
    """
    if chain.network != "local":
        open_client = _public_client(chain)
    elif chain.local_endpoint is not None:
        _check_local_endpoint(chain)
        if caches is not None:
            _keep_home_clean(caches)
        open_client = _endpoint_client("local", [chain.local_endpoint])
    else:
        open_client = _embedded_client(chain, clock)
    connection = Connection(
        open_client, where=repr(chain.network), call_timeout_s=chain.call_timeout_s, metrics=metrics
    )
    return BittensorChain(connection, netuid=chain.netuid)


def _public_client(chain: ChainSection) -> Callable[[], Any]:
    for name in (chain.network, *chain.fallback_endpoints):
        try:
            bt.settings.resolve_endpoint(name)
        except ValueError as error:
            raise ConfigError(
                f"chain network {name!r} is unknown: use finney, test, local or a ws:// or wss:// address"
            ) from error

    names = (chain.network, *chain.fallback_endpoints)
    return _endpoint_client(chain.network, [bt.settings.resolve_endpoint(name)[1] for name in names])


def _check_local_endpoint(chain: ChainSection) -> None:
    if not LOOPBACK_URL.fullmatch(chain.local_endpoint or ""):
        # What is allowed on a local chain only (file:// remotes, unsandboxed verdicts) must not be had by
        # calling a public network local.
        raise ConfigError(
            f"chain.local_endpoint {chain.local_endpoint!r} must be ws://127.0.0.1:<port>: a public network "
            "is named by chain.network"
        )
    if chain.local_state is not None:
        raise ConfigError(
            f"chain.local_state {str(chain.local_state)!r} and chain.local_endpoint {chain.local_endpoint!r} "
            "name two local chains: leave one out"
        )


def _endpoint_client(label: str, addresses: Sequence[str]) -> Callable[[], Any]:
    # The endpoints of the settings alone: by itself the SDK would add public ones.
    endpoints = deque(dict.fromkeys(addresses))

    def open_client() -> Any:
        first, *others = endpoints
        # A client is opened anew because the one before failed. Another endpoint comes first then: the SDK
        # waits for a handshake longer than a call may take, and would never get past one that is mute.
        endpoints.rotate(-1)
        return bt.Client(label, substrate=ClosingRpcSubstrate(first, fallback_endpoints=others))

    return open_client


def _embedded_client(chain: ChainSection, clock: Clock) -> Callable[[], Any]:
    if chain.local_state is None:
        raise ConfigError(
            "chain.network is 'local' but neither chain.local_state nor chain.local_endpoint says where "
            "it is: set one"
        )
    path = chain.local_state.expanduser()
    local = LocalChain.open(path, now=lambda: clock.now().timestamp())
    netuid = local.state().parameters.netuid
    if netuid != chain.netuid:
        raise ConfigError(
            f"chain.netuid is {chain.netuid} but local chain {str(path)!r} holds subnet {netuid}"
        )
    _keep_home_clean(path.resolve().with_name(path.name + ".sdk"))

    def open_client() -> Any:
        # The label matters: without it the SDK takes this chain for finney.
        return bt.Client("local", substrate=LocalSubstrate(local))

    return open_client


def _keep_home_clean(folder: Path) -> None:
    """Send what the SDK caches about this chain to a private folder: it is no chain of the user's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["BTCLI_TOKEN_SYMBOLS_CACHE"] = str(folder / "token_symbols.json")
    os.environ["BITTENSOR_RUNTIME_CACHE_DIR"] = str(folder / "runtime")
