"""What replicas of a body were seen to hold on one GPU at most."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("bodies", sa.Column("gpu_memory_peak", sa.Integer()))
