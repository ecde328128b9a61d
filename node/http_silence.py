"""Connections that never get as far as a request: aiohttp itself times only those between two requests."""

import asyncio
from typing import Final

from aiohttp import web

HEADERS_S: Final = 10.0
"""A connection that has not sent the headers of its first request by then is closed."""
LOOK_S: Final = 0.25
"""Between two looks at the connections that are still silent."""


async def close_silent(runner: web.AppRunner, spoken: set[asyncio.BaseProtocol]) -> None:
    """Close silent connections, for ever; `spoken`: those that have sent a request, forgotten when closed."""
    loop = asyncio.get_running_loop()
    since: dict[asyncio.BaseProtocol, float] = {}
    while True:
        server = runner.server
        connections = set(server.connections) if server is not None else set()
        spoken &= connections
        silent = connections - spoken
        since = {connection: since.get(connection, loop.time()) for connection in silent}
        for connection, started_s in since.items():
            transport = getattr(connection, "transport", None)
            if loop.time() - started_s > HEADERS_S and transport is not None:
                transport.abort()
        await asyncio.sleep(LOOK_S)
