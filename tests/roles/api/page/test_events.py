"""The stream of events: what a reader gets, resumes with, and cannot do to the server."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from node.ports import free_port
from protocol.verdicts import LogitOutcome
from roles.api.page import handlers, live
from roles.api.page.reader import PageReader
from roles.api.page.rendering import SECTIONS
from tests.requirements import missing
from tests.roles.api.harness import Client, Subnet, key, running, until, with_api
from tests.roles.api.page.populated import OTHERS, direct, page_settings

PATIENCE_S = 120.0


@dataclass
class Event:
    """One message of a stream."""

    id: str
    parts: dict[str, str]


class Stream:
    """A reader of /events."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.times: list[datetime] = []

    async def next(self) -> Event:
        """The next event with news; the times that come before it are noted."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE_S):
            while True:
                line = (await self.response.content.readuntil(b"\n")).decode().rstrip("\n")
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                    continue
                if fields.get("event") == "parts":
                    return Event(fields["id"], json.loads(fields["data"]))
                if fields.get("event") == "time":
                    self.times.append(datetime.fromisoformat(fields["data"]))
                fields = {}

    async def with_part(self, name: str) -> Event:
        """The next event that brings that part."""
        event = await self.next()
        while name not in event.parts:
            event = await self.next()
        return event

    async def until_end(self) -> None:
        """Read until the server closes."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.response.content.read(65_536):
                pass


@asynccontextmanager
async def listening(url: str, *, since: str = "", last_event_id: str = "") -> AsyncIterator[Stream]:
    """A reader with a connection of its own, as a browser has one."""
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    connector = aiohttp.TCPConnector(limit=0)
    # Parts come in one line each, however long.
    async with (
        aiohttp.ClientSession(connector=connector, read_bufsize=2**20) as session,
        session.get(
            f"{url}/events?since={since}", headers=headers, timeout=aiohttp.ClientTimeout()
        ) as answer,
    ):
        assert answer.status == 200, await answer.text()
        yield Stream(answer)


async def test_new_reader_gets_everything_then_only_changes(site: Client, populated: Subnet) -> None:
    async with listening(site.url) as stream:
        first = await stream.next()
        assert set(first.parts) == set(SECTIONS)
        assert "431,200,000" in first.parts["leaderboard"]
        await direct(site, key(OTHERS[0]), 200_000)
        changed = await stream.with_part("submissions")
        assert "leaderboard" not in changed.parts
        assert "#19" in changed.parts["submissions"]
        assert stream.times == sorted(stream.times)
        assert changed.id != first.id


async def test_headers_keep_proxies_from_holding_events_back(site: Client) -> None:
    async with listening(site.url) as stream:
        headers = stream.response.headers
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["Cache-Control"] == "no-store, no-transform"


async def test_reader_resumes_where_it_was(site: Client, populated: Subnet) -> None:
    async with listening(site.url) as stream:
        seen = await stream.next()
    await site.check_logits(populated.validator, key(OTHERS[0]), LogitOutcome.PASSED)
    async with listening(site.url, last_event_id=seen.id) as stream:
        missed: set[str] = set()
        while "leaderboard" not in missed:
            missed |= (await stream.next()).parts.keys()
    assert "pending" not in missed
    # The id of the page that the browser was given works as well.
    async with listening(site.url, since=seen.id) as stream:
        assert set((await stream.next()).parts) != set(SECTIONS)


@pytest.mark.parametrize("known", ["0badf00d-3", "nonsense", "{epoch}-99999", "{epoch}-٣", "{epoch}--1"])
async def test_unknown_position_gets_everything(site: Client, known: str) -> None:
    async with listening(site.url) as stream:
        epoch = (await stream.next()).id.partition("-")[0]
    async with listening(site.url, since=known.format(epoch=epoch)) as stream:
        assert set((await stream.next()).parts) == set(SECTIONS)


async def test_reader_with_everything_waits_in_a_quiet_stream(
    site: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "HEARTBEAT_S", 0.1)

    async def knows_the_chain() -> bool:
        return "Heights are the last ones known" not in (await site.get("/")).body

    # That is news as well.
    await until(knows_the_chain)
    async with listening(site.url) as stream:
        seen = await stream.next()
    async with listening(site.url, since=seen.id) as stream:
        news = asyncio.create_task(stream.next())
        async with asyncio.timeout(PATIENCE_S):
            while len(stream.times) < 3:
                await asyncio.sleep(0.05)
        assert not news.done()
        news.cancel()
        await asyncio.wait({news})
        assert abs(datetime.now(UTC) - stream.times[-1]) < timedelta(seconds=30)


