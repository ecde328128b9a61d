"""The real process: quick to answer, durable, and clear about what it cannot do."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import tomli_w

from node.settings_model import Settings
from tests.roles.api.harness import Client, Code, Key, Subnet

START_S = 30.0


@pytest.fixture
def config(settings: Settings, tmp_path: Path) -> Path:
    """config.toml of the API; the port is written into it by each start."""
    path = tmp_path / "config.toml"
    path.write_text(
        tomli_w.dumps(
            {
                "node": {"data_dir": str(settings.node.data_dir), "log_format": "json"},
                "chain": {"network": "local", "local_state": str(settings.chain.local_state)},
                "wallet": {"path": str(settings.wallet.path)},
                "api": {"port": 0},
            }
        )
    )
    return path


@asynccontextmanager
async def started(config: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Client]]:
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
        env={"PATH": os.environ["PATH"], "HOME": str(config.parent)},
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
        async with aiohttp.ClientSession() as session:
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


async def test_sigkill_under_concurrent_writes_loses_and_doubles_nothing(
    config: Path, subnet: Subnet
) -> None:
    acknowledged: dict[str, int] = {}
    miners = (subnet.miner, subnet.sibling, subnet.rival)

    async def commit(api: Client, miner: Key, number: int) -> None:
        answer = await api.commit(miner, Code(f"kernel {number}"))
        assert acknowledged.setdefault(answer.commitment_hash, answer.submission_id) == answer.submission_id

    async with started(config) as (process, api):
        tasks = [asyncio.create_task(commit(api, miner, number)) for number in range(10) for miner in miners]
        async with asyncio.timeout(START_S):
            while len(acknowledged) < 10:
                await asyncio.sleep(0)
        process.kill()
        await asyncio.gather(*tasks, return_exceptions=True)
    async with started(config) as (_, api):
        rows = (await api.get("/submissions?limit=500")).body
        assert set(acknowledged.values()) <= {row["submission_id"] for row in rows}
        # Everybody asks again: what was acknowledged keeps its number, and nothing is there twice.
        await asyncio.gather(*(commit(api, miner, number) for number in range(10) for miner in miners))
        rows = (await api.get("/submissions?limit=500")).body
        assert sorted(row["submission_id"] for row in rows) == sorted(acknowledged.values())
        assert len(rows) == 30


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
