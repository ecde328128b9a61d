"""Submissions, leases, verdicts, logit checks, rounds and nonces."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "logit_checks",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("miner_hotkey", sa.String(length=64), nullable=False),
        sa.Column("validator_hotkey", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("cosine_similarity", sa.Float(), nullable=True),
        sa.Column("max_abs_diff", sa.Float(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("tokens_per_sec", sa.Float(), nullable=True),
        sa.Column("reason", sa.String(length=1000), nullable=False),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("signature", sa.String(length=256), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_logit_checks")),
        sa.UniqueConstraint(
            "miner_hotkey",
            "validator_hotkey",
            "checked_at",
            name=op.f("uq_logit_checks_miner_hotkey_validator_hotkey_checked_at"),
        ),
    )
    op.create_index(op.f("ix_logit_checks_checked_at"), "logit_checks", ["checked_at"], unique=False)
    op.create_table(
        "nonces",
        sa.Column("hotkey", sa.String(length=64), nullable=False),
        sa.Column("nonce_ns", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("hotkey", "nonce_ns", name=op.f("pk_nonces")),
    )
    op.create_index(op.f("ix_nonces_seen_at"), "nonces", ["seen_at"], unique=False)
    op.create_table(
        "rounds",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=8), nullable=False),
        sa.Column("start_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("end_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("start_block", sa.BigInteger(), nullable=True),
        sa.Column("end_block", sa.BigInteger(), nullable=True),
        sa.Column(
            "baseline_submission_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True
        ),
        sa.Column("winner_hotkey", sa.String(length=64), nullable=True),
        sa.Column(
            "winner_submission_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rounds")),
        sa.UniqueConstraint("round_number", name=op.f("uq_rounds_round_number")),
    )
    op.create_index(
        "uq_rounds_open",
        "rounds",
        ["status"],
        unique=True,
        sqlite_where=sa.text("status = 'open'"),
        postgresql_where=sa.text("status = 'open'"),
    )
    op.create_table(
        "submissions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("miner_hotkey", sa.String(length=64), nullable=False),
        sa.Column("miner_coldkey", sa.String(length=64), nullable=False),
        sa.Column("target_sequence_length", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("commitment_hash", sa.String(length=64), nullable=True),
        sa.Column("commit_block", sa.BigInteger(), nullable=True),
        sa.Column("commit_block_hash", sa.String(length=80), nullable=True),
        sa.Column("reveal_block", sa.BigInteger(), nullable=True),
        sa.Column("expires_block", sa.BigInteger(), nullable=True),
        sa.Column("receipt_signature", sa.String(length=140), nullable=True),
        sa.Column("commitment_salt", sa.String(length=256), nullable=True),
        sa.Column("fork_url", sa.String(length=512), nullable=True),
        sa.Column("commit_hash", sa.String(length=40), nullable=True),
        sa.Column("repo_hash", sa.String(length=128), nullable=True),
        sa.Column("claimed_tokens_per_sec", sa.Float(), nullable=True),
        sa.Column("claimed_vram_mb", sa.Float(), nullable=True),
        sa.Column("benchmarks", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("revealed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("code_fixed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("round_number", sa.Integer(), nullable=True),
        sa.Column("judged_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_submissions")),
        sa.UniqueConstraint(
            "miner_hotkey",
            "commit_hash",
            "target_sequence_length",
            name=op.f("uq_submissions_miner_hotkey_commit_hash_target_sequence_length"),
        ),
        sa.UniqueConstraint(
            "miner_hotkey", "commitment_hash", name=op.f("uq_submissions_miner_hotkey_commitment_hash")
        ),
    )
    op.create_index("ix_submissions_judged_at", "submissions", ["judged_at", "revealed_at"], unique=False)
    op.create_index("ix_submissions_round_number", "submissions", ["round_number"], unique=False)
    op.create_table(
        "leases",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("lease_id", sa.String(length=64), nullable=False),
        sa.Column("submission_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("validator_hotkey", sa.String(length=64), nullable=False),
        sa.Column("miner_coldkey", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("leased_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["submission_id"], ["submissions.id"], name=op.f("fk_leases_submission_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leases")),
        sa.UniqueConstraint("lease_id", name=op.f("uq_leases_lease_id")),
    )
    op.create_index(
        "ix_leases_validator_hotkey_miner_coldkey",
        "leases",
        ["validator_hotkey", "miner_coldkey"],
        unique=False,
    )
    op.create_index(
        "uq_leases_held",
        "leases",
        ["submission_id", "validator_hotkey"],
        unique=True,
        sqlite_where=sa.text("state = 'held'"),
        postgresql_where=sa.text("state = 'held'"),
    )
    op.create_table(
        "round_places",
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("submission_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("miner_hotkey", sa.String(length=64), nullable=False),
        sa.Column("tokens_per_sec", sa.Float(), nullable=False),
        sa.Column("weighted_score", sa.Float(), nullable=False),
        sa.Column("share", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["round_number"], ["rounds.round_number"], name=op.f("fk_round_places_round_number")
        ),
        sa.ForeignKeyConstraint(
            ["submission_id"], ["submissions.id"], name=op.f("fk_round_places_submission_id")
        ),
        sa.PrimaryKeyConstraint("round_number", "place", name=op.f("pk_round_places")),
    )
    op.create_table(
        "verdicts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("submission_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("validator_hotkey", sa.String(length=64), nullable=False),
        sa.Column("lease_id", sa.String(length=64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("is_final", sa.Boolean(), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("fault", sa.String(length=32), nullable=False),
        sa.Column("measured_tokens_per_sec", sa.Float(), nullable=True),
        sa.Column("spread", sa.Float(), nullable=True),
        sa.Column("cosine_similarity", sa.Float(), nullable=True),
        sa.Column("max_abs_diff", sa.Float(), nullable=True),
        sa.Column("relative_error", sa.Float(), nullable=True),
        sa.Column("vram_mb", sa.Float(), nullable=True),
        sa.Column("gpu", sa.Text(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("rules_version", sa.Integer(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("signature", sa.String(length=256), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["submission_id"], ["submissions.id"], name=op.f("fk_verdicts_submission_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_verdicts")),
        sa.UniqueConstraint("lease_id", name=op.f("uq_verdicts_lease_id")),
        sa.UniqueConstraint(
            "submission_id", "validator_hotkey", name=op.f("uq_verdicts_submission_id_validator_hotkey")
        ),
    )


def downgrade() -> None:
    """Drop every table."""
    op.drop_table("verdicts")
    op.drop_table("round_places")
    op.drop_index(
        "uq_leases_held",
        table_name="leases",
        sqlite_where=sa.text("state = 'held'"),
        postgresql_where=sa.text("state = 'held'"),
    )
    op.drop_index("ix_leases_validator_hotkey_miner_coldkey", table_name="leases")
    op.drop_table("leases")
    op.drop_index("ix_submissions_round_number", table_name="submissions")
    op.drop_index("ix_submissions_judged_at", table_name="submissions")
    op.drop_table("submissions")
    op.drop_index(
        "uq_rounds_open",
        table_name="rounds",
        sqlite_where=sa.text("status = 'open'"),
        postgresql_where=sa.text("status = 'open'"),
    )
    op.drop_table("rounds")
    op.drop_index(op.f("ix_nonces_seen_at"), table_name="nonces")
    op.drop_table("nonces")
    op.drop_index(op.f("ix_logit_checks_checked_at"), table_name="logit_checks")
    op.drop_table("logit_checks")
