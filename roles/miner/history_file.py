"""The file of the optimisation history: candidates, their texts and facts, in SQLite."""

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

from protocol.errors import ConfigError, JournalError
from roles.miner.candidate import Candidate, Unusable

SCHEMA_VERSION: Final = 1
ROUNDS: Final = "rounds"
"""The fact that says how many rounds were begun."""
BUSY_TIMEOUT_S: Final = 10.0
_SCHEMA: Final = """
CREATE TABLE texts (digest TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT;
CREATE TABLE candidates (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    digest TEXT NOT NULL,
    target_sequence_length INTEGER NOT NULL,
    name TEXT NOT NULL,
    proposer TEXT NOT NULL,
    parent INTEGER REFERENCES candidates (number),
    note TEXT NOT NULL,
    files TEXT NOT NULL,
    phase TEXT NOT NULL,
    created_at TEXT NOT NULL,
    status TEXT,
    reason TEXT NOT NULL DEFAULT '',
    tokens_per_sec REAL,
    score REAL,
    figures TEXT,
    measured_at TEXT,
    decision TEXT NOT NULL DEFAULT '',
    offer TEXT,
    UNIQUE (digest, target_sequence_length)
) STRICT;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""
_COLUMNS: Final = (
    "number, digest, target_sequence_length, name, proposer, parent, note, files, phase, created_at, status, "
    "reason, tokens_per_sec, score, figures, measured_at, decision, offer"
)


class Phase(StrEnum):
    """How far a candidate has come."""

    PROPOSED = "proposed"
    """On disk, to be measured."""
    REFUSED = "refused"
    """No candidate at all: what the proposer gave could not be used."""
    FAILED = "failed"
    """Measured, and the referee did not pass it."""
    READY = "ready"
    """Measured; submitted when it is worth it."""
    OFFERED = "offered"
    """Committed in the fork and handed over for submission."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One candidate of the history."""

    number: int
    digest: str
    target_sequence_length: int
    name: str
    proposer: str
    parent: int | None
    """The candidate that it was made from."""
    note: str
    """What its proposer says about it."""
    phase: Phase
    created_at: datetime
    status: str | None
    reason: str
    tokens_per_sec: float | None
    score: float | None
    figures: dict[str, Any] | None
    measured_at: datetime | None
    decision: str
    """Why it was submitted, or was not."""
    offer: dict[str, Any] | None
    file_digests: Mapping[str, str]

    @classmethod
    def read(cls, row: sqlite3.Row) -> Self:
        """The entry of a row."""
        values = dict(row)
        values["phase"] = Phase(values["phase"])
        values["file_digests"] = json.loads(values.pop("files"))
        for name in ("figures", "offer"):
            values[name] = None if values[name] is None else json.loads(values[name])
        for name in ("created_at", "measured_at"):
            values[name] = None if values[name] is None else datetime.fromisoformat(values[name])
        return cls(**values)


