"""SIGKILL between commit and reveal: the restarted miner reveals exactly once."""

import asyncio
import os
import signal
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import tomli_w
from aiohttp import web

from roles.devnet.layout import Layout, Member, Scale, prepare
from roles.devnet.processes import Processes, log_tail
from tests.acceptance.subnet import until_up

pytestmark = pytest.mark.timeout(600)


class CountingProxy:
    """A reverse proxy that notes every POST with the status that it was answered with."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.posts: list[tuple[str, int]] = []

    async def before(self, path: str) -> None:
        """Called with the path of every POST before it is passed on."""

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        async with aiohttp.ClientSession() as session:

            async def forward(request: web.Request) -> web.Response:
                body = await request.read()
                if request.method == "POST":
                    await self.before(request.path)
                headers = {
                    k: v for k, v in request.headers.items() if k.lower() not in ("host", "content-length")
                }
                url = f"{self._target}{request.rel_url.raw_path_qs}"
                async with session.request(request.method, url, data=body, headers=headers) as answer:
                    if request.method == "POST":
                        self.posts.append((request.path, answer.status))
                    return web.Response(
                        body=await answer.read(),
                        status=answer.status,
                        headers={"Content-Type": answer.headers.get("Content-Type", "application/json")},
                    )

            app = web.Application()
            app.router.add_route("*", "/{path:.*}", forward)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
            try:
                yield f"http://127.0.0.1:{port}"
            finally:
                await runner.cleanup()

    def accepted(self, path: str) -> int:
        return self.posts.count((path, 200))


class HoldingProxy(CountingProxy):
    """A proxy that keeps POSTs to one path to itself, as if the way to the API were cut."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.held: set[str] = set()
        self.waiting: list[str] = []

    async def before(self, path: str) -> None:
        """Wait for ever at a path that is held."""
        if path in self.held:
            self.waiting.append(path)
            await asyncio.Event().wait()


def _reconfigure(member: Member, api_url: str) -> None:
    config = tomllib.loads(member.config_file.read_text())
    config["api"]["url"] = api_url
    config["miner"]["serve_inference"] = False
    member.config_file.write_text(tomli_w.dumps(config))


async def _pending(session: aiohttp.ClientSession, api_url: str) -> list[dict[str, object]]:
    async with session.get(f"{api_url}/pending_reveals") as response:
        response.raise_for_status()
        return list((await response.json())["pending_reveals"])


async def _detail(session: aiohttp.ClientSession, layout: Layout, member: Member) -> dict[str, object]:
    async with session.get(f"{layout.api_url}/submissions?hotkey={member.hotkey}&limit=10") as response:
        response.raise_for_status()
        details = await response.json()
    assert len(details) == 1
    return dict(details[0])


async def test_miner_killed_between_commit_and_reveal_reveals_exactly_once(tmp_path: Path) -> None:
    layout = prepare(tmp_path / "devnet", scale=Scale.short(), device="cpu")
    miner = layout.wrong
    processes = Processes()
    proxy = HoldingProxy(layout.api_url)
    proxy.held = {"/reveal_submission"}
    try:
        await processes.start(layout.api)
        async with aiohttp.ClientSession() as session, proxy.serve() as proxy_url:
            await until_up(layout.api_url)
            _reconfigure(miner, proxy_url)
            await processes.start(miner)
            async with asyncio.timeout(90):
                while not await _pending(session, layout.api_url) or not proxy.accepted("/commit_submission"):
                    processes.check()
                    await asyncio.sleep(0.05)

            await _kill(processes, miner)
            assert proxy.accepted("/commit_submission") == 1
            assert proxy.accepted("/reveal_submission") == 0
            proxy.held = set()

            await processes.start(miner)
            async with asyncio.timeout(90):
                while proxy.accepted("/reveal_submission") == 0:
                    processes.check()
                    await asyncio.sleep(0.05)
            # Time for a second reveal that must not come.
            await asyncio.sleep(3.0)
            assert proxy.accepted("/reveal_submission") == 1, log_tail(miner)
            detail = await _detail(session, layout, miner)
            assert detail["state"] == "queued"
            assert await _pending(session, layout.api_url) == []
    finally:
        await processes.stop()


async def _kill(processes: Processes, member: Member) -> None:
    process = processes.forget(member)
    os.killpg(process.pid, signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
