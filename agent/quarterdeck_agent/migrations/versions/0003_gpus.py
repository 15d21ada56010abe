"""What is remembered of each GPU: the Xids that its driver reported, and since when somebody trusts it again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "gpus",
        sa.Column("uuid", sa.String(), primary_key=True, nullable=False),
        sa.Column("load", sa.String(), nullable=False),
        sa.Column("xids", sa.String(), nullable=False),
        sa.Column("trusted_at", sa.String()),
        sa.Column("trusted_errors", sa.Integer(), nullable=False),
    )
