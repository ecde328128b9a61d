"""The journal: durable, encrypted, idempotent; a real process is killed while it writes."""

import asyncio
import errno
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from node.journal import Journal, Record, load_key
from protocol.errors import ConfigError, JournalError
from tests.fakes.clock import START, FakeClock

KEY = bytes(range(32))
SALT = "5a17" * 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "journal.sqlite"


async def test_records_come_back_after_reopening(path: Path) -> None:
    clock = FakeClock()
    async with Journal(path, KEY, clock=clock) as journal:
        await journal.put("commit", "7", "sent", {"block": 5, "list": [1, None]}, secret=SALT)
        await clock.advance(60)
        await journal.update("commit", "7", state="accepted", data={"id": 9})
    async with Journal(path, KEY) as journal:
        record = await journal.get("commit", "7")
    assert record == Record(
        kind="commit",
        key="7",
        state="accepted",
        data={"block": 5, "list": [1, None], "id": 9},
        secret=SALT,
        created_at=START,
        updated_at=clock.now(),
    )
    assert SALT not in repr(record)


async def test_listing_by_state_oldest_first(path: Path) -> None:
    # The same moment for all: the order of writing decides, and no clock that is set back.
    async with Journal(path, KEY, clock=FakeClock()) as journal:
        for number, state in enumerate(["sent", "done", "sent", "lost"]):
            await journal.put("commit", f"k{9 - number}", state, {})
        await journal.put("other", "x", "sent", {})
        assert [record.key for record in await journal.list("commit")] == ["k9", "k8", "k7", "k6"]
        assert [record.key for record in await journal.list("commit", {"sent", "lost"})] == ["k9", "k7", "k6"]
        assert await journal.list("commit", []) == []
        await journal.delete("commit", "k9")
        await journal.delete("commit", "k9")
        assert await journal.get("commit", "k9") is None


async def test_put_replaces_and_an_identical_one_changes_nothing(path: Path) -> None:
    clock = FakeClock()
    async with Journal(path, KEY, clock=clock) as journal:
        await journal.put("commit", "1", "sent", {"a": 1}, secret="s1")
        await clock.advance(1)
        await journal.put("commit", "1", "sent", {"a": 1}, secret="s1")
        record = await journal.get("commit", "1")
        assert record is not None
        assert record.updated_at == START
        await journal.put("commit", "1", "done", {"b": 2}, secret="s2")
        record = await journal.get("commit", "1")
    assert record is not None
    assert (record.state, record.data, record.secret) == ("done", {"b": 2}, "s2")
    assert (record.created_at, record.updated_at) == (START, clock.now())


async def test_update_without_record_is_an_error_and_leaves_the_journal_usable(path: Path) -> None:
    async with Journal(path, KEY) as journal:
        with pytest.raises(JournalError, match="has no commit '1' to change"):
            await journal.update("commit", "1", state="done")
        await journal.put("commit", "1", "sent", {})
        with pytest.raises(ValueError, match="Out of range float"):
            await journal.update("commit", "1", state="done", data={"x": float("nan")})
        record = await journal.update("commit", "1")
        assert record.state == "sent"


async def test_database_is_durable_private_and_shows_no_secret(path: Path) -> None:
    async with Journal(path, KEY) as journal:
        await journal.put("commit", "1", "sent", {"public": "visible"}, secret=SALT)
        assert journal._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert journal._database.execute("PRAGMA synchronous").fetchone() == (2,)
        raw = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"visible" in raw
    assert SALT.encode() not in raw
    assert bytes.fromhex(SALT) not in raw
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_wrong_key_is_refused_before_anything_is_written(path: Path) -> None:
    async with Journal(path, KEY) as journal:
        await journal.put("commit", "1", "sent", {}, secret=SALT)
    with pytest.raises(ConfigError, match=r"was written with another key: restore its journal.key"):
        Journal(path, bytes(32))
    with pytest.raises(ConfigError, match="must have 32 bytes, not 5"):
        Journal(path, b"short")


async def test_secret_moved_to_another_record_or_changed_is_noticed(path: Path) -> None:
    async with Journal(path, KEY) as journal:
        await journal.put("commit", "1", "sent", {}, secret=SALT)
        await journal.put("commit", "2", "sent", {})
    with sqlite3.connect(path) as database:
        database.execute(
            "UPDATE records SET secret = (SELECT secret FROM records WHERE key = '1') WHERE key = '2'"
        )
    database.close()
    async with Journal(path, KEY) as journal:
        with pytest.raises(JournalError, match="secret of commit '2' was changed on disk"):
            await journal.get("commit", "2")
        assert await journal.get("commit", "1") is not None


