"""Pooled outcomes, strikes by address, and what replicas share: the standing's version and rate windows."""

from collections import Counter
from itertools import groupby
from statistics import median

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

PARTIAL_INDEXES = {
    "ix_submissions_revealed": (["id"], "revealed_at IS NOT NULL"),
    "ix_submissions_pending": (["expires_block"], "revealed_at IS NULL"),
    "ix_submissions_queued": (["miner_hotkey"], "revealed_at IS NOT NULL AND judged_at IS NULL"),
    "ix_submissions_unsettled": (["id"], "judged_at IS NOT NULL AND settled_at IS NULL"),
    "ix_submissions_strikes": (["address", "settled_at"], "pooled_fault = 'miner'"),
}
COLUMNS = {
    "address": sa.String(length=64),
    "pooled_status": sa.String(length=32),
    "pooled_fault": sa.String(length=32),
    "pooled_tokens_per_sec": sa.Float(),
    "settled_at": sa.DateTime(timezone=True),
}


def upgrade() -> None:
    """Add columns, indexes and tables, and pool the verdicts that are there."""
    op.create_table(
        "standing_version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_standing_version")),
    )
    op.execute("INSERT INTO standing_version (id, version) VALUES (1, 0)")
    op.create_table(
        "rate_windows",
        sa.Column("key", sa.String(length=100), nullable=False),
        sa.Column("moments", sa.JSON(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_rate_windows")),
    )
    op.create_index(op.f("ix_rate_windows_seen_at"), "rate_windows", ["seen_at"], unique=False)
    op.create_index(op.f("ix_verdicts_created_at"), "verdicts", ["created_at"], unique=False)
    op.drop_index("ix_submissions_judged_at", table_name="submissions")
    for name, kind in COLUMNS.items():
        op.add_column("submissions", sa.Column(name, kind, nullable=True))
    for name, (columns, where) in PARTIAL_INDEXES.items():
        op.create_index(
            name, "submissions", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
        )
    _pool(op.get_bind())


def _pool(connection: sa.Connection) -> None:
    # As the version before ranked: every validator counts alike, and one is enough.
    rows = connection.execute(
        sa.text(
            "SELECT submission_id, status, fault, measured_tokens_per_sec FROM verdicts "
            "WHERE is_final ORDER BY submission_id, id"
        )
    ).all()
    for submission_id, group in groupby(rows, lambda row: row.submission_id):
        found = list(group)
        measured = [row.measured_tokens_per_sec for row in found if row.status == "passed"]
        if 2 * len(measured) > len(found):
            outcome = {"status": "passed", "fault": "nobody", "measured": median(measured)}
        else:
            failed = Counter((row.status, row.fault) for row in found if row.status != "passed")
            status, fault = failed.most_common(1)[0][0]
            outcome = {"status": status, "fault": fault, "measured": None}
        connection.execute(
            sa.text(
                "UPDATE submissions SET pooled_status = :status, pooled_fault = :fault, "
                "pooled_tokens_per_sec = :measured, settled_at = judged_at WHERE id = :id"
            ),
            {**outcome, "id": submission_id},
        )


def downgrade() -> None:
    """Drop what was added."""
    for name in PARTIAL_INDEXES:
        op.drop_index(name, table_name="submissions")
    for name in COLUMNS:
        op.drop_column("submissions", name)
    op.create_index("ix_submissions_judged_at", "submissions", ["judged_at", "revealed_at"], unique=False)
    op.drop_index(op.f("ix_verdicts_created_at"), table_name="verdicts")
    op.drop_table("rate_windows")
    op.drop_table("standing_version")
