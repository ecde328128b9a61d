"""Work on one SQLite connection that shares commits."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.group_commit import CHECKPOINT_COMMITS, GroupCommit


class Bench:
    """A group on a file, what it executes, and a way to keep its thread busy."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY)")
        self.statements: list[str] = []
        self.connection.set_trace_callback(self.statements.append)
        self.group = GroupCommit(self.connection, path, thread_name="test")

    def insert(self, number: int) -> int:
        """A piece of work."""
        self.connection.execute("INSERT INTO numbers VALUES (?)", (number,))
        return number

    async def write(self, number: int) -> int:
        """One write."""
        return await self.group.run(lambda: self.insert(number), is_write=True)

    def seen_by_others(self) -> list[int]:
        """What another connection finds."""
        other = sqlite3.connect(self.path)
        try:
            return [number for (number,) in other.execute("SELECT number FROM numbers ORDER BY number")]
        finally:
            other.close()

    async def keep_busy(self) -> tuple[threading.Event, "asyncio.Task[bool]"]:
        """Occupy the thread until the event is set."""
        begun, free = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def occupy() -> bool:
            loop.call_soon_threadsafe(begun.set)
            return free.wait(30)

        task = asyncio.create_task(self.group.run(occupy, is_write=False))
        await begun.wait()
        return free, task


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A group on an empty table."""
    bench = Bench(tmp_path / "file.sqlite")
    yield bench
    await bench.group.close()


async def test_an_answer_is_on_disk(bench: Bench) -> None:
    assert await bench.write(7) == 7
    assert bench.seen_by_others() == [7]


async def test_what_waits_shares_one_commit_and_keeps_its_order(bench: Bench) -> None:
    free, busy = await bench.keep_busy()
    waiting = [asyncio.create_task(bench.write(number)) for number in range(20)]
    count = asyncio.create_task(
        bench.group.run(
            lambda: bench.connection.execute("SELECT COUNT(*) FROM numbers").fetchone()[0], is_write=False
        )
    )
    await asyncio.sleep(0)
    free.set()
    assert await busy
    assert await asyncio.gather(*waiting) == list(range(20))
    assert await count == 20
    assert bench.statements.count("COMMIT") == 2, "one of what kept it busy, one of all others"
    assert bench.seen_by_others() == list(range(20))


async def test_what_fails_leaves_nothing_and_spoils_nothing(bench: Bench) -> None:
    def fail() -> None:
        bench.insert(100)
        raise ValueError("no")

    free, busy = await bench.keep_busy()
    before = asyncio.create_task(bench.write(1))
    failing = asyncio.create_task(bench.group.run(fail, is_write=True))
    twice = asyncio.create_task(bench.write(1))
    after = asyncio.create_task(bench.write(2))
    await asyncio.sleep(0)
    free.set()
    await asyncio.gather(busy, before, after)
    with pytest.raises(ValueError, match="no"):
        await failing
    with pytest.raises(sqlite3.IntegrityError):
        await twice
    assert bench.seen_by_others() == [1, 2]


async def test_a_lost_transaction_is_everybodys_error(bench: Bench) -> None:
    """As after a full disk: SQLite takes the whole transaction back."""

    def lose() -> None:
        bench.connection.execute("ROLLBACK")
        raise sqlite3.OperationalError("disk full")

    free, busy = await bench.keep_busy()
    writes = [asyncio.create_task(bench.write(1)), asyncio.create_task(bench.group.run(lose, is_write=True))]
    await asyncio.sleep(0)
    free.set()
    await busy
    for write in writes:
        with pytest.raises(sqlite3.OperationalError, match="disk full"):
            await write
    assert bench.seen_by_others() == []
    assert await bench.write(1) == 1, "the next transaction is a new one"


async def test_a_caller_who_leaves_has_its_write_all_the_same(bench: Bench) -> None:
    free, busy = await bench.keep_busy()
    leaving = asyncio.create_task(bench.write(5))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    free.set()
    await busy
    assert await bench.write(6) == 6
    assert leaving.cancelled()
    assert bench.seen_by_others() == [5, 6]


async def test_the_log_is_worked_in_beside_the_work(bench: Bench) -> None:
    """Nobody's commit does it (SQLite's own way), and yet the log does not grow."""
    for number in range(4 * CHECKPOINT_COMMITS):
        await bench.write(number)
    assert bench.connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
    log = bench.path.with_name(bench.path.name + "-wal")
    # The thread that does it may be behind, and only the write after that begins the log anew.
    await asyncio.to_thread(bench.group._checkpoints.submit(lambda: None).result)
    await bench.write(10_000)
    assert 0 < _frames(log) <= 2 * CHECKPOINT_COMMITS


def _frames(log: Path) -> int:
    """Valid frames at the beginning of a write-ahead log: those with the salt of its header."""
    data = log.read_bytes()
    size = 24 + int.from_bytes(data[8:12], "big")
    salt = data[16:24]
    starts = range(32, len(data), size)
    return next((n for n, at in enumerate(starts) if data[at + 8 : at + 16] != salt), len(starts))
