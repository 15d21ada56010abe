"""Turns rows into the frozen values of `protocol` and `wanted`, and values into rows. No queries, no decisions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

import msgspec

from quarterdeck_agent.protocol import (
    Change,
    Failure,
    FailureReason,
    ManifestFile,
    Operation,
    OperationState,
    Revision,
    RevisionOutcome,
    Spec,
    StepRecord,
    Version,
)
from quarterdeck_agent.tables import BodyRow, GpuRow, OperationRow, RevisionRow, VersionRow
from quarterdeck_agent.wanted import Instant, WantedRevision

_spec = msgspec.json.Decoder(Spec)
_failure = msgspec.json.Decoder(Failure)
_steps = msgspec.json.Decoder(tuple[StepRecord, ...])
_changes = msgspec.json.Decoder(tuple[Change, ...])
_files = msgspec.json.Decoder(tuple[ManifestFile, ...])
_texts = msgspec.json.Decoder(tuple[str, ...])
_facts = msgspec.json.Decoder(dict[str, str])
_config = msgspec.json.Decoder(dict[str, Any])
_crashes = msgspec.json.Decoder(list[tuple[str, float, str]])
_xids = msgspec.json.Decoder(tuple[tuple[int, datetime], ...])


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """What is remembered of one GPU (`uuid`) for one load of its driver.

    `xids` are (number, time), newest first. `trusted_errors` uncorrectable memory errors do not count any more since
    somebody trusted the GPU again at `trusted_at`.
    """

    uuid: str
    load: str = ""
    xids: tuple[tuple[int, datetime], ...] = ()
    trusted_at: datetime | None = None
    trusted_errors: int = 0


def to_json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def to_text(moment: datetime) -> str:
    """RFC 3339 in UTC; refuses times without a zone."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment.astimezone(UTC).isoformat()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def instant(boot: str | None, seconds: float | None) -> Instant | None:
    return None if boot is None or seconds is None else Instant(boot, seconds)


def version_row(version: Version, manifest: bytes) -> VersionRow:
    return VersionRow(
        id=version.id,
        label=version.label,
        name=version.name,
        runtime=version.runtime,
        size=version.size,
        created_at=to_text(version.created_at),
        by=version.by,
        pickle_allowed=version.pickle_allowed,
        card=version.card,
        formats=to_json(version.formats),
        config=to_json(version.config),
        files=to_json(version.files),
        manifest=manifest,
    )


def version(row: VersionRow) -> Version:
    return Version(
        id=row.id,
        label=row.label,
        name=row.name,
        runtime=row.runtime,
        size=row.size,
        files=_files.decode(row.files),
        created_at=datetime.fromisoformat(row.created_at),
        by=row.by,
        config=_config.decode(row.config),
        pickle_allowed=row.pickle_allowed,
        card=row.card,
        formats=_texts.decode(row.formats),
        facts=_facts.decode(row.facts) if row.facts else {},
    )


def operation_row(operation: Operation) -> OperationRow:
    return OperationRow(
        id=operation.id,
        kind=operation.kind,
        target=operation.target,
        by=operation.by,
        at=to_text(operation.at),
        state=operation.state.value,
        summary=operation.summary,
        why=operation.why,
        revision=operation.revision,
        changes=to_json(operation.changes),
        steps=to_json(operation.steps),
        finished_at=None if operation.finished_at is None else to_text(operation.finished_at),
        code=operation.code,
        detail=operation.detail,
    )


def operation(row: OperationRow) -> Operation:
    return Operation(
        id=row.id,
        kind=row.kind,
        target=row.target,
        by=row.by,
        at=datetime.fromisoformat(row.at),
        state=OperationState(row.state),
        summary=row.summary,
        why=row.why,
        revision=row.revision,
        changes=_changes.decode(row.changes),
        steps=_steps.decode(row.steps),
        finished_at=_moment(row.finished_at),
        code=row.code,
        detail=row.detail,
    )


def revision(row: RevisionRow, steps: str, gpu_memory_peak: int | None) -> Revision:
    return Revision(
        deployment=row.deployment,
        number=row.number,
        spec=_spec.decode(row.spec),
        created_at=datetime.fromisoformat(row.created_at),
        by=row.by,
        operation=row.operation,
        why=row.why,
        rollback_of=row.rollback_of,
        handover=row.handover,
        handover_why=row.handover_why,
        outcome=RevisionOutcome(row.outcome),
        served_at=_moment(row.served_at),
        ended_at=_moment(row.ended_at),
        steps=_steps.decode(steps),
        failure=None if row.failure is None else _failure.decode(row.failure),
        image=row.image or None,
        gpu_memory_peak=gpu_memory_peak,
    )


def spec(row: RevisionRow) -> Spec:
    return _spec.decode(row.spec)


def wanted_revision(row: RevisionRow, body: BodyRow | None, gpu_memory_peak: int | None) -> WantedRevision:
    return WantedRevision(
        number=row.number,
        spec=_spec.decode(row.spec),
        body=row.body,
        operation=row.operation,
        created=Instant(row.created_boot, row.created_seconds),
        handover=cast(Literal["overlap", "hold"], row.handover),
        outcome=RevisionOutcome(row.outcome),
        image=row.image,
        passed=body is not None and body.passed,
        crashes=() if body is None else tuple(Instant(boot, at) for boot, at, _ in crashes(body)),
        reason=None if row.reason is None else FailureReason(row.reason),
        gpu_memory_peak=gpu_memory_peak,
    )


def crashes(row: BodyRow) -> list[tuple[str, float, str]]:
    """Boot id, seconds and reason of each crash, oldest first."""
    return _crashes.decode(row.crashes)


def gpu_memory(row: GpuRow) -> GpuMemory:
    return GpuMemory(row.uuid, row.load, _xids.decode(row.xids), _moment(row.trusted_at), row.trusted_errors)
