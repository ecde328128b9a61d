"""Measure the API: `python -m benchmarks.api [--only NAME ...] [--minutes M]`; prints JSON.

Each case has a fresh database and a fresh process. What is timed is checked: every answer has status 200, and
every submission that was acknowledged is in the database.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import aiohttp
from sqlalchemy import func, select

from benchmarks.api import subject
from roles.api.database import Database, database_url
from roles.api.tables import submissions
from tests.roles.postgres import postgres_server

CONNECTIONS: Final = 32
READ_S: Final = 8.0
RATE: Final = 1000
WRITES: Final = 10_000
MIXED_WRITE_SHARE: Final = 0.04
MIXED_PATHS: Final = (
    *["/get_submission_stats"] * 8,
    *["/get_current_round"] * 6,
    *["/leaderboard"] * 4,
    *["/pending_reveals"] * 2,
    *["/submissions/1"] * 2,
    "/health",
    "/info",
)


class Bench:
    """One subject with its load."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.folder = folder
        self.url = url
        self.validator = subject.key("validator")
        self.miners: list[Any] = []
        (folder / "data").mkdir()

    async def prepare(self, *, miners: int, history: int) -> None:
        """A chain with so many miners, a database with so many judged submissions."""
        self.miners = [subject.key(f"miner{number}") for number in range(miners)]
        subject.make_chain(self.folder / "chain.sqlite", self.miners, self.validator)
        ranked = self.miners[: subject.RANKED_MINERS]
        await subject.fill(self.url, self.folder / "data", ranked, self.validator, history)

    def write_bodies(self, count: int) -> str:
        """A file with one signed submission of each of the last `count` miners."""
        path = self.folder / "bodies"
        path.write_bytes(b"\n".join(subject.submission(miner, 0) for miner in self.miners[-count:]))
        return str(path)

    async def load(self, port: int, **plan: Any) -> dict[str, Any]:
        """Run the load process."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.api.load",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        given = {"port": port, "connections": CONNECTIONS, "seconds": READ_S, "paths": [], **plan}
        said, _ = await process.communicate(json.dumps(given).encode())
        if process.returncode != 0:
            raise SystemExit("the load process failed")
        result: dict[str, Any] = json.loads(said)
        if set(result["statuses"]) != {"200"}:
            raise SystemExit(f"not every answer was 200: {result}")
        return result

    async def stored(self) -> int:
        """How many submissions the database holds."""
        database = Database(database_url(self.url, self.folder / "data"))
        count = await database.read(
            lambda connection: connection.execute(select(func.count()).select_from(submissions)).scalar_one()
        )
        await database.close()
        return int(count)


async def reads(bench: Bench, _minutes: float) -> dict[str, Any]:
    """The three reading endpoints with 200 submissions."""
    await bench.prepare(miners=256, history=200)
    found = {}
    async with subject.running(bench.folder, bench.url) as (_, port):
        for path in ("/health", "/get_current_round", "/get_submission_stats", "/leaderboard"):
            found[path] = await bench.load(port, paths=[path])
    return found


async def submit(bench: Bench, _minutes: float) -> dict[str, Any]:
    """Durable signed submissions, each of another hotkey."""
    await bench.prepare(miners=WRITES + 256, history=200)
    async with subject.running(bench.folder, bench.url) as (_, port):
        result = await bench.load(port, bodies=bench.write_bodies(WRITES), seconds=600.0)
    if await bench.stored() != 200 + result["requests"]:
        raise SystemExit("the database does not hold what was acknowledged")
    return {"/submit_kernel": result}


async def mixed(bench: Bench, minutes: float) -> dict[str, Any]:
    """A steady 1,000 requests a second of all kinds, and the memory of the process meanwhile."""
    seconds = 60.0 * minutes
    writes = int(RATE * seconds * MIXED_WRITE_SHARE) + 100
    await bench.prepare(miners=writes + 256, history=200)
    async with subject.running(bench.folder, bench.url) as (process, port):
        plan = {"bodies": bench.write_bodies(writes), "share": MIXED_WRITE_SHARE, "paths": list(MIXED_PATHS)}
        # Caches, pools and the allocator are warm before memory is looked at.
        await bench.load(port, paths=list(MIXED_PATHS), rate=RATE, seconds=5.0)
        samples, busy_s = [_rss_mb(process.pid)], _cpu_s(process.pid)
        load = asyncio.create_task(bench.load(port, rate=RATE, seconds=seconds, **plan))
        while not load.done():
            await asyncio.wait({load}, timeout=seconds / 10)
            samples.append(_rss_mb(process.pid))
        result = load.result()
        result["processor_share"] = round((_cpu_s(process.pid) - busy_s) / result["seconds"], 3)
    result["rss_mb"] = samples
    return {"mixed": result}


async def large(bench: Bench, _minutes: float) -> dict[str, Any]:
    """The leaderboard over 100,000 ranked submissions, also while verdicts arrive."""
    await bench.prepare(miners=256, history=100_000)
    async with subject.running(bench.folder, bench.url) as (_, port):
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            async with session.get("/leaderboard") as answer:
                rows = len((await answer.json())["rows"])
            if rows != subject.RANKED_MINERS:
                raise SystemExit(f"the leaderboard has {rows} rows")
        still = await bench.load(port, paths=["/leaderboard"], connections=4, rate=50, seconds=20.0)
        stats = await bench.load(port, paths=["/get_submission_stats"], connections=4, rate=50, seconds=10.0)
        judging = asyncio.create_task(_judge(bench, port))
        changing = await bench.load(port, paths=["/leaderboard"], connections=4, rate=50, seconds=30.0)
        changing["verdicts_meanwhile"] = await judging
    return {
        "/leaderboard": still,
        "/get_submission_stats": stats,
        "/leaderboard, verdicts arriving": changing,
    }


async def _judge(bench: Bench, port: int) -> int:
    """Submit and judge every two seconds for half a minute; how many verdicts."""
    from tests.roles.api.harness import Client, Code

    async with aiohttp.ClientSession() as session:
        client = Client(f"http://127.0.0.1:{port}", session)
        client.hotkey = (await client.get("/info")).body["hotkey"]
        for number in range(12):
            await client.submit(bench.miners[number], Code(f"new {number}"))
            lease = await client.lease(bench.validator)
            assert lease is not None
            assert (await client.judge(bench.validator, lease)).status == 200
            await asyncio.sleep(2.0)
    return 12


Case = Callable[[Bench, float], Coroutine[Any, Any, dict[str, Any]]]
CASES: Final[dict[str, Case]] = {"reads": reads, "submit": submit, "mixed": mixed, "large": large}


async def measure(names: list[str], minutes: float, make_url: Callable[[], str | None]) -> dict[str, Any]:
    """Run the cases one after the other."""
    found: dict[str, Any] = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="quasar-bench-") as folder:
            found[name] = await CASES[name](Bench(Path(folder), make_url()), minutes)
            print(name, json.dumps(found[name]), file=sys.stderr)
    return found


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--minutes", type=float, default=5.0, help="of the mixed load")
    parser.add_argument("--postgresql", action="store_true", help="on a PostgreSQL started for this")
    args = parser.parse_args()
    if args.postgresql:
        with postgres_server() as server:
            found = asyncio.run(
                measure(args.only, args.minutes, lambda: server.url(server.create_database()))
            )
    else:
        found = asyncio.run(measure(args.only, args.minutes, lambda: None))
    versions = {name: version(name) for name in ("aiohttp", "sqlalchemy", "asyncpg", "pydantic", "bittensor")}
    machine = {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    json.dump({"machine": machine, "versions": versions, "load": os.getloadavg(), "found": found}, sys.stdout)
    print()


def _rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return round(int(kilobytes) / 1024, 1)


def _cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
