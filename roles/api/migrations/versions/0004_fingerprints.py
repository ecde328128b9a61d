"""Fingerprints, by which a copy that was judged before its original is known."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them; verdicts from before have none, and nothing that they judged counts as a copy."""
    op.add_column("verdicts", sa.Column("fingerprint", sa.String(length=64), nullable=True))
    op.add_column("submissions", sa.Column("fingerprint", sa.String(length=64), nullable=True))
    op.create_index(
        "ix_submissions_fingerprint", "submissions", ["fingerprint", "code_fixed_at", "id"], unique=False
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_index("ix_submissions_fingerprint", table_name="submissions")
    op.drop_column("submissions", "fingerprint")
    op.drop_column("verdicts", "fingerprint")