async def test_foreign_and_newer_files_are_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database, and long enough to be read as one " * 10)
    with pytest.raises(ConfigError, match="cannot be used: file is not a database: move it away"):
        Journal(path, KEY)
    path.unlink()
    async with Journal(path, KEY):
        pass
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ConfigError, match="has version 99, this program knows 1"):
        Journal(path, KEY)
    with pytest.raises(ConfigError, match="cannot be opened"):
        Journal(path / "below-a-file", KEY)


async def test_disk_errors_are_one_sentence(path: Path) -> None:
    async with Journal(path, KEY) as journal:
        journal._database.execute("PRAGMA busy_timeout = 0")
        other = sqlite3.connect(path)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalError, match="database is locked: check the disk"):
            await journal.put("commit", "1", "sent", {})
        with pytest.raises(JournalError, match="database is locked"):
            await journal.update("commit", "1")
        other.close()
        await journal.put("commit", "1", "sent", {})


async def test_cancelled_call_still_reaches_the_disk_whole(path: Path) -> None:
    async with Journal(path, KEY) as journal:
        await journal.put("commit", "1", "sent", {})
        calls = [asyncio.create_task(journal.update("commit", "1", data={str(n): n})) for n in range(10)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        record = await journal.get("commit", "1")
    assert record is not None
    assert all(record.data[key] == int(key) for key in record.data)


async def test_pages_have_every_record_once_oldest_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.journal.PAGE_RECORDS", 3)
    async with Journal(path, KEY, clock=FakeClock()) as journal:
        for number in range(7):
            await journal.put("commit", f"k{9 - number}", "sent", {"number": number}, secret=SALT)
        await journal.put("other", "x", "sent", {})
        pages = [page async for page in journal.pages("commit")]
        assert [len(page) for page in pages] == [3, 3, 1]
        assert [record for page in pages for record in page] == await journal.list("commit")
        assert [page async for page in journal.pages("nothing")] == []


async def test_pages_allow_changes_on_the_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.journal.PAGE_RECORDS", 1)
    async with Journal(path, KEY, clock=FakeClock()) as journal:
        for key in ("first", "second", "third"):
            await journal.put("commit", key, "sent", {})
        seen = []
        async for page in journal.pages("commit"):
            for record in page:
                seen.append((record.key, record.state))
                await journal.delete("commit", "second")
                await journal.update("commit", "third", state="lost")
                await journal.put("commit", "fourth", "sent", {})
        assert seen == [("first", "sent"), ("third", "lost")]


KINDS = st.sampled_from(["commit", "reveal"])
KEYS = st.sampled_from(["1", "2", "é\n'\""])
STATES = st.sampled_from(["sent", "accepted", "done"])
DATA = st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=5), max_size=3)
PUTS = st.tuples(st.just("put"), KINDS, KEYS, STATES, DATA, st.none() | st.text(max_size=10))
UPDATES = st.tuples(st.just("update"), KINDS, KEYS, st.none() | STATES, st.none() | DATA, st.none())


async def replay(journal: Journal, steps: list[tuple[Any, ...]]) -> None:
    for act, kind, key, state, data, secret in steps:
        if act == "put":
            await journal.put(kind, key, state, data, secret)
        elif await journal.get(kind, key) is not None:
            await journal.update(kind, key, state=state, data=data)


async def contents(journal: Journal) -> list[tuple[Any, ...]]:
    records = await journal.list("commit") + await journal.list("reveal")
    return sorted(
        (record.kind, record.key, record.state, str(sorted(record.data.items())), str(record.secret))
        for record in records
    )


@settings(max_examples=25)
@given(steps=st.lists(PUTS | UPDATES, max_size=8), crash_at=st.integers(0, 8))
def test_replay_after_a_crash_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]], crash_at: int
) -> None:
    """Running the last step before a crash again leaves everything as it was."""

    async def check() -> None:
        folder = tmp_path_factory.mktemp("replay")
        async with Journal(folder / "once", KEY) as once, Journal(folder / "twice", KEY) as twice:
            await replay(once, steps)
            await replay(twice, steps[:crash_at])
            await replay(twice, steps[max(0, crash_at - 1) : crash_at])
            await replay(twice, steps[crash_at:])
            before = await contents(once)
            assert await contents(twice) == before
            await replay(once, steps[-1:])
            assert await contents(once) == before

    asyncio.run(check())


