"""Calls a miner's inference server: addresses that strangers chose, answers that strangers wrote."""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import aiohttp
from pydantic import ValidationError
from yarl import URL

from node.chain.interface import AxonAddress
from node.http_answers import RawAnswer, detail_of
from node.http_client import new_session
from protocol.auth import sign_request
from protocol.errors import InvalidMessage, Unavailable
from protocol.messages import InferenceAnswer, InferenceRequest
from protocol.signing import Signer
from protocol.types import Hotkey

PATH: Final = "/inference"
CHUNK_BYTES: Final = 65_536
MAX_ERROR_BYTES: Final = 4096
GLOBAL_UNICAST_V6: Final = ipaddress.ip_network("2000::/3")
TUNNELS: Final = (ipaddress.ip_network("2002::/16"), ipaddress.ip_network("2001::/32"))
"""6to4 and Teredo: they wrap an IPv4 address, which may be anything."""


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """A miner's answer, and how long it took from the first byte sent to the last byte read."""

    answer: InferenceAnswer
    seconds: float


def check_address(axon: AxonAddress, *, allow_loopback: bool, own_ips: Collection[str] = ()) -> URL:
    """The URL to call at a miner's axon.

    Only global unicast addresses of other machines are called, so that nobody can make this validator talk
    to its own network; on the local chain loopback is allowed too. Raises Unavailable with the reason.
    """
    try:
        ip = ipaddress.ip_address(axon.ip)
    except ValueError as error:
        raise Unavailable(f"axon address {axon.ip[:64]!r} is not an IP address") from error
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if not 1 <= axon.port <= 65535:
        raise Unavailable(f"axon port {axon.port} is outside 1..65535")
    url = URL.build(scheme="http", host=str(ip), port=axon.port, path=PATH)
    if allow_loopback and ip.is_loopback:
        return url
    if not _is_global_unicast(ip):
        raise Unavailable(f"axon address {ip} is not a global unicast address, so it is not called")
    if str(ip) in own_ips or _is_of_this_machine(ip):
        raise Unavailable(f"axon address {ip} is this validator's own, so it is not called")
    return url


async def ask_miner(
    url: URL,
    request: InferenceRequest,
    *,
    hotkey: Hotkey,
    signer: Signer,
    timeout_s: float,
    max_answer_bytes: int,
) -> TimedAnswer:
    """Send one signed request, once; redirects are not followed.

    Raises Unavailable when nobody answered (connection, time, any status but 200), InvalidMessage when the
    answer is too large or does not follow the protocol.
    """
    body = request.model_dump_json(exclude_none=True).encode()
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    headers |= sign_request(signer, method="POST", path=url.raw_path_qs, body=body, receiver=hotkey)
    started = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s), new_session() as session:
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                is_answer = response.status == 200
                raw = await _read(response, max_answer_bytes if is_answer else MAX_ERROR_BYTES, is_answer)
            seconds = time.perf_counter() - started
    except TimeoutError as error:
        raise Unavailable(f"no answer within {timeout_s:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise Unavailable(f"not reachable: {type(error).__name__}: {error}"[:300]) from error
    if 300 <= raw.status < 400:
        raise Unavailable(f"answered {raw.status}: redirects are not followed")
    if not is_answer:
        raise Unavailable(f"answered {raw.status}: {detail_of(raw)}")
    return TimedAnswer(_parse(raw), seconds)


async def _read(response: aiohttp.ClientResponse, limit_bytes: int, is_answer: bool) -> RawAnswer:
    parts = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        parts += chunk
        if len(parts) > limit_bytes:
            response.close()
            if is_answer:
                raise InvalidMessage(f"the answer is larger than the {limit_bytes} bytes that it needs")
            break
    return RawAnswer(response.status, response.headers.copy(), bytes(parts[:limit_bytes]))


def _parse(raw: RawAnswer) -> InferenceAnswer:
    encoding = raw.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise InvalidMessage(f"the answer came encoded as {encoding[:50]!r}, which was not asked for")
    try:
        return InferenceAnswer.model_validate_json(raw.body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"]) or "the body"
        raise InvalidMessage(f"the answer does not follow the protocol ({where}: {first['msg']})") from error


def _is_global_unicast(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if not ip.is_global or ip.is_multicast or ip.is_reserved:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return True
    return ip in GLOBAL_UNICAST_V6 and not any(ip in tunnel for tunnel in TUNNELS)


def _is_of_this_machine(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """True when packets to `ip` would not leave this machine; sends none."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(ip), 9))
            return ipaddress.ip_address(probe.getsockname()[0].partition("%")[0]) == ip
    except OSError:
        # No route: the call itself will say so.
        return False
