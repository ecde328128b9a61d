"""How much one caller may ask: sliding windows per hotkey and per address."""

import functools
import ipaddress
import math
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

import sqlalchemy as sa
from aiohttp import web

from node.batches import Batches, Outcome
from node.clock import Clock
from node.http_server import ApiProblem
from protocol.errors import ConfigError
from roles.api import store_limits
from roles.api.database import Database

WINDOW_S: Final = 60.0
CLOCKS_APART_S: Final = 2.0
"""By how much the clocks of replicas may differ."""
MAX_GROUP: Final = 64
IPV6_PREFIX: Final = 64
"""A customer usually holds a whole /64."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Windows(Protocol):
    """Counts what each key did within the last minute."""

    async def take(self, key: str, limit: int) -> float | None:
        """Count one act of `key` and return None, or the seconds until it may act again."""
        ...


class MemoryWindows:
    """Windows of one process: enough where one process is all there is."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._taken: defaultdict[str, deque[float]] = defaultdict(deque)
        self._forgot_at_s = clock.monotonic()

    async def take(self, key: str, limit: int) -> float | None:
        """Count one act of `key` and return None, or the seconds until it may act again."""
        now_s = self._clock.monotonic()
        if now_s - self._forgot_at_s > WINDOW_S:
            self._forget(now_s)
        return slide(self._taken[key], now_s, limit)

    def _forget(self, now_s: float) -> None:
        idle = [key for key, moments in self._taken.items() if moments[-1] <= now_s - WINDOW_S]
        for key in idle:
            del self._taken[key]
        self._forgot_at_s = now_s


@dataclass(frozen=True, slots=True)
class _Act:
    key: str
    limit: int


class SharedWindows:
    """Windows that all replicas on one database share.

    Who asks while the database is busy shares the next transaction: in a burst, or behind a proxy, many ask
    for the same window, and would queue for its lock one after the other.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._forgot_at_s = float("-inf")
        self._batches = Batches(self._take_group, name="windows", most=MAX_GROUP)

    async def take(self, key: str, limit: int) -> float | None:
        """Count one act of `key` and return None, or the seconds until it may act again."""
        wait_s: float | None = await self._batches.ask(_Act(key, limit))
        return wait_s

    async def _take_group(self, acts: Sequence[_Act]) -> list[Outcome]:
        forgets = self._clock.monotonic() - self._forgot_at_s > WINDOW_S
        keys = {act.key for act in acts}

        def work(connection: sa.Connection) -> list[float | None]:
            # Only now it is this transaction's turn: others have acted while it waited.
            now = self._clock.now()
            if connection.dialect.name == "postgresql":
                # A count that a crash takes away costs nothing: nobody need wait for the disk.
                connection.execute(sa.text("SET LOCAL synchronous_commit = off"))
            if forgets:
                store_limits.forget_windows(connection, now - timedelta(seconds=2 * WINDOW_S))
            stored = store_limits.find_windows(connection, keys)
            windows = {key: without_future(stored.get(key, []), now.timestamp()) for key in keys}
            waits_s = [slide(windows[act.key], now.timestamp(), act.limit) for act in acts]
            store_limits.put_windows(connection, windows, set(stored), now)
            return waits_s

        waits_s = await self._database.write(work, turns={f"window:{key}" for key in keys})
        if forgets:
            self._forgot_at_s = self._clock.monotonic()
        return [Outcome(wait_s) for wait_s in waits_s]


def slide(moments: deque[float], now_s: float, limit: int) -> float | None:
    """Move a window on to `now_s`, and add now if it has room; else the seconds until it has.

    In place: a caller's next act must not cost more for all that it did within the minute.
    """
    while moments and moments[0] <= now_s - WINDOW_S:
        moments.popleft()
    if len(moments) >= limit:
        return moments[0] + WINDOW_S - now_s
    moments.append(now_s)
    return None


def without_future(moments: Sequence[float], now_s: float) -> deque[float]:
    """What a clock that was set back since does not know of; another replica's may be a little ahead."""
    return deque(moment for moment in moments if moment <= now_s + CLOCKS_APART_S)


class Limits:
    """Refuses callers that write too often."""

    def __init__(
        self, windows: Windows, *, per_hotkey: int, per_address: int, trusted_proxies: Sequence[Network]
    ) -> None:
        self._windows = windows
        self._per_hotkey = per_hotkey
        self._per_address = per_address
        self._trusted = trusted_proxies

    async def check_address(self, request: web.Request) -> None:
        """Count a write of the request's address; raises ApiProblem 429 with Retry-After."""
        address = self.address_of(request)
        wait_s = await self._windows.take(f"address:{address}", self._per_address)
        if wait_s is not None:
            raise _too_many(f"address {address}", self._per_address, wait_s)

    async def check_hotkey(self, hotkey: str) -> None:
        """Count a write of a hotkey; raises ApiProblem 429 with Retry-After."""
        wait_s = await self._windows.take(f"hotkey:{hotkey}", self._per_hotkey)
        if wait_s is not None:
            raise _too_many(f"hotkey {hotkey}", self._per_hotkey, wait_s)

    def address_of(self, request: web.Request) -> str:
        """The caller's address (IPv6: its /64); X-Forwarded-For counts only from a trusted proxy."""
        hops = [request.remote or ""]
        if self._is_trusted(hops[0]):
            forwarded = ",".join(request.headers.getall("X-Forwarded-For", []))
            hops += reversed([hop.strip() for hop in forwarded.split(",") if hop.strip()])
        # From our own end backwards: what lies behind the first stranger, a stranger wrote.
        client = next((hop for hop in hops if not self._is_trusted(hop)), hops[-1])
        return _group(client)

    def _is_trusted(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._trusted)


def _too_many(who: str, limit: int, wait_s: float) -> ApiProblem:
    seconds = max(1, math.ceil(wait_s))
    return ApiProblem(
        429,
        f"{who} has made {limit} writes within {WINDOW_S:.0f} s: wait {seconds} s",
        {"Retry-After": str(seconds)},
    )


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """`api.trusted_proxies`: addresses or networks in CIDR form. Raises ConfigError."""
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError as error:
            raise ConfigError(
                f"api.trusted_proxies: {text!r} is not an address or network: {error}"
            ) from error
    return tuple(networks)


@functools.lru_cache(maxsize=4096)
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _group(text: str) -> str:
    address = _address(text)
    if address is None:
        # A proxy that forwards something else than an address: all such callers share one window.
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
    return str(address)
