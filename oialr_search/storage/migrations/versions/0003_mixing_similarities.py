"""Mixing similarity by Eq. (5), beside the relative one, which so far had its name."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Give the relative similarity its own name; of what was observed, Eq. (5) is unknown."""
    op.execute(
        "ALTER TABLE observations RENAME COLUMN mixing_similarity TO relative_mixing_similarity"
    )
    op.add_column(
        "observations",
        sa.Column(
            "mixing_similarity", sa.Double(), nullable=True, comment="of the mixings, Eq. (5)"
        ),
    )
    _explain("relative_mixing_similarity", "the same, relative to the mixings' norms")


def downgrade() -> None:
    """Leave the relative similarity only."""
    op.drop_column("observations", "mixing_similarity")
    op.execute(
        "ALTER TABLE observations RENAME COLUMN relative_mixing_similarity TO mixing_similarity"
    )
    _explain("mixing_similarity", "of the mixings, Eq. (5)")


def _explain(column: str, comment: str) -> None:
    if op.get_bind().dialect.name == "postgresql":  # SQLite has no comments
        op.alter_column("observations", column, comment=comment)
