"""A running inference server with the tiny model in a real worker process."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from bittensor import sp_core

from node.chain.interface import Metagraph, Neuron
from node.metrics import Metrics
from node.settings_model import ChainSection, InferenceSection, NodeSection, Settings
from protocol.types import BlockHeight, Coldkey, Hotkey, Uid
from roles.inference.callers import MetagraphProvider
from roles.inference.server import InferenceServer


def key(name: str) -> Any:
    """A hotkey of that name, always the same."""
    return sp_core.Keypair.create_from_uri(f"//{name}")


def local_settings(model: Path, **inference: Any) -> Settings:
    """Settings of the local chain on the CPU."""
    return Settings(
        node=NodeSection(device="cpu", drain_s=5.0),
        chain=ChainSection(network="local"),
        inference=InferenceSection(host="127.0.0.1", port=0, reference_model=str(model), **inference),
    )


def neuron(hotkey: str, uid: int, *, permit: bool) -> Neuron:
    """A registered hotkey."""
    return Neuron(
        hotkey=Hotkey(hotkey),
        coldkey=Coldkey(hotkey),
        uid=Uid(uid),
        stake_tao=1000.0,
        validator_permit=permit,
        axon=None,
        last_update=BlockHeight(0),
    )


def metagraph_of(**permits: bool) -> Metagraph:
    """A subnet of these keys."""
    neurons = [
        neuron(key(name).ss58_address, uid, permit=permit)
        for uid, (name, permit) in enumerate(permits.items())
    ]
    return Metagraph(height=BlockHeight(1), neurons={one.hotkey: one for one in neurons}, owner_hotkey=None)


@dataclass(frozen=True)
class Reply:
    """An answer as it came."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def detail(self) -> str:
        """What an error says."""
        return str(self.body["detail"])


@dataclass(frozen=True)
class Running:
    """One server and a client for it."""

    server: InferenceServer
    metrics: Metrics
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server.port}"

    async def get(self, path: str) -> Reply:
        """GET."""
        async with self.session.get(self.url + path) as response:
            return await self._reply(response)

    async def post(self, body: Any = None, *, headers: dict[str, str] | None = None, **fields: Any) -> Reply:
        """POST /inference: bytes as they are, anything else as JSON."""
        # A stream, because aiohttp warns of large bodies that are not.
        given = io.BytesIO(body) if isinstance(body, bytes) else None
        json = None if isinstance(body, bytes) else (body if body is not None else fields)
        async with self.session.post(
            self.url + "/inference", data=given, json=json, headers=headers
        ) as response:
            return await self._reply(response)

    async def _reply(self, response: aiohttp.ClientResponse) -> Reply:
        is_json = response.content_type == "application/json"
        return Reply(
            response.status,
            await response.json() if is_json else await response.text(),
            dict(response.headers),
        )


@asynccontextmanager
async def running(
    settings: Settings, signer: Any | None, metagraph: MetagraphProvider | None = None, *, wait: bool = True
) -> AsyncIterator[Running]:
    """Run a server; with `wait`, its model answers before the block begins."""
    metrics = Metrics(role="inference")
    server = InferenceServer(settings, signer, metagraph, metrics=metrics)
    await server.start()
    task = asyncio.create_task(server.run())
    try:
        async with aiohttp.ClientSession() as session:
            one = Running(server, metrics, session)
            if wait:
                await until(lambda: is_ready(one), 240.0)
            yield one
            assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert server.model.pid is None


async def is_ready(one: Running) -> bool:
    """Whether the server says so."""
    return (await one.get("/readyz")).status == 200


async def until(condition: Callable[[], Awaitable[Any]], timeout_s: float = 60.0) -> Any:
    """Wait for a condition to give something true, and return it."""
    async with asyncio.timeout(timeout_s):
        while not (found := await condition()):
            await asyncio.sleep(0.02)
    return found
