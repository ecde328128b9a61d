"""How fast the page is with 100,000 submissions in the database, beside many readers of its events.

python -m benchmarks.page [--submissions 100000] [--readers 16] [--seconds 10] prints one JSON document. The
API is a process of its own with SQLite; the load comes from this one, over loopback. Every answer is checked.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import tomli_w
from bittensor import sp_core
from sqlalchemy import Connection, insert

from node.chain.local import LocalChain, Registration
from node.ports import free_port
from protocol.types import Coldkey, Hotkey
from roles.api.database import Database, database_url
from roles.api.schema import upgrade
from roles.api.tables import logit_checks, submissions, verdicts

MINERS = 250
"""As many as a subnet has slots for, beside its validators."""
START_S = 120.0
CONNECTIONS = 32
SEED = 7
LENGTHS = (100_000, 262_144, 500_000, 800_000, 1_000_000)


async def fill(folder: Path, count: int) -> None:
    """A chain with miners and a database in which they have submitted `count` judged kernels."""
    keys = [sp_core.Keypair.create_from_uri(f"//bench{number}").ss58_address for number in range(MINERS + 1)]
    validator, miners = keys[0], keys[1:]
    LocalChain.create(
        folder / "chain.sqlite",
        block_time_s=12.0,
        netuid=24,
        owner_hotkey=None,
        neurons=[
            Registration(Hotkey(validator), Coldkey(validator), 5000.0, True),
            *(Registration(Hotkey(miner), Coldkey(miner), 0.0, False) for miner in miners),
        ],
    ).close()
    (folder / "data").mkdir(mode=0o700)
    database = Database(database_url(None, folder / "data"))
    await upgrade(database)
    draw = random.Random(SEED)
    now = datetime.now(UTC)

    def work(connection: Connection) -> None:
        rows = [submission_row(number, draw, miners, now) for number in range(1, count + 1)]
        connection.execute(insert(submissions), rows)
        connection.execute(insert(verdicts), [verdict_row(row, validator) for row in rows])
        checks = [check_row(miner, validator, now) for miner in miners]
        connection.execute(insert(logit_checks), checks)

    await database.write(work)
    await database.close()


def submission_row(number: int, draw: random.Random, miners: list[str], now: datetime) -> dict[str, Any]:
    """A revealed and judged submission, one in three not passed; a hotkey has four in each of its rounds."""
    miner = miners[number % MINERS]
    has_passed = draw.random() > 1 / 3
    at = now - timedelta(days=400) + timedelta(seconds=300 * number)
    return {
        "id": number,
        "miner_hotkey": miner,
        "miner_coldkey": miner,
        "target_sequence_length": draw.choice(LENGTHS),
        "created_at": at,
        "commitment_hash": f"{number:064x}",
        "commit_block": 1,
        "commit_block_hash": f"0x{number:064x}",
        "reveal_block": 101,
        "expires_block": 401,
        "receipt_signature": "00" * 64,
        "commitment_salt": "ab" * 16,
        "fork_url": "https://github.com/miner/fork",
        "commit_hash": f"{number:040x}",
        "claimed_tokens_per_sec": 1000.0,
        "revealed_at": at,
        "code_fixed_at": at,
        "round_number": number // (4 * MINERS),
        "judged_at": at,
        "pooled_status": "passed" if has_passed else "wrong_output",
        "pooled_fault": "nobody" if has_passed else "miner",
        "pooled_tokens_per_sec": draw.lognormvariate(18.0, 0.8) if has_passed else None,
        "settled_at": at,
    }


def verdict_row(row: dict[str, Any], validator: str) -> dict[str, Any]:
    """The verdict on a submission."""
    return {
        "submission_id": row["id"],
        "validator_hotkey": validator,
        "lease_id": f"{row['id']:032x}",
        "attempt": 1,
        "is_final": True,
        "status": row["pooled_status"],
        "fault": row["pooled_fault"],
        "measured_tokens_per_sec": row["pooled_tokens_per_sec"],
        "spread": 0.01,
        "cosine_similarity": 0.9999,
        "max_abs_diff": 0.001,
        "relative_error": 0.004,
        "vram_mb": 4000.0,
        "gpu": "NVIDIA H200",
        "versions": {"torch": "2.13.0"},
        "rules_version": 1,
        "evidence": {"reason": "outputs agree", "trial_s": [0.0023] * 20},
        "signature": "00" * 64,
        "created_at": row["judged_at"],
    }


def check_row(miner: str, validator: str, now: datetime) -> dict[str, Any]:
    """A passed logit check."""
    return {
        "miner_hotkey": miner,
        "validator_hotkey": validator,
        "outcome": "passed",
        "reason": "",
        "checked_at": now,
        "signature": "00" * 64,
        "created_at": now,
    }


@asynccontextmanager
async def api_process(folder: Path) -> AsyncIterator[str]:
    """`quasar-node --role api` on those files."""
    port = free_port()
    config = {
        "node": {"data_dir": str(folder / "data"), "log_format": "json"},
        "chain": {"network": "local", "local_state": str(folder / "chain.sqlite")},
        "wallet": {"path": str(folder / "wallets")},
        "api": {"port": port},
    }
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    command = [sys.executable, "-m", "roles", "--role", "api", "--config", str(folder / "config.toml")]
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stderr=log, env=dict(os.environ))
        try:
            url = f"http://127.0.0.1:{port}"
            async with aiohttp.ClientSession() as session:
                deadline = time.perf_counter() + START_S
                while not await answers(session, f"{url}/health"):
                    if process.returncode is not None or time.perf_counter() > deadline:
                        raise SystemExit(f"the API does not start: {(folder / 'log').read_text()[-2000:]}")
                    await asyncio.sleep(0.1)
            yield url
        finally:
            process.terminate()
            await process.wait()


async def answers(session: aiohttp.ClientSession, url: str) -> bool:
    """True once the API listens."""
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientConnectionError:
        return False


async def one_after_another(
    session: aiohttp.ClientSession, urls: list[str], seconds: float
) -> dict[str, float]:
    """Latencies of one reader, in milliseconds."""
    return figures(await read(session, urls, time.perf_counter() + seconds), seconds)


async def together(session: aiohttp.ClientSession, urls: list[str], seconds: float) -> dict[str, float]:
    """Latencies and requests per second of many readers."""
    until = time.perf_counter() + seconds
    taken = await asyncio.gather(*(read(session, urls, until) for _ in range(CONNECTIONS)))
    return figures([one for many in taken for one in many], seconds)


async def read(session: aiohttp.ClientSession, urls: list[str], until: float) -> list[float]:
    """Ask for one address after the other and return the seconds that each took."""
    taken = []
    while time.perf_counter() < until:
        url = urls[len(taken) % len(urls)]
        started = time.perf_counter()
        async with session.get(url) as answer:
            body = await answer.read()
        taken.append(time.perf_counter() - started)
        if answer.status != 200 or b"</html>" not in body:
            raise SystemExit(f"{url} answered {answer.status}: {body[:200]!r}")
    return taken


def figures(taken: list[float], seconds: float) -> dict[str, float]:
    """What a list of seconds amounts to."""
    ordered = sorted(1000 * one for one in taken)
    return {
        "requests_per_s": round(len(taken) / seconds, 1),
        "median_ms": round(median(ordered), 2),
        "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 2),
        "max_ms": round(ordered[-1], 2),
    }


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Fill, start, warm up, measure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await fill(folder, options.submissions)
        async with api_process(folder) as url, AsyncExitStack() as stack:
            connector = aiohttp.TCPConnector(limit=0)
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            started = time.perf_counter()
            async with session.get(f"{url}/") as answer:
                front = await answer.text()
            first_ms = 1000 * (time.perf_counter() - started)
            if f"Ranked</dt><dd>{MINERS}<" not in front:
                raise SystemExit("the page does not show the ranking")
            numbers = [1 + 97 * step % options.submissions for step in range(500)]
            pages = [f"{url}/submissions/{number}/page" for number in numbers]
            result = {
                "submissions": options.submissions,
                "page_bytes": len(front.encode()),
                "first_ms": round(first_ms, 1),
                "front, one reader": await one_after_another(session, [f"{url}/"], options.seconds),
                f"front, {CONNECTIONS} readers": await together(session, [f"{url}/"], options.seconds),
                "submissions' pages, one reader": await one_after_another(session, pages, options.seconds),
            }
            for _ in range(options.readers):
                listener = session.get(f"{url}/events", timeout=aiohttp.ClientTimeout())
                listening = await stack.enter_async_context(listener)
                if listening.status != 200:
                    raise SystemExit(f"/events answered {listening.status}: fewer --readers")
            listened = f"front, one reader beside {options.readers} listeners"
            result[listened] = await one_after_another(session, [f"{url}/"], options.seconds)
            return result


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--submissions", type=int, default=100_000)
    parser.add_argument("--readers", type=int, default=16, help="listeners of /events (16 per address)")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    result = asyncio.run(measure(options))
    machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
    libraries = {name: version(name) for name in ("aiohttp", "jinja2", "sqlalchemy")}
    print(json.dumps(machine | libraries | result, indent=2))


if __name__ == "__main__":
    main()
