"""Writes that share a transaction, and those who ask for them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import Connection, Engine, event, insert, select

from node.settings_model import Settings
from roles.api.database import Database, Effect
from roles.api.tables import nonces
from tests.roles.api.harness import url_of


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """A database at the newest schema, on both kinds."""
    database = Database(url_of(settings))
    yield database
    await database.close()


def add(connection: Connection, number: int) -> int:
    """Store one nonce; the seventh is refused after it was written."""
    connection.execute(insert(nonces).values(hotkey="a", nonce_ns=number, seen_at=datetime.now(UTC)))
    if number == 7:
        raise ValueError("the seventh is refused")
    return number


async def stored(database: Database) -> list[int]:
    """The nonces that are there."""
    query = select(nonces.c.nonce_ns).order_by(nonces.c.nonce_ns)
    return await database.read(lambda connection: list(connection.execute(query).scalars()))


async def test_one_that_fails_spoils_none_of_the_others(database: Database) -> None:
    outcomes = await asyncio.gather(
        *(database.write(lambda connection, number=number: add(connection, number)) for number in range(20)),
        return_exceptions=True,
    )
    assert isinstance(outcomes.pop(7), ValueError)
    assert outcomes == [number for number in range(20) if number != 7]
    assert await stored(database) == outcomes


async def test_a_caller_that_goes_away_leaves_a_whole_write(database: Database) -> None:
    writing = asyncio.create_task(database.write(lambda connection: add(connection, 1)))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await database.write(lambda connection: add(connection, 2))
    assert (await stored(database))[-1] == 2
    await database.write(lambda connection: add(connection, 3))
    assert (await stored(database))[-2:] == [2, 3]


async def test_many_writes_share_one_wait_for_the_disk(database: Database) -> None:
    if not database.is_sqlite:
        pytest.skip("PostgreSQL groups commits by itself")
    commits = 0

    def count(_connection: Connection) -> None:
        nonlocal commits
        commits += 1

    event.listen(Engine, "commit", count)
    try:
        await asyncio.gather(
            *(
                database.write(lambda connection, number=number: add(connection, number))
                for number in range(100, 160)
            )
        )
    finally:
        event.remove(Engine, "commit", count)
    assert len(await stored(database)) == 60
    assert commits <= 3


async def test_a_write_meets_what_another_wrote_first(database: Database) -> None:
    """The same unique thing from many at once: whoever comes second is run again and finds it."""

    def take(connection: Connection) -> bool:
        if connection.execute(select(nonces.c.nonce_ns).where(nonces.c.nonce_ns == 1)).first() is not None:
            return False
        add(connection, 1)
        return True

    taken = await asyncio.gather(*(database.write(take) for _ in range(10)))
    assert sorted(taken) == [False] * 9 + [True]


async def test_a_write_puts_out_of_date_what_it_changes_and_nothing_else(database: Database) -> None:
    """A submission changes lists, and not the ranking: that need not be asked for again."""

    def now() -> tuple[int, int]:
        return database.revision(Effect.SHOWN), database.revision(Effect.RANKED)

    shown, ranked = now()
    await database.write(lambda connection: add(connection, 1))
    assert now() == (shown, ranked)
    await database.write(lambda connection: add(connection, 2), effect=Effect.SHOWN)
    assert now() == (shown + 1, ranked)
    await database.write(lambda connection: add(connection, 3), effect=Effect.RANKED)
    assert now() == (shown + 2, ranked + 1)
    with pytest.raises(ValueError, match="seventh"):
        await database.write(lambda connection: add(connection, 7), effect=Effect.RANKED)
    assert now() == (shown + 3, ranked + 2), "what failed may have been written all the same"
