"""The real process: quick to answer, durable, and clear about what it cannot do."""

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import tomli_w

from node.settings_model import Settings
from roles.api.database import SQLITE_FILE
from tests.roles.api.harness import Client, Code, Key, Subnet, commit_message, key, registration

START_S = 120.0


@pytest.fixture
def config(base_settings: Settings, migrated: Path, tmp_path: Path) -> Path:
    """config.toml of an API on SQLite, whose database is ready."""
    settings = base_settings
    shutil.copyfile(migrated, settings.node.data_dir / SQLITE_FILE)
    path = tmp_path / "config.toml"
    path.write_text(
        tomli_w.dumps(
            {
                "node": {"data_dir": str(settings.node.data_dir), "log_format": "json"},
                "chain": {"network": "local", "local_state": str(settings.chain.local_state)},
                "wallet": {"path": str(settings.wallet.path)},
                "api": {
                    "port": 0,
                    "writes_per_minute_per_ip": 100_000,
                    "writes_per_minute_per_hotkey": 100_000,
                },
            }
        )
    )
    return path


@asynccontextmanager
async def started(
    config: Path, **environment: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Client]]:
    """`quasar-node --role api` as an operator starts it; it ends with the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "roles",
        "--role",
        "api",
        "--config",
        str(config),
        cwd=config.parent,
        env={"PATH": os.environ["PATH"], "HOME": str(config.parent), **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(START_S):
            port = await _port(process.stderr)
        drain = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            client = Client(f"http://127.0.0.1:{port}", session)
            client.hotkey = (await client.get("/info")).body["hotkey"]
            yield process, client
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    await drain


async def _port(log: asyncio.StreamReader) -> int:
    lines = []
    async for line in log:
        lines.append(line.decode())
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry.get("event") == "listening":
                return int(entry["port"])
    raise AssertionError("".join(lines))


async def test_what_was_acknowledged_survives_sigkill(config: Path, subnet: Subnet) -> None:
    async with started(config) as (process, api):
        committed = await api.commit(subnet.miner, Code())
        submitted = await api.submit(subnet.rival, Code())
        process.kill()
        await process.wait()
    async with started(config) as (_, api):
        assert await api.commit(subnet.miner, Code()) == committed
        assert await api.submit(subnet.rival, Code()) == submitted
        assert len((await api.get("/submissions")).body) == 2


@pytest.fixture(params=["sqlite", "postgresql"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """What names the database to the process."""
    if request.param == "sqlite":
        return {}
    return {"DATABASE_URL": request.getfixturevalue("postgres_url").get_secret_value()}


@pytest.fixture
def many_sockets() -> Iterator[None]:
    """Room for a thousand connections at both ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 8192 else 8192, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_sockets")
async def test_sigkill_under_a_thousand_concurrent_writes_loses_and_doubles_nothing(
    config: Path, environment: dict[str, str], subnet: Subnet
) -> None:
    # More writes than are under way at once: however late the answers are read, the process dies before
    # all of them are answered.
    miners = [key(f"miner {number}") for number in range(150)]
    total = 8 * len(miners)
    for number in range(150):
        subnet.chain.register(registration(f"miner {number}", f"cold {number}"))
    acknowledged: dict[tuple[str, str], int] = {}
    refused: Counter[int] = Counter()
    turns = asyncio.Semaphore(1000)

    async def commit(api: Client, miner: Key, number: int) -> None:
        commitment_hash = f"{number:064x}"
        reply = await api.post("/commit_submission", commit_message(miner, commitment_hash))
        if reply.status != 200:
            refused[reply.status] += 1
            return
        known = acknowledged.setdefault((miner.ss58_address, commitment_hash), reply.body["submission_id"])
        assert known == reply.body["submission_id"]

    async with started(config, **environment) as (process, api):

        async def commit_until_the_kill(miner: Key, number: int) -> None:
            async with turns:
                while (miner.ss58_address, f"{number:064x}") not in acknowledged and set(refused) <= {503}:
                    await commit(api, miner, number)
            if len(acknowledged) == 100:
                process.kill()

        writers = (commit_until_the_kill(miner, number) for number in range(8) for miner in miners)
        await asyncio.gather(*writers, return_exceptions=True)
    before = dict(acknowledged)
    assert 100 <= len(before) < total, refused
    async with started(config, **environment) as (_, api):
        # Everybody asks again: what was acknowledged keeps its number, and nothing is there twice.
        while len(acknowledged) < total and set(refused) <= {503}:
            await asyncio.gather(
                *(
                    commit(api, miner, number)
                    for number in range(8)
                    for miner in miners
                    if (miner.ss58_address, f"{number:064x}") not in acknowledged
                )
            )
        assert {known: acknowledged[known] for known in before} == before
        for known, number in before.items():
            shown = (await api.get(f"/submissions/{number}")).body
            assert shown["miner_hotkey"] == known[0]
        pending = (await api.get("/pending_reveals")).body["pending_reveals"]
        assert sorted(row["submission_id"] for row in pending) == sorted(acknowledged.values())
        assert len(set(acknowledged.values())) == total
    assert set(refused) <= {503}


async def test_sigterm_ends_it_cleanly(config: Path) -> None:
    async with started(config) as (process, api):
        assert (await api.get("/health")).body == {"status": "ok"}
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(START_S):
            assert await process.wait() == 0


async def test_second_api_on_the_same_files_is_refused(config: Path) -> None:
    async with started(config):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "roles",
            "--role",
            "api",
            "--config",
            str(config),
            cwd=config.parent,
            env={"PATH": os.environ["PATH"], "HOME": str(config.parent)},
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await asyncio.wait_for(process.communicate(), START_S)
        assert process.returncode == 75
        assert b"in use by process" in errors
        assert b"Traceback" not in errors


async def test_readiness_says_what_is_missing(config: Path, subnet: Subnet) -> None:
    async with started(config) as (_, api):
        async with asyncio.timeout(START_S):
            while (await api.get("/readyz")).status != 200:
                await asyncio.sleep(0.1)
        assert "quasar_evaluation_queue_depth 0.0" in (await api.get("/metrics")).body
