"""The store's tables as SQLModel classes, in the form of the newest migration (a test compares the two).

Rows never leave `store.py`. Nested values (specs, steps, failures) are JSON text; times are RFC 3339 text in UTC;
moments on the boot clock are a boot id and seconds. A row is never deleted: history is only appended.
"""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class VersionRow(SQLModel, table=True):
    """A version. `removed_at` frees its blobs; the label stays bound to the id for ever."""

    __tablename__ = "versions"

    id: str = Field(primary_key=True)
    label: str = Field(unique=True)
    name: str
    runtime: str
    size: int
    created_at: str
    by: str
    pickle_allowed: bool
    card: str | None = None
    formats: str
    config: str
    files: str
    manifest: bytes
    removed_at: str | None = None
    facts: str | None = None


class OperationRow(SQLModel, table=True):
    """A change asked for. `sequence` gives the order that clocks cannot."""

    __tablename__ = "operations"

    sequence: int | None = Field(default=None, primary_key=True)
    id: str = Field(unique=True)
    kind: str
    target: str = Field(index=True)
    by: str
    at: str
    state: str
    summary: str = ""
    why: str = ""
    revision: int | None = None
    changes: str = "[]"
    steps: str = "[]"
    finished_at: str | None = None
    code: str | None = None
    detail: str | None = None


class DeploymentRow(SQLModel, table=True):
    """A name and its pointers to revisions. It stays when the deployment is removed, so that numbers go on."""

    __tablename__ = "deployments"

    name: str = Field(primary_key=True)
    generation: int = 0
    last_number: int = 0
    last_operation: str = ""
    target: int | None = None
    live: int | None = None
    previous: int | None = None
    replaced_boot: str | None = None
    replaced_seconds: float | None = None
    holding_boot: str | None = None
    holding_seconds: float | None = None
    removing: bool = False
    removed: bool = False


class RevisionRow(SQLModel, table=True):
    """A numbered record of one spec; its steps are with its operation."""

    __tablename__ = "revisions"

    deployment: str = Field(primary_key=True, foreign_key="deployments.name")
    number: int = Field(primary_key=True)
    spec: str
    version: str = Field(index=True)
    body: str
    operation: str = Field(foreign_key="operations.id")
    by: str
    why: str = ""
    rollback_of: int | None = None
    handover: str
    handover_why: str = ""
    outcome: str
    created_at: str
    created_boot: str
    created_seconds: float
    served_at: str | None = None
    ended_at: str | None = None
    image: str | None = None
    reason: str | None = None
    failure: str | None = None


class BodyRow(SQLModel, table=True):
    """What this host knows of one body of a deployment: whether it passed the gate, its recent crashes, and the most
    bytes that one of its replicas was seen to hold on one GPU."""

    __tablename__ = "bodies"

    deployment: str = Field(primary_key=True, foreign_key="deployments.name")
    body: str = Field(primary_key=True)
    passed: bool = False
    crashes: str = "[]"
    gpu_memory_peak: int | None = None


class GpuRow(SQLModel, table=True):
    """What is remembered of one GPU: the Xids of one load of its driver, and what somebody trusted away."""

    __tablename__ = "gpus"

    uuid: str = Field(primary_key=True)
    load: str = ""
    xids: str = "[]"
    trusted_at: str | None = None
    trusted_errors: int = 0