WRITER = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from node.journal import Journal

    async def main():
        journal = Journal(Path(sys.argv[1]), bytes(range(32)))
        start = len(await journal.list("step"))
        for number in range(start, start + 100_000):
            await journal.put("step", f"{number:06}", "written", {"number": number}, secret=f"salt {number}")
            await journal.update("step", f"{number:06}", state="done", data={"twice": 2 * number})
            print(number, flush=True)

    asyncio.run(main())
    """
)


async def test_killed_writer_loses_nothing_it_was_told_is_written(path: Path) -> None:
    acknowledged: set[int] = set()
    for lines in (5, 40, 17):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(lines):
            acknowledged.add(int(writer.stdout.readline()))
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().split("\n")
        writer.stdout.close()
        writer.wait()
        acknowledged |= {int(line) for line in rest[:-1]}
        async with Journal(path, KEY) as journal:
            records = await journal.list("step")
        assert [record.data["number"] for record in records] == list(range(len(records)))
        done = {record.data["number"] for record in records if record.state == "done"}
        assert done >= acknowledged
        for record in records:
            assert record.data.get("twice") == (2 * record.data["number"] if record.state == "done" else None)
        assert all(record.secret == f"salt {record.data['number']}" for record in records)


def test_key_file_is_made_once_and_private(tmp_path: Path) -> None:
    key = load_key(tmp_path / "data", {})
    file = tmp_path / "data" / "journal.key"
    assert len(key) == 32
    assert load_key(tmp_path / "data", {}) == key == bytes.fromhex(file.read_text())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [entry.name for entry in file.parent.iterdir()] == ["journal.key"]
    assert load_key(tmp_path / "other", {}) != key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_key_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    load_key(tmp_path, {})
    (tmp_path / "journal.key").chmod(mode)
    with pytest.raises(ConfigError, match=f"has mode {mode:04o}, others can use it: run chmod 600"):
        load_key(tmp_path, {})


def test_damaged_key_file_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "journal.key").touch(mode=0o600)
    with pytest.raises(ConfigError, match="is damaged"):
        load_key(tmp_path, {})
    assert (tmp_path / "journal.key").read_text() == ""


def test_key_from_the_environment(tmp_path: Path) -> None:
    assert load_key(tmp_path, {"QUASAR_JOURNAL_KEY": KEY.hex()}) == KEY
    encoded = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    assert load_key(tmp_path, {}, configured=SecretStr(encoded)) == KEY
    assert not (tmp_path / "journal.key").exists()
    with pytest.raises(ConfigError, match="must be 64 hex digits") as caught:
        load_key(tmp_path, {"QUASAR_JOURNAL_KEY": "hunter2"})
    assert "hunter2" not in str(caught.value)


async def test_lists_are_narrowed_by_what_records_hold_and_to_the_newest(path: Path) -> None:
    clock = FakeClock()
    async with Journal(path, KEY, clock=clock) as journal:
        for number in range(5):
            await journal.put("commit", str(number), "sent", {"code": f"c{number % 2}", "length": number})
            await clock.advance(1)
        await journal.put("commit", "bare", "done", {})

        async def keys(**options: Any) -> list[str]:
            return [record.key for record in await journal.list("commit", **options)]

        assert await keys() == ["0", "1", "2", "3", "4", "bare"]
        assert await keys(where={"code": "c0"}) == ["0", "2", "4"]
        assert await keys(where={"code": "c0", "length": 2}) == ["2"]
        assert await keys(where={"code": "c0", "length": "2"}) == []
        assert await keys(where={"other": "x"}) == []
        assert await keys(newest=2) == ["4", "bare"]
        assert await keys(states=["sent"], where={"code": "c0"}, newest=1) == ["4"]
        assert await keys(newest=0) == []


async def test_a_disk_that_is_full_or_busy_is_no_mistake_in_the_settings(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor starts a node again after the one and not after the other."""
    async with Journal(path, KEY):
        pass
    monkeypatch.setattr("node.journal.BUSY_TIMEOUT_S", 0.1)
    with sqlite3.connect(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(JournalError, match="cannot be used: database is locked: check the disk"):
            Journal(path, KEY)
        other.rollback()
    other.close()

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(JournalError, match=r"cannot be opened.*No space left on device"):
        Journal(path, KEY)
