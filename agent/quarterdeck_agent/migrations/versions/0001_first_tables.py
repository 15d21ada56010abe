"""The first tables: versions, operations, deployments, revisions and what is known of bodies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _versions()
    _operations()
    _deployments()
    _revisions()
    op.create_table(
        "bodies",
        sa.Column("deployment", sa.String(), sa.ForeignKey("deployments.name"), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("crashes", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("deployment", "body"),
    )


def _versions() -> None:
    op.create_table(
        "versions",
        sa.Column("id", sa.String(), primary_key=True, nullable=False),
        sa.Column("label", sa.String(), nullable=False, unique=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("runtime", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("pickle_allowed", sa.Boolean(), nullable=False),
        sa.Column("card", sa.String()),
        sa.Column("formats", sa.String(), nullable=False),
        sa.Column("config", sa.String(), nullable=False),
        sa.Column("files", sa.String(), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("removed_at", sa.String()),
    )


def _operations() -> None:
    op.create_table(
        "operations",
        sa.Column("sequence", sa.Integer(), primary_key=True, nullable=False),
        sa.Column("id", sa.String(), nullable=False, unique=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("summary", sa.String(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer()),
        sa.Column("changes", sa.String(), nullable=False),
        sa.Column("steps", sa.String(), nullable=False),
        sa.Column("finished_at", sa.String()),
        sa.Column("code", sa.String()),
        sa.Column("detail", sa.String()),
    )
    op.create_index("ix_operations_target", "operations", ["target"])


def _deployments() -> None:
    op.create_table(
        "deployments",
        sa.Column("name", sa.String(), primary_key=True, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("last_number", sa.Integer(), nullable=False),
        sa.Column("last_operation", sa.String(), nullable=False),
        sa.Column("target", sa.Integer()),
        sa.Column("live", sa.Integer()),
        sa.Column("previous", sa.Integer()),
        sa.Column("replaced_boot", sa.String()),
        sa.Column("replaced_seconds", sa.Float()),
        sa.Column("holding_boot", sa.String()),
        sa.Column("holding_seconds", sa.Float()),
        sa.Column("removing", sa.Boolean(), nullable=False),
        sa.Column("removed", sa.Boolean(), nullable=False),
    )


def _revisions() -> None:
    op.create_table(
        "revisions",
        sa.Column("deployment", sa.String(), sa.ForeignKey("deployments.name"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("spec", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("operation", sa.String(), sa.ForeignKey("operations.id"), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("rollback_of", sa.Integer()),
        sa.Column("handover", sa.String(), nullable=False),
        sa.Column("handover_why", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("created_boot", sa.String(), nullable=False),
        sa.Column("created_seconds", sa.Float(), nullable=False),
        sa.Column("served_at", sa.String()),
        sa.Column("ended_at", sa.String()),
        sa.Column("image", sa.String()),
        sa.Column("reason", sa.String()),
        sa.Column("failure", sa.String()),
        sa.PrimaryKeyConstraint("deployment", "number"),
    )
    op.create_index("ix_revisions_version", "revisions", ["version"])
