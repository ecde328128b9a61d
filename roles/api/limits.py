"""How much one caller may ask: sliding windows per hotkey and per address."""

import ipaddress
import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from node.clock import Clock
from node.http_server import ApiProblem
from protocol.errors import ConfigError

WINDOW_S: Final = 60.0
MAX_KEYS: Final = 100_000
IPV6_PREFIX: Final = 64
"""A customer usually holds a whole /64."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class SlidingWindow:
    """Counts what each key did within the last minute."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        self._taken: dict[str, deque[float]] = {}

    def take(self, key: str) -> float | None:
        """Count one act of `key` and return None, or the seconds until it may act again."""
        now = self._clock.monotonic()
        if len(self._taken) >= MAX_KEYS:
            self._forget(now)
        moments = self._taken.setdefault(key, deque())
        while moments and moments[0] <= now - WINDOW_S:
            moments.popleft()
        if len(moments) >= self._limit:
            return moments[0] + WINDOW_S - now
        moments.append(now)
        return None

    def _forget(self, now: float) -> None:
        self._taken = {
            key: moments for key, moments in self._taken.items() if moments and moments[-1] > now - WINDOW_S
        }


class Limits:
    """Refuses callers that write too often; `trusted_proxies` are addresses or networks in CIDR form."""

    def __init__(
        self, clock: Clock, *, per_hotkey: int, per_address: int, trusted_proxies: Sequence[str]
    ) -> None:
        self._hotkeys = SlidingWindow(per_hotkey, clock)
        self._addresses = SlidingWindow(per_address, clock)
        self._per_hotkey = per_hotkey
        self._per_address = per_address
        self._trusted = _networks(trusted_proxies)

    def check_address(self, request: web.Request) -> None:
        """Count a write of the request's address; raises ApiProblem 429 with Retry-After."""
        address = self.address_of(request)
        wait_s = self._addresses.take(address)
        if wait_s is not None:
            raise _too_many(f"address {address}", self._per_address, wait_s)

    def check_hotkey(self, hotkey: str) -> None:
        """Count a write of a hotkey; raises ApiProblem 429 with Retry-After."""
        wait_s = self._hotkeys.take(hotkey)
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


def _networks(texts: Sequence[str]) -> tuple[Network, ...]:
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError as error:
            raise ConfigError(
                f"api.trusted_proxies: {text!r} is not an address or network: {error}"
            ) from error
    return tuple(networks)


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