async def test_many_readers_share_one_producer(site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_LISTENERS_PER_ADDRESS", 100)
    reads = 0
    front = PageReader.front

    async def counted(reader: PageReader) -> Any:
        nonlocal reads
        reads += 1
        return await front(reader)

    monkeypatch.setattr(PageReader, "front", counted)
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(listening(site.url)) for _ in range(50)]
        await asyncio.gather(*(stream.next() for stream in streams))
        for _ in range(50):
            assert (await site.get("/")).status == 200
        await asyncio.sleep(1.0)
        assert "quasar_page_listeners 50.0" in (await site.get("/metrics")).body
        # Once a second, whoever asks.
        assert 1 <= reads <= loop.time() - started + 1


async def test_page_that_cannot_be_made_ends_neither_the_api_nor_the_stream(
    site: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(site.url) as stream:
        await stream.next()
        front = PageReader.front
        asked = asyncio.Event()

        async def broken(_: PageReader) -> Any:
            asked.set()
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(PageReader, "front", broken)
        async with asyncio.timeout(PATIENCE_S):
            await asked.wait()
        assert (await site.get("/health")).status == 200
        monkeypatch.setattr(PageReader, "front", front)
        await direct(site, key(OTHERS[0]), 200_000)
        assert "#19" in (await stream.with_part("submissions")).parts["submissions"]


async def test_seats_are_bounded(site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_LISTENERS_PER_ADDRESS", 2)
    async with listening(site.url), listening(site.url):
        reply = await site.get("/events")
        assert (reply.status, reply.headers["Retry-After"]) == (429, "30")
        assert "address 127.0.0.1 listens 2 times already" in reply.detail
        monkeypatch.setattr(live, "MAX_LISTENERS", 2)
        reply = await site.get("/events")
        assert (reply.status, reply.headers["Retry-After"]) == (503, "30")


async def test_asking_for_the_head_alone_takes_no_seat(site: Client) -> None:
    assert (await site.send("HEAD", "/events")).status == 405


async def test_seat_of_a_reader_who_left_is_free_again(site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "HEARTBEAT_S", 0.1)
    async with listening(site.url) as stream:
        await stream.next()

    async def is_free() -> bool:
        return "quasar_page_listeners 0.0" in (await site.get("/metrics")).body

    await until(is_free, PATIENCE_S)


async def test_streams_end_when_the_server_stops(populated: Subnet) -> None:
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        settings = page_settings(populated)
        node = settings.node.model_copy(update={"drain_s": 300.0})
        async with running(settings.model_copy(update={"node": node})) as api:
            stream = await stack.enter_async_context(listening(api.url))
            await stream.next()
            stopped = loop.time()
        # Well before the five minutes that running requests are given.
        assert loop.time() - stopped < 60.0
        with contextlib.suppress(aiohttp.ClientPayloadError):
            await stream.until_end()


async def test_slow_reader_is_cut_off_and_holds_nothing(
    populated: Subnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "WRITE_PATIENCE_S", 1.0)
    monkeypatch.setattr(handlers, "HEARTBEAT_S", 0.001)
    # A message larger than what the kernel takes for a reader who does not read.
    made = live.LivePage.message
    filler = b":" + b"x" * 4_000_000 + b"\n\n"
    sizes: list[int] = []

    def large(page: live.LivePage, known: int | None) -> tuple[bytes | None, int]:
        message, version = made(page, known)
        sizes.append(len(filler))
        return (message or b"") + filler, version

    monkeypatch.setattr(live.LivePage, "message", large)
    async with running(page_settings(populated)) as api:
        host, port = api.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(reader, b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")

            async def is_gone() -> bool:
                metrics = (await api.get("/metrics")).body
                return bool(sizes) and "quasar_page_listeners 0.0" in metrics

            await until(is_gone, PATIENCE_S)
        # It was not written to again and again: the server waited for it, and gave up.
        assert len(sizes) < 10


NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
NGINX_CONFIG = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {target};
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
}}
"""


@asynccontextmanager
async def nginx(folder: Path, target: str) -> AsyncIterator[str]:
    """A real nginx with its buffering as it comes, in front of the API."""
    if NGINX is None:
        missing("nginx is missing: install it (Debian: apt-get install nginx-light)")
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX_CONFIG.format(folder=folder, port=port, target=target))
    process = await asyncio.create_subprocess_exec(NGINX, "-c", str(config), "-e", f"{folder}/start.log")
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as session:

            async def answers() -> bool:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with session.get(f"{url}/health") as answer:
                        return answer.status == 200
                return False

            await until(answers, PATIENCE_S)
        yield url
    finally:
        process.terminate()
        await process.wait()


async def test_events_pass_through_nginx_as_they_happen(populated: Subnet, tmp_path: Path) -> None:
    settings = with_api(page_settings(populated), trusted_proxies=("127.0.0.1",))
    async with running(settings) as api, nginx(tmp_path, api.url) as url, listening(url) as stream:
        await stream.next()
        await direct(api, key(OTHERS[0]), 200_000)
        event = await stream.with_part("submissions")
        assert "#19" in event.parts["submissions"]
