"""A reverse proxy that loses requests and answers when a test says so."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web


class SwitchedProxy:
    """A reverse proxy that notes every POST with its status, and fails when told to.

    `cut_before`: requests to these paths never reach the API. `cut_after`: they do, but the answer is lost,
    as often as the count says.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self.url = ""
        self.posts: list[tuple[str, int]] = []
        self._bodies: list[tuple[str, bytes]] = []
        self.cut_before: dict[str, int] = {}
        self.cut_after: dict[str, int] = {}
        self.replies: dict[str, list[web.Response]] = {}
        """Scripted answers that never reach the API, by path."""

    def accepted(self, path: str) -> int:
        """How many POSTs to a path the API has taken."""
        return self.posts.count((path, 200))

    def answers(self, path: str) -> list[dict[str, Any]]:
        """What the API said to the POSTs to a path that it has taken."""
        return [json.loads(body) for where, body in self._bodies if where == path]

    @classmethod
    @asynccontextmanager
    async def serve(cls, target: str) -> AsyncIterator["SwitchedProxy"]:
        """Listen on a free port."""
        proxy = cls(target)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", proxy._forward)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with aiohttp.ClientSession() as proxy._session:
                yield proxy
        finally:
            await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self._takes(self.cut_before, request.path):
            return _hang_up(request)
        if self.replies.get(request.path):
            return self.replies[request.path].pop(0)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "content-length")}
        url = f"{self._target}{request.rel_url.raw_path_qs}"
        try:
            asked = await self._session.request(request.method, url, data=body or None, headers=headers)
        except aiohttp.ClientError:
            return _hang_up(request)
        async with asked as answer:
            try:
                data = await answer.read()
            except aiohttp.ClientError:
                return _hang_up(request)
            if request.method == "POST":
                self.posts.append((request.path, answer.status))
                if answer.status == 200:
                    self._bodies.append((request.path, data))
        if self._takes(self.cut_after, request.path):
            return _hang_up(request)
        passed = {k: v for k, v in answer.headers.items() if k in ("Content-Type", "Retry-After")}
        return web.Response(body=data, status=answer.status, headers=passed)

    @staticmethod
    def _takes(counts: dict[str, int], path: str) -> bool:
        left = counts.get(path, 0)
        counts[path] = max(0, left - 1)
        return left > 0


def _hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response(status=500)
