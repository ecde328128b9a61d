"""What goes wrong in the field: the database dies, the disk is full, clocks jump, clients misbehave."""

import asyncio
import contextlib
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from pydantic import SecretStr

from node.settings_model import Settings
from roles.api.database import SQLITE_FILE
from tests.roles.api.harness import (
    Client,
    Code,
    JumpingClock,
    Reply,
    Subnet,
    commit_message,
    running,
    until,
    with_api,
)
from tests.roles.postgres import postgres_server

MANY = {"writes_per_minute_per_ip": 100_000, "writes_per_minute_per_hotkey": 100_000}


@pytest.mark.parametrize("how", ["restart", "crash"])
async def test_postgres_goes_away_under_load(base_settings: Settings, subnet: Subnet, how: str) -> None:
    """503 with Retry-After while it is away, then everything works again, and nothing taken is lost."""
    miners = (subnet.miner, subnet.sibling, subnet.rival)
    taken: dict[tuple[int, str], int] = {}
    statuses: set[int] = set()
    stopping = asyncio.Event()

    async def commit(api: Client, worker: int, commitment_hash: str) -> Reply:
        reply = await api.post("/commit_submission", commit_message(miners[worker % 3], commitment_hash))
        if reply.status == 200:
            number = reply.body["submission_id"]
            # Asked again or for the first time, before or after: the same number.
            assert taken.setdefault((worker, commitment_hash), number) == number
        return reply

    async def write_and_read(api: Client, worker: int) -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            for reply in (
                await commit(api, worker, f"{worker:032x}{number % 4:032x}"),
                await api.get("/submissions?limit=5"),
            ):
                statuses.add(reply.status)
                assert reply.status == 200 or "Retry-After" in reply.headers, reply

    with postgres_server() as server:
        url = SecretStr(server.url(server.create_database()))
        async with running(with_api(base_settings, database_url=url, **MANY)) as api:
            workers = [asyncio.create_task(write_and_read(api, worker)) for worker in range(9)]
            await until(lambda: _reached(statuses, 200))
            await asyncio.to_thread(server.stop if how == "restart" else server.kill)
            await until(lambda: _reached(statuses, 503), timeout_s=120)
            assert (await api.get("/readyz")).status == 503
            assert (await api.get("/health")).status == 200
            await asyncio.to_thread(server.start)

            async def ready() -> bool:
                return (await api.get("/readyz")).status == 200

            await until(ready, timeout_s=120)
            stopping.set()
            await asyncio.gather(*workers)
            assert statuses == {200, 503}
            for worker, commitment_hash in list(taken):
                assert (await commit(api, worker, commitment_hash)).status == 200
            shown = [row["submission_id"] for row in (await api.get("/submissions?limit=500")).body]
            assert set(taken.values()) <= set(shown)
            assert len(shown) == len(set(shown)) <= 36


async def _reached(statuses: set[int], status: int) -> bool:
    return status in statuses


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this test mounts a small file system, which only root may do")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_full_disk(base_settings: Settings, migrated: Path, small_disk: Path, subnet: Subnet) -> None:
    path = small_disk / SQLITE_FILE
    path.write_bytes(migrated.read_bytes())
    settings = with_api(base_settings, database_url=SecretStr(f"sqlite:///{path}"), **MANY)
    async with running(settings) as api:
        taken = await api.commit(subnet.miner, Code("before"))
        ballast = small_disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        replies = [
            await api.post("/commit_submission", commit_message(miner, f"{number:064x}"))
            for miner in (subnet.rival, subnet.sibling)
            for number in range(15)
        ]
        refused = next(reply for reply in replies if reply.status != 200)
        assert refused.status == 503
        assert "full" in refused.detail
        assert "Retry-After" in refused.headers
        assert "full" in (await api.get("/readyz")).detail
        assert (await api.get(f"/submissions/{taken.submission_id}")).status == 200
        ballast.unlink()
        message = commit_message(subnet.sibling, "cd" * 32)
        assert (await api.post("/commit_submission", message)).status == 200
        assert await api.commit(subnet.miner, Code("before")) == taken
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_clock_that_jumps(settings: Settings, subnet: Subnet) -> None:
    clock = JumpingClock()
    async with running(settings, clock) as api:
        await api.submit(subnet.miner, Code())
        lease = await api.lease(subnet.validator)
        assert lease is not None
        headers = api.signature(subnet.validator, "POST", "/evaluations/lease", b"")
        assert (await api.send("POST", "/evaluations/lease", b"", headers)).status == 204

        clock.shift = timedelta(hours=49)
        late = (await api.get("/get_current_round")).body
        assert late["round_number"] == 2
        # Signed by a clock that is right, and refused by one that is wrong: a sentence, not a crash.
        assert (await api.post("/evaluations/lease", b"", subnet.validator)).status == 401

        clock.shift = timedelta(0)
        back = (await api.get("/get_current_round")).body
        assert (back["round_number"], back["end_time"]) == (2, late["end_time"])
        assert (await api.send("POST", "/evaluations/lease", b"", headers)).status == 401
        assert (await api.judge(subnet.validator, lease)).status == 200
        await api.submit(subnet.rival, Code())
        assert (await api.get("/submissions/2")).body["state"] == "queued"


async def test_clients_that_never_finish_a_request(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow loris: connections that say nothing, or never end their headers or body, are closed."""
    monkeypatch.setattr("node.http_server.BODY_S", 0.5)
    host, port = api.url.removeprefix("http://").split(":")
    starts = (
        b"",
        b"POST /submit_kernel HTTP/1.1\r\nHost: api\r\nX-Slow",
        b"POST /submit_kernel HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\n"
        b"Content-Length: 5000\r\n\r\n{",
    )
    connections = [await asyncio.open_connection(host, int(port)) for _ in range(20) for _ in starts]
    for index, (_, writer) in enumerate(connections):
        writer.write(starts[index % len(starts)])
        await writer.drain()
    assert (await api.get("/health")).status == 200
    async with asyncio.timeout(60):
        for reader, _ in connections[2 :: len(starts)]:
            assert b"408" in (await reader.read()).split(b"\r\n")[0]
        # Only now: however long it took, everybody has said what it was to say.
        monkeypatch.setattr("node.http_silence.HEADERS_S", 0.5)
        for index, (reader, _) in enumerate(connections):
            assert index % len(starts) == 2 or await reader.read() == b""
    for _, writer in connections:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    assert (await api.get("/health")).status == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_of_a_hundred_megabytes(api: Client, chunked: bool) -> None:
    chunk, count = b" " * 1_000_000, 100
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(count):
            sent += len(chunk)
            yield chunk

    headers = {"Content-Type": "application/json"}
    if not chunked:
        headers["Content-Length"] = str(len(chunk) * count)
    try:
        async with api.session.post(api.url + "/submit_kernel", data=body(), headers=headers) as reply:
            assert reply.status == 413
    except aiohttp.ClientError:
        # The server closed the connection on the one who went on sending.
        pass
    assert sent < 50 * len(chunk)
    assert (await api.get("/health")).status == 200
