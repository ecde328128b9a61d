"""`quasar-node db`: upgrade, check, backup and restore of the API's database."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from roles.api.schema import HEAD


def db(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as an operator does."""
    return subprocess.run(
        [sys.executable, "-m", "roles", "db", *words],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "QUASAR_NODE__DATA_DIR": str(folder / "data"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def add_round(folder: Path, number: int) -> None:
    """Write a row that a backup must hold."""
    connection = sqlite3.connect(folder / "data" / "api.sqlite")
    with connection:
        connection.execute(
            "INSERT INTO rounds (round_number, status, start_time, end_time) VALUES (?, 'closed', ?, ?)",
            (number, "2026-01-01 00:00:00", "2026-01-03 00:00:00"),
        )
    connection.close()


def round_numbers(path: Path) -> list[int]:
    """The rounds in a file."""
    connection = sqlite3.connect(path)
    found = [row[0] for row in connection.execute("SELECT round_number FROM rounds ORDER BY round_number")]
    connection.close()
    return found


def test_from_upgrade_to_restore(tmp_path: Path) -> None:
    missing = db(tmp_path, "check")
    assert missing.returncode == 78
    assert "there is no database" in missing.stderr
    assert HEAD in db(tmp_path, "upgrade").stdout
    checked = db(tmp_path, "check", "--json")
    assert checked.returncode == 0
    assert json.loads(checked.stdout) == {
        "kind": "sqlite",
        "revision": HEAD,
        "submissions": 0,
        "verdicts": 0,
        "problems": [],
    }
    add_round(tmp_path, 1)
    copy = tmp_path / "copy.sqlite"
    assert db(tmp_path, "backup", str(copy)).returncode == 0
    assert db(tmp_path, "backup", str(copy)).returncode == 2
    add_round(tmp_path, 2)
    assert db(tmp_path, "restore", str(copy)).returncode == 0
    assert round_numbers(tmp_path / "data" / "api.sqlite") == [1]
    assert round_numbers(tmp_path / "data" / "api.sqlite.replaced") == [1, 2]
    assert db(tmp_path, "check").returncode == 0
    # What an earlier restore has kept is not overwritten.
    assert db(tmp_path, "restore", str(copy)).returncode == 2


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000])
def test_restore_refuses_what_is_no_copy(tmp_path: Path, content: bytes) -> None:
    db(tmp_path, "upgrade")
    add_round(tmp_path, 1)
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(content)
    refused = db(tmp_path, "restore", str(broken))
    assert refused.returncode == 78
    assert "no sound copy" in refused.stderr
    assert round_numbers(tmp_path / "data" / "api.sqlite") == [1]


def test_check_finds_an_older_schema_and_damage(tmp_path: Path) -> None:
    db(tmp_path, "upgrade")
    path = tmp_path / "data" / "api.sqlite"
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.close()
    older = db(tmp_path, "check")
    assert older.returncode == 78
    assert "db upgrade" in older.stderr


def test_postgresql_has_its_own_tools(tmp_path: Path) -> None:
    url = "postgresql://nobody:secret@127.0.0.1:1/none"
    refused = db(tmp_path, "backup", "copy", DATABASE_URL=url)
    assert refused.returncode == 2
    assert "pg_dump" in refused.stderr
    assert "secret" not in refused.stderr
    away = db(tmp_path, "check", DATABASE_URL=url)
    assert away.returncode == 69
    assert "cannot be reached" in away.stderr
    assert "secret" not in away.stderr
