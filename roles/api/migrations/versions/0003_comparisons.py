"""Re-runs of two submissions, which settle leads."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create their table."""
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    figures = ("later_tokens_per_sec", "earlier_tokens_per_sec", "later_spread", "earlier_spread", "ratio")
    op.create_table(
        "comparisons",
        sa.Column("id", number, nullable=False),
        sa.Column("later_submission_id", number, nullable=False),
        sa.Column("earlier_submission_id", number, nullable=False),
        sa.Column("validator_hotkey", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=32), nullable=False),
        *(sa.Column(name, sa.Float(), nullable=True) for name in figures),
        sa.Column("gpu", sa.Text(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("rules_version", sa.Integer(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("signature", sa.String(length=256), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["later_submission_id"],
            ["submissions.id"],
            name=op.f("fk_comparisons_later_submission_id_submissions"),
        ),
        sa.ForeignKeyConstraint(
            ["earlier_submission_id"],
            ["submissions.id"],
            name=op.f("fk_comparisons_earlier_submission_id_submissions"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparisons")),
        sa.UniqueConstraint(
            "later_submission_id", "earlier_submission_id", "validator_hotkey", name="uq_comparisons_pair"
        ),
    )
    op.create_index(
        op.f("ix_comparisons_earlier_submission_id"), "comparisons", ["earlier_submission_id"], unique=False
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("comparisons")