class HistoryFile:
    """What the history asks of its file, one call a transaction of the caller's; not safe for threads.

    Raises ConfigError when the file is no history or belongs to a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = _open(path)

    def insert(
        self,
        proposal: Candidate | Unusable,
        target: int,
        files: Mapping[str, str],
        *,
        digest: str,
        phase: Phase,
        now: str,
        reason: str = "",
        round_number: int | None = None,
    ) -> Entry:
        """Add a proposal, and count its round, unless its digest is known for the target; what is there."""
        digests = {name: digest_of(text) for name, text in files.items()}
        self.database.executemany(
            "INSERT OR IGNORE INTO texts VALUES (?, ?)",
            [(digests[name], text) for name, text in files.items()],
        )
        added = self.database.execute(
            "INSERT OR IGNORE INTO candidates (digest, target_sequence_length, name, proposer, parent, note, "
            "files, phase, reason, created_at) "
            "VALUES (:digest, :target, :name, :proposer, :parent, :note, :files, :phase, :reason, :now)",
            {
                "digest": digest,
                "phase": phase,
                "reason": reason,
                "target": target,
                "name": proposal.name,
                "proposer": proposal.proposer,
                "parent": proposal.parent,
                "note": proposal.note,
                "files": json.dumps(digests, sort_keys=True),
                "now": now,
            },
        )
        if added.rowcount and round_number is not None:
            self.remember(ROUNDS, round_number)
        entry = self.find(digest, target)
        assert entry is not None
        return entry

    def change(self, number: int, **values: Any) -> Entry:
        """Set columns of a candidate. Raises JournalError when there is none."""
        assignments = ", ".join(f"{name} = :{name}" for name in values)
        self.database.execute(
            f"UPDATE candidates SET {assignments} WHERE number = :number",  # noqa: S608 - our own names
            values | {"number": number},
        )
        entry = self.entry(number)
        if entry is None:
            raise JournalError(f"history {self.path} has no candidate {number} to change")
        return entry

    def find(self, digest: str, target: int) -> Entry | None:
        """The candidate with these files for a target length."""
        row = self.database.execute(
            f"SELECT {_COLUMNS} FROM candidates "  # noqa: S608 - constant columns
            "WHERE digest = ? AND target_sequence_length = ?",
            (digest, target),
        ).fetchone()
        return None if row is None else Entry.read(row)

    def latest(self, proposer: str, target: int) -> int | None:
        """Number of a proposer's latest candidate for a target length."""
        row = self.database.execute(
            "SELECT max(number) FROM candidates "
            "WHERE proposer = ? AND target_sequence_length = ? AND phase != ?",
            (proposer, target, Phase.REFUSED),
        ).fetchone()
        return None if row[0] is None else int(row[0])

    def entries(self, phases: tuple[Phase, ...], target: int | None, limit: int | None) -> list[Entry]:
        """The newest `limit` candidates in the given phases (in any without), oldest first."""
        rows = self.database.execute(
            f"SELECT {_COLUMNS} FROM candidates "  # noqa: S608 - constant columns
            "WHERE (?1 IS NULL OR phase IN (SELECT value FROM json_each(?1))) "
            "AND (?2 IS NULL OR target_sequence_length = ?2) ORDER BY number DESC LIMIT ?3",
            (json.dumps(sorted(phases)) if phases else None, target, -1 if limit is None else limit),
        ).fetchall()
        return [Entry.read(row) for row in reversed(rows)]

    def entry(self, number: int) -> Entry | None:
        """One candidate."""
        row = self.database.execute(
            f"SELECT {_COLUMNS} FROM candidates WHERE number = ?",  # noqa: S608 - constant columns
            (number,),
        ).fetchone()
        return None if row is None else Entry.read(row)

    def files(self, number: int) -> dict[str, str]:
        """The files of a candidate by name."""
        rows = self.database.execute(
            "SELECT name.key, texts.text FROM candidates, json_each(candidates.files) AS name "
            "JOIN texts ON texts.digest = name.value WHERE candidates.number = ?",
            (number,),
        ).fetchall()
        return {str(name): str(text) for name, text in rows}

    def best(self, target: int, phases: tuple[Phase, ...]) -> Entry | None:
        """The candidate with the highest score, in the given phases (in any without)."""
        row = self.database.execute(
            f"SELECT {_COLUMNS} FROM candidates WHERE target_sequence_length = ?1 "  # noqa: S608
            "AND (?2 IS NULL OR phase IN (SELECT value FROM json_each(?2))) AND score IS NOT NULL "
            "ORDER BY score DESC, number LIMIT 1",
            (target, json.dumps(sorted(phases)) if phases else None),
        ).fetchone()
        return None if row is None else Entry.read(row)

    def undecided(self, target: int) -> list[Entry]:
        """Candidates that are ready and of which nothing is said, or that they wait."""
        rows = self.database.execute(
            f"SELECT {_COLUMNS} FROM candidates "  # noqa: S608 - constant columns
            "WHERE target_sequence_length = ? AND phase = ? AND (decision = '' OR decision LIKE 'waits:%') "
            "ORDER BY number",
            (target, Phase.READY),
        ).fetchall()
        return [Entry.read(row) for row in rows]

    def fact(self, name: str) -> Any:
        """Something remembered under a name; None without it."""
        row = self.database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def remember(self, name: str, value: Any) -> None:
        """Keep something under a name."""
        self.database.execute(
            "INSERT INTO facts VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2",
            (name, json.dumps(value, allow_nan=False)),
        )


def digest_of(text: str) -> str:
    """Hex SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _open(path: Path) -> sqlite3.Connection:
    database: sqlite3.Connection | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        path.chmod(0o600)
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version > SCHEMA_VERSION:
            raise ConfigError(
                f"history {path} has version {version}, this program knows {SCHEMA_VERSION}: "
                "install the newer quasar-node"
            )
    except (OSError, sqlite3.Error) as error:
        if database is not None:
            database.close()
        raise ConfigError(f"history {path} cannot be used: {error}: move it away or restore it") from error
    except ConfigError:
        if database is not None:
            database.close()
        raise
    return database
