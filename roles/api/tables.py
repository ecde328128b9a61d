"""Tables of the API, in types and constraints that SQLite and PostgreSQL share.

Uniqueness that the rules promise (one commitment per hotkey and hash, one live lease per validator and
submission, one open round, one use of a nonce) is a constraint here and not a check in the code.
"""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    func,
    text,
)


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware moment, always UTC; SQLite, which knows no zones, stores it without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn an aware moment into what the database stores."""
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give back an aware moment."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only for INTEGER; PostgreSQL should not run out after 2^31.
Serial = BigInteger().with_variant(Integer(), "sqlite")
HotkeyColumn = String(64)


def _partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    condition = text(where)
    return Index(name, *columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


rounds = Table(
    "rounds",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("round_number", Integer, nullable=False, unique=True),
    Column("status", String(8), nullable=False),  # open, closed
    Column("start_time", UtcDateTime, nullable=False),
    Column("end_time", UtcDateTime, nullable=False),
    Column("start_block", BigInteger),
    Column("end_block", BigInteger),
    # The submission to beat: the winner of the round before.
    Column("baseline_submission_id", Serial),
    Column("winner_hotkey", HotkeyColumn),
    Column("winner_submission_id", Serial),
    _partial_index("uq_rounds_open", "status", where="status = 'open'", unique=True),
)

round_places = Table(
    "round_places",
    metadata,
    Column("round_number", Integer, ForeignKey("rounds.round_number"), primary_key=True),
    Column("place", Integer, primary_key=True),
    Column("submission_id", Serial, ForeignKey("submissions.id"), nullable=False),
    Column("miner_hotkey", HotkeyColumn, nullable=False),
    Column("tokens_per_sec", Float, nullable=False),
    Column("weighted_score", Float, nullable=False),
    Column("share", Float, nullable=False),
)

submissions = Table(
    "submissions",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("miner_hotkey", HotkeyColumn, nullable=False),
    Column("miner_coldkey", HotkeyColumn, nullable=False),
    Column("target_sequence_length", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    # Of a commitment; all NULL for a direct submission.
    Column("commitment_hash", String(64)),
    Column("commit_block", BigInteger),
    Column("commit_block_hash", String(80)),
    Column("reveal_block", BigInteger),
    Column("expires_block", BigInteger),
    Column("receipt_signature", String(140)),
    Column("commitment_salt", String(256)),
    # Of the code; all NULL until it is revealed.
    Column("fork_url", String(512)),
    Column("commit_hash", String(40)),
    Column("repo_hash", String(128)),
    Column("claimed_tokens_per_sec", Float),
    Column("claimed_vram_mb", Float),
    Column("benchmarks", JSON(none_as_null=True)),
    Column("revealed_at", UtcDateTime),
    # When the code was fixed (orders ties) and the round of that moment.
    Column("code_fixed_at", UtcDateTime),
    Column("round_number", Integer),
    # Where the code came from (IPv6: its /64); counts strikes and is never shown.
    Column("address", String(64)),
    # When the first verdict that ends an evaluation arrived; the code is public from then on.
    Column("judged_at", UtcDateTime),
    # What the verdicts so far amount to, weighted by stake.
    Column("pooled_status", String(32)),
    Column("pooled_fault", String(32)),
    Column("pooled_tokens_per_sec", Float),
    # Of the code, as most of the stake found it: a copy has that of its original.
    Column("fingerprint", String(64)),
    # When enough stake had judged it for the outcome to count.
    Column("settled_at", UtcDateTime),
    UniqueConstraint("miner_hotkey", "commitment_hash"),
    UniqueConstraint("miner_hotkey", "commit_hash", "target_sequence_length"),
    Index("ix_submissions_round_number", "round_number"),
    Index("ix_submissions_fingerprint", "fingerprint", "code_fixed_at", "id"),
    _partial_index("ix_submissions_revealed", "id", where="revealed_at IS NOT NULL"),
    _partial_index("ix_submissions_pending", "expires_block", where="revealed_at IS NULL"),
    _partial_index(
        "ix_submissions_queued", "miner_hotkey", where="revealed_at IS NOT NULL AND judged_at IS NULL"
    ),
    _partial_index("ix_submissions_unsettled", "id", where="judged_at IS NOT NULL AND settled_at IS NULL"),
    _partial_index("ix_submissions_strikes", "address", "settled_at", where="pooled_fault = 'miner'"),
)

leases = Table(
    "leases",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("lease_id", String(64), nullable=False, unique=True),
    Column("submission_id", Serial, ForeignKey("submissions.id"), nullable=False),
    Column("validator_hotkey", HotkeyColumn, nullable=False),
    Column("miner_coldkey", HotkeyColumn, nullable=False),
    Column("state", String(12), nullable=False),  # held, done, superseded
    Column("leased_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    _partial_index(
        "uq_leases_held", "submission_id", "validator_hotkey", where="state = 'held'", unique=True
    ),
    Index("ix_leases_validator_hotkey_miner_coldkey", "validator_hotkey", "miner_coldkey"),
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("submission_id", Serial, ForeignKey("submissions.id"), nullable=False),
    Column("validator_hotkey", HotkeyColumn, nullable=False),
    Column("lease_id", String(64), nullable=False, unique=True),
    # Evaluations of this submission by this validator so far; more than one only after infrastructure faults.
    Column("attempt", Integer, nullable=False),
    # False: an infrastructure fault that will be tried again.
    Column("is_final", Boolean, nullable=False),
    Column("status", String(32), nullable=False),
    Column("fault", String(32), nullable=False),
    Column("measured_tokens_per_sec", Float),
    Column("spread", Float),
    Column("cosine_similarity", Float),
    Column("max_abs_diff", Float),
    Column("relative_error", Float),
    Column("vram_mb", Float),
    Column("gpu", Text, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("rules_version", Integer, nullable=False),
    Column("fingerprint", String(64)),
    Column("evidence", JSON, nullable=False),
    Column("signature", String(256), nullable=False),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    UniqueConstraint("submission_id", "validator_hotkey"),
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("later_submission_id", Serial, ForeignKey("submissions.id"), nullable=False),
    Column("earlier_submission_id", Serial, ForeignKey("submissions.id"), nullable=False, index=True),
    Column("validator_hotkey", HotkeyColumn, nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("later_tokens_per_sec", Float),
    Column("earlier_tokens_per_sec", Float),
    Column("later_spread", Float),
    Column("earlier_spread", Float),
    # Of the weighted scores, later to earlier.
    Column("ratio", Float),
    Column("gpu", Text, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("rules_version", Integer, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("signature", String(256), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint(
        "later_submission_id", "earlier_submission_id", "validator_hotkey", name="uq_comparisons_pair"
    ),
)

logit_checks = Table(
    "logit_checks",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("miner_hotkey", HotkeyColumn, nullable=False),
    Column("validator_hotkey", HotkeyColumn, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("cosine_similarity", Float),
    Column("max_abs_diff", Float),
    Column("step", Integer),
    Column("tokens_per_sec", Float),
    Column("reason", String(1000), nullable=False),
    Column("checked_at", UtcDateTime, nullable=False, index=True),
    Column("signature", String(256), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint("miner_hotkey", "validator_hotkey", "checked_at"),
)

nonces = Table(
    "nonces",
    metadata,
    Column("hotkey", HotkeyColumn, primary_key=True),
    Column("nonce_ns", BigInteger, primary_key=True),
    Column("seen_at", UtcDateTime, nullable=False, index=True),
)

standing_version = Table(
    "standing_version",
    metadata,
    Column("id", Integer, primary_key=True),
    # Raised by every change of what is ranked: its one row is the turn in which such changes are made.
    Column("version", BigInteger, nullable=False),
)

rate_windows = Table(
    "rate_windows",
    metadata,
    Column("key", String(100), primary_key=True),
    # Seconds since the epoch at which the key acted, oldest first.
    Column("moments", JSON, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False, index=True),
)

SHORT_REASON_CHARS: Final = 500

Row = Any
"""A row of a Core query; its attributes are the selected columns."""


def short_columns(table: Table) -> list[ColumnElement[Any]]:
    """The columns of verdicts or of comparisons, with the reason's beginning in place of the evidence."""
    reason = func.substr(table.c.evidence["reason"].as_string(), 1, SHORT_REASON_CHARS).label("reason")
    return [*(column for column in table.c if column.name != "evidence"), reason]
