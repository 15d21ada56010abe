"""What is wanted on this host, kept in SQLite: versions, deployments, revisions, operations, and what was ready.

Takes and gives frozen values only; rows never leave. Every method is one transaction, may be called from any thread
and blocks (call it in a thread). Which fact may be changed by whom: `propose`, `mark_removing`, `trust_gpu` and the
version methods belong to the API, `remember_gpu` to the sampler, all other changes to the reconciler.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from sqlmodel import Session, and_, col, or_, select
from sqlmodel.sql.expression import Select

from quarterdeck_agent import rows
from quarterdeck_agent.clock import Clock
from quarterdeck_agent.database import Database
from quarterdeck_agent.errors import Conflict, Corrupt, InvalidInput, NotFound
from quarterdeck_agent.protocol import (
    Change,
    Failure,
    Operation,
    OperationState,
    Revision,
    RevisionOutcome,
    Spec,
    StepRecord,
    Version,
)
from quarterdeck_agent.rows import GpuMemory
from quarterdeck_agent.tables import BodyRow, DeploymentRow, GpuRow, OperationRow, RevisionRow, VersionRow
from quarterdeck_agent.wanted import Instant, Wanted, WantedDeployment, WantedRevision

KEEP_CRASHES = 50
KEEP_VERSIONS_OF = 5
DIGEST_PREFIX = re.compile(r"[0-9a-f]{8,64}")
Peaks = dict[tuple[str, str], int]
_UNFINISHED = (OperationState.PENDING.value, OperationState.RUNNING.value)


@dataclass(frozen=True, slots=True)
class NewRevision:
    """A revision to be recorded; `handover` is the decided one (`overlap` or `hold`), never `auto`.

    `image` is the digest reference where it is known already: a rollback runs the very image of the old revision.
    """

    deployment: str
    spec: Spec
    body: str
    handover: str = "overlap"
    handover_why: str = ""
    why: str = ""
    rollback_of: int | None = None
    image: str | None = None


@dataclass(frozen=True, slots=True)
class NewOperation:
    """A change asked for, before it is recorded. `id` is the caller's: a repeat returns the first result."""

    id: str
    kind: str
    target: str
    by: str
    summary: str = ""
    why: str = ""
    changes: tuple[Change, ...] = field(default=())


class Store:
    """See the module's docstring. Made by `Store.open`."""

    sqlite_version: ClassVar[str] = sqlite3.sqlite_version

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._wanted: Wanted | None = None
        self._sequence = 0
        self._listeners: list[Callable[[], None]] = []

    @classmethod
    def open(cls, path: Path, backups: Path, clock: Clock) -> Store:
        """Open the store at `path`, made or migrated first where that is due.

        Raises `SettingsError` when a newer Quarterdeck wrote it, `Corrupt` when it is damaged.
        """
        return cls(Database(path, backups, clock), clock)

    @property
    def writes(self) -> int:
        """How many transactions were written since the store was opened; another number means other answers."""
        return self._database.writes

    def close(self) -> None:
        """Write everything into the one file and let go of it."""
        self._database.close()

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called after every change of what is wanted, in the thread that made it."""
        self._listeners.append(listener)

    # --- versions ----------------------------------------------------------------------------------------------

    def add_version(self, version: Version, manifest: bytes, operation: Operation) -> Version:
        """Record a verified version and the push that brought it. The same id again gives the first one.

        Raises `Conflict` when the label names another id, also one that was removed: a label names one id for ever.
        """
        with self._database.write() as session:
            found = session.exec(select(VersionRow).where(VersionRow.label == version.label)).one_or_none()
            if found is not None and found.id != version.id:
                raise Conflict(
                    f"{version.label} names version {found.id[:12]} already, not {version.id[:12]}",
                    field="config.version",
                    hint="A label names one content for ever: push the changed bundle under a new version.",
                )
            if found is None:
                found = rows.version_row(version, manifest)
            found.removed_at = None
            session.add(found)
            if _operation_row(session, operation.id) is None:
                session.add(rows.operation_row(operation))
            return rows.version(found)

    def set_facts(self, version: str, facts: dict[str, str]) -> None:
        """Remember what a version's replicas said that they run on; what is known already is not written again."""
        with self._database.read() as session:
            known = session.get(VersionRow, version)
            if known is None or rows.version(known).facts == facts:
                return
        with self._database.write() as session:
            row = session.get(VersionRow, version)
            if row is not None:
                row.facts = rows.to_json(facts)
                session.add(row)

    def versions(self) -> tuple[Version, ...]:
        """All versions on this host, newest first."""
        with self._database.read() as session:
            query = select(VersionRow).where(col(VersionRow.removed_at).is_(None))
            found = session.exec(query.order_by(col(VersionRow.created_at).desc(), col(VersionRow.id))).all()
            return tuple(rows.version(row) for row in found)

    def version(self, reference: str) -> Version:
        """The version with this id, label or unique prefix (8 digits or more) of an id."""
        with self._database.read() as session:
            return rows.version(_version_row(session, reference))

    def remove_version(self, version: str, operation: NewOperation | None = None) -> Version:
        """Forget a version so that its bytes can be freed. Its label stays bound to it.

        Raises `Conflict` while a deployment runs it, is to run it, or could be rolled back to it.
        """
        with self._database.write() as session:
            row = _version_row(session, version)
            _refuse_removal_in_use(session, row)
            row.removed_at = rows.to_text(self._clock.wall())
            session.add(row)
            if operation is not None and _operation_row(session, operation.id) is None:
                now = self._clock.wall()
                session.add(rows.operation_row(_begun(operation, self._clock, OperationState.SUCCEEDED, now)))
            return rows.version(row)

    # --- changes -----------------------------------------------------------------------------------------------

    def propose(
        self, revision: NewRevision, operation: NewOperation, generation: int | None = None
    ) -> tuple[Operation, bool]:
        """Record a new wanted form of a deployment, and give its operation and whether this was a repeat.

        `generation` is the one that the caller saw, 0 for a deployment that was not there. Raises `Conflict`, with
        the winner's operation, when another one is current, or while the deployment is being removed.
        """
        with self._changing() as session:
            repeated = _repeated(session, operation)
            if repeated is not None:
                return repeated, True
            row = session.get(DeploymentRow, revision.deployment)
            if row is None:
                row = DeploymentRow(name=revision.deployment, removed=True)
            _check_generation(row, generation)
            if row.removing:
                raise Conflict(
                    f"{row.name} is being removed",
                    operation=row.last_operation,
                    hint="Wait until it is gone, then deploy it again.",
                )
            self._supersede_pending(session, row)
            row.removed = False
            row.generation += 1
            row.last_number += 1
            row.last_operation = operation.id
            row.target = row.last_number
            recorded = rows.operation_row(_begun(operation, self._clock, revision=row.last_number))
            session.add_all((row, recorded))
            session.flush()
            session.add(self._revision_row(revision, operation, row.last_number))
            return rows.operation(recorded), False

    def mark_removing(
        self, deployment: str, operation: NewOperation, generation: int | None = None
    ) -> tuple[Operation, bool]:
        """Record that a deployment shall go, as `propose` does for a new form of it. Raises `NotFound`."""
        with self._changing() as session:
            repeated = _repeated(session, operation)
            if repeated is not None:
                return repeated, True
            row = _deployment_row(session, deployment)
            _check_generation(row, generation)
            if row.removing:
                raise Conflict(f"{deployment} is being removed already", operation=row.last_operation)
            self._supersede_pending(session, row)
            row.removing = True
            row.generation += 1
            row.last_operation = operation.id
            recorded = rows.operation_row(_begun(operation, self._clock))
            session.add_all((row, recorded))
            session.flush()
            return rows.operation(recorded), False

    def finish_removal(self, deployment: str) -> None:
        """Record that nothing of a deployment runs any more. Its history stays and its numbers go on."""
        with self._changing() as session:
            row = session.get(DeploymentRow, deployment)
            if row is None or not row.removing:
                return
            self._end(session, row, row.live, RevisionOutcome.REPLACED)
            for body in session.exec(select(BodyRow).where(BodyRow.deployment == deployment)).all():
                body.crashes = "[]"
                session.add(body)
            row.target = row.live = row.previous = None
            row.replaced_boot = row.holding_boot = None
            row.replaced_seconds = row.holding_seconds = None
            row.removing, row.removed = False, True
            session.add(row)
            self._finish(session, row.last_operation, OperationState.SUCCEEDED)

    # --- the reconciler's facts --------------------------------------------------------------------------------

    def wanted(self) -> Wanted:
        """Everything that should be on this host; from memory unless something changed since."""
        found = self._wanted
        if found is not None:
            return found
        # Under the writer's lock, so that no change can slip between reading and remembering.
        with self._database.lock:
            if self._wanted is None:
                with self._database.read() as session:
                    self._wanted = _read_wanted(session, self._sequence)
            return self._wanted

    def set_image(self, deployment: str, revision: int, image: str) -> None:
        """Record the digest reference that a revision's image was resolved to."""
        with self._changing() as session:
            row = _revision_row(session, deployment, revision)
            row.image = image
            session.add(row)

    def set_passed(self, deployment: str, body: str) -> None:
        """Record that replicas of this body went through the gate on this host."""
        with self._changing() as session:
            row = _body_row(session, deployment, body)
            row.passed = True
            session.add(row)

    def set_holding(self, deployment: str, since: Instant | None) -> None:
        """Record since when requests are held for a handover, or that they no longer are."""
        with self._changing() as session:
            row = _deployment_row(session, deployment)
            row.holding_boot = None if since is None else since.boot_id
            row.holding_seconds = None if since is None else since.seconds
            session.add(row)

    def promote(self, deployment: str, revision: int, at: Instant) -> bool:
        """Record that the target is to have the traffic. `False` when it is no longer the target: nothing is changed.

        Its operation goes on until the gateway has confirmed the switch; then the reconciler finishes it.

        The old live revision becomes `previous` (kept warm) if its replicas are others than the new one's.
        """
        with self._changing() as session:
            row = _deployment_row(session, deployment)
            if row.removing or revision != row.target:
                return False
            new = _revision_row(session, deployment, revision)
            if row.live != revision:
                self._replace(session, row, new, at)
            now = rows.to_text(self._clock.wall())
            new.outcome, new.reason, new.ended_at = RevisionOutcome.SERVING.value, None, None
            new.served_at = new.served_at or now
            if not rows.spec(new).stopped:
                body = _body_row(session, deployment, new.body)
                body.passed = True
                session.add(body)
            session.add_all((row, new))
            return True

    def forget_previous(self, deployment: str) -> None:
        """Record that the previous revision is no longer kept warm."""
        with self._changing() as session:
            row = _deployment_row(session, deployment)
            row.previous = row.replaced_boot = row.replaced_seconds = None
            session.add(row)

    def fail(self, deployment: str, revision: int, failure: Failure) -> bool:
        """Record why a revision failed. The deployment goes back to its live revision where it has one.

        A failed live revision keeps its place: it is what the host goes on trying. `False`, and nothing is changed,
        when the revision is neither the target nor live any more.
        """
        with self._changing() as session:
            row = _deployment_row(session, deployment)
            if revision not in (row.target, row.live):
                return False
            failed = _revision_row(session, deployment, revision)
            failed.outcome = RevisionOutcome.FAILED.value
            failed.reason = failure.reason.value
            failed.failure = rows.to_json(failure)
            failed.ended_at = rows.to_text(failure.at)
            if row.target == revision and row.live is not None:
                row.target = row.live
            session.add_all((row, failed))
            state, code = OperationState.FAILED, failure.reason.value
            self._finish(session, failed.operation, state, code, failure.message)
            return True

    def record_crash(self, deployment: str, body: str, at: Instant, failure: Failure) -> None:
        """Record an end that nobody asked for of a replica of this body (the last 50 are kept).

        The revisions of this body that the deployment points to keep the whole record; their outcome stays.
        """
        with self._changing() as session:
            row = _body_row(session, deployment, body)
            crashes = [*rows.crashes(row), (at.boot_id, at.seconds, failure.reason.value)]
            row.crashes = rows.to_json(crashes[-KEEP_CRASHES:])
            session.add(row)
            pointers = _deployment_row(session, deployment)
            for number in {n for n in (pointers.target, pointers.live) if n is not None}:
                revision = _revision_row(session, deployment, number)
                if revision.body == body:
                    revision.reason = failure.reason.value
                    revision.failure = rows.to_json(failure)
                    session.add(revision)

    def clear_crashes(self, deployment: str, body: str) -> None:
        """Forget the crashes of this body: it has been well for long enough."""
        with self._changing() as session:
            row = _body_row(session, deployment, body)
            row.crashes = "[]"
            session.add(row)

    def record_gpu_memory(self, deployment: str, body: str, peak: int) -> None:
        """Record what one replica of this body was seen to hold on one GPU, if that is more than ever before.

        A deployment that is not wanted any more keeps what it has.
        """
        with self._changing() as session:
            pointers = session.get(DeploymentRow, deployment)
            row = _body_row(session, deployment, body)
            if pointers is None or pointers.removed or (row.gpu_memory_peak or 0) >= peak:
                return
            row.gpu_memory_peak = peak
            session.add(row)

    def record_steps(self, operation: str, steps: Sequence[StepRecord]) -> None:
        """Record how an operation goes; the first record sets it running. What is wanted does not change by it."""
        with self._database.write() as session:
            row = _operation_row(session, operation)
            if row is None:
                raise NotFound(f"there is no operation {operation}")
            row.steps = rows.to_json(tuple(steps))
            if row.state == OperationState.PENDING.value:
                row.state = OperationState.RUNNING.value
            session.add(row)

    def finish_operation(
        self, operation: str, state: OperationState, code: str | None = None, detail: str | None = None
    ) -> None:
        """Record how an operation ended. The first end stands."""
        with self._database.write() as session:
            self._finish(session, operation, state, code, detail)

    # --- GPUs --------------------------------------------------------------------------------------------------

    def gpu_memories(self) -> dict[str, GpuMemory]:
        """What is remembered of every GPU, by its uuid."""
        with self._database.read() as session:
            return {row.uuid: rows.gpu_memory(row) for row in session.exec(select(GpuRow)).all()}

    def remember_gpu(self, memory: GpuMemory) -> None:
        """Record the Xids of a GPU. What somebody trusted away since `memory` was read stays as it was trusted."""
        with self._database.write() as session:
            row = session.get(GpuRow, memory.uuid) or GpuRow(uuid=memory.uuid)
            row.load, row.xids = memory.load, rows.to_json(memory.xids)
            trusted_at = None if memory.trusted_at is None else rows.to_text(memory.trusted_at)
            if row.trusted_at == trusted_at:
                row.trusted_errors = memory.trusted_errors
            session.add(row)

    def trust_gpu(self, uuid: str, errors: int, operation: NewOperation) -> tuple[Operation, bool]:
        """Record that what was with a GPU until now does not count any more, `errors` memory errors included.

        Gives the operation, which is through at once, and whether this was a repeat.
        """
        with self._database.write() as session:
            repeated = _repeated(session, operation)
            if repeated is not None:
                return repeated, True
            row = session.get(GpuRow, uuid) or GpuRow(uuid=uuid)
            now = self._clock.wall()
            row.trusted_at, row.trusted_errors = rows.to_text(now), errors
            recorded = rows.operation_row(_begun(operation, self._clock, OperationState.SUCCEEDED, now))
            session.add_all((row, recorded))
            session.flush()
            return rows.operation(recorded), False

    # --- reads -------------------------------------------------------------------------------------------------

    def deployment_names(self) -> tuple[str, ...]:
        """The names of all deployments, those being removed included."""
        return tuple(one.name for one in self.wanted().deployments)

    def deployment(self, name: str) -> WantedDeployment | None:
        """One deployment of `wanted()`."""
        return next((one for one in self.wanted().deployments if one.name == name), None)

    def revisions(self, deployment: str) -> tuple[Revision, ...]:
        """All revisions of a deployment, newest first, also when it has been removed; none for an unknown name."""
        with self._database.read() as session:
            query = _revisions_with_steps(deployment).order_by(col(RevisionRow.number).desc())
            return tuple(rows.revision(*found) for found in session.exec(query).all())

    def revision(self, deployment: str, number: int) -> Revision:
        """One revision. Raises `NotFound`."""
        with self._database.read() as session:
            query = _revisions_with_steps(deployment).where(RevisionRow.number == number)
            found = session.exec(query).one_or_none()
            if found is None:
                raise _no_revision(deployment, number)
            return rows.revision(*found)

    def gpu_memory_peak(self, deployment: str, body: str, version: str) -> int | None:
        """The most bytes that one replica of this body was seen to hold on one GPU; else of any body of `version`.

        `None` while no replica of one that passed the gate was measured.
        """
        with self._database.read() as session:
            own, of_version = _peaks(session, deployment)
            return own.get((deployment, body), of_version.get((deployment, version)))

    def crashes(self, deployment: str) -> dict[int, int]:
        """How many crashes are remembered of the body of each revision, by its number."""
        with self._database.read() as session:
            query = select(RevisionRow.number, BodyRow).join(BodyRow, _OF_BODY)
            found = session.exec(query.where(RevisionRow.deployment == deployment)).all()
            return {number: len(rows.crashes(body)) for number, body in found}

    def operations(self, limit: int = 100, target: str | None = None) -> tuple[Operation, ...]:
        """The last operations, newest first, of one target where it is given."""
        with self._database.read() as session:
            query = select(OperationRow).order_by(col(OperationRow.sequence).desc()).limit(limit)
            if target is not None:
                query = query.where(OperationRow.target == target)
            return tuple(rows.operation(row) for row in session.exec(query).all())

    def operation(self, operation: str) -> Operation:
        """One operation. Raises `NotFound`."""
        with self._database.read() as session:
            row = _operation_row(session, operation)
            if row is None:
                raise NotFound(f"there is no operation {operation}")
            return rows.operation(row)

    # --- inside a transaction ----------------------------------------------------------------------------------

    @contextmanager
    def _changing(self) -> Iterator[Session]:
        """A transaction after which what is wanted is read anew."""
        with self._database.lock:
            with self._database.write() as session:
                yield session
            self._sequence += 1
            self._wanted = None
        for listener in self._listeners:
            listener()

    def _supersede_pending(self, session: Session, row: DeploymentRow) -> None:
        """The target that has not come through yet makes room for a newer wish."""
        if row.target is None:
            return
        target = _revision_row(session, row.name, row.target)
        if target.outcome != RevisionOutcome.PENDING.value:
            return
        self._end(session, row, row.target, RevisionOutcome.SUPERSEDED)

    def _replace(self, session: Session, row: DeploymentRow, new: RevisionRow, at: Instant) -> None:
        """Hand the traffic from the live revision to `new`."""
        if row.live is not None:
            old = _revision_row(session, row.name, row.live)
            self._end(session, row, row.live, RevisionOutcome.REPLACED)
            if old.body != new.body and not rows.spec(old).stopped:
                row.previous, row.replaced_boot, row.replaced_seconds = old.number, at.boot_id, at.seconds
        row.live = new.number
        if row.previous is not None:
            warm = _revision_row(session, row.name, row.previous)
            # Replicas of one body are the live revision's own, and a stopped deployment keeps nothing warm.
            if warm.body == new.body or rows.spec(new).stopped:
                row.previous = row.replaced_boot = row.replaced_seconds = None

    def _end(self, session: Session, row: DeploymentRow, number: int | None, outcome: RevisionOutcome) -> None:
        """A revision makes room for another. Its operation ends with it, if the gateway has not confirmed it by now."""
        if number is None:
            return
        revision = _revision_row(session, row.name, number)
        if revision.outcome != RevisionOutcome.FAILED.value:
            revision.outcome = outcome.value
            revision.ended_at = rows.to_text(self._clock.wall())
        session.add(revision)
        self._finish(session, revision.operation, OperationState.SUPERSEDED)

    def _finish(
        self,
        session: Session,
        operation: str,
        state: OperationState,
        code: str | None = None,
        detail: str | None = None,
    ) -> None:
        row = _operation_row(session, operation)
        if row is None:
            raise NotFound(f"there is no operation {operation}")
        if row.state in _UNFINISHED:
            row.state, row.code, row.detail = state.value, code, detail
            row.finished_at = rows.to_text(self._clock.wall())
            session.add(row)

    def _revision_row(self, revision: NewRevision, operation: NewOperation, number: int) -> RevisionRow:
        return RevisionRow(
            deployment=revision.deployment,
            number=number,
            spec=rows.to_json(revision.spec),
            version=revision.spec.version,
            body=revision.body,
            operation=operation.id,
            by=operation.by,
            why=revision.why,
            rollback_of=revision.rollback_of,
            handover=revision.handover,
            handover_why=revision.handover_why,
            outcome=RevisionOutcome.PENDING.value,
            created_at=rows.to_text(self._clock.wall()),
            created_boot=self._clock.boot_id,
            created_seconds=self._clock.now(),
            image=revision.image,
        )


# --- queries ---------------------------------------------------------------------------------------------------


def _begun(
    operation: NewOperation,
    clock: Clock,
    state: OperationState = OperationState.PENDING,
    finished_at: datetime | None = None,
    revision: int | None = None,
) -> Operation:
    return Operation(
        id=operation.id,
        kind=operation.kind,
        target=operation.target,
        by=operation.by,
        at=clock.wall(),
        state=state,
        summary=operation.summary,
        why=operation.why,
        revision=revision,
        changes=operation.changes,
        finished_at=finished_at,
    )


def _repeated(session: Session, operation: NewOperation) -> Operation | None:
    """The first operation with this id. Raises `Conflict` when it was another change."""
    row = _operation_row(session, operation.id)
    if row is None:
        return None
    if (row.kind, row.target) != (operation.kind, operation.target):
        raise Conflict(
            f"operation {operation.id} was {row.kind} {row.target} and cannot be used for another change",
            operation=row.id,
            hint="Give each change an operation id of its own.",
        )
    return rows.operation(row)


def _check_generation(row: DeploymentRow, generation: int | None) -> None:
    current = 0 if row.removed else row.generation
    if generation is None or generation == current:
        return
    raise Conflict(
        f"{row.name} was changed since generation {generation}; it is at {current} now",
        field="generation",
        operation=row.last_operation or None,
        hint="Look at what it is now and decide again.",
    )


def _operation_row(session: Session, operation: str) -> OperationRow | None:
    return session.exec(select(OperationRow).where(OperationRow.id == operation)).one_or_none()


def _deployment_row(session: Session, name: str) -> DeploymentRow:
    row = session.get(DeploymentRow, name)
    if row is None or row.removed:
        raise NotFound(f"there is no deployment {name} on this host", hint="`qd status` lists the deployments.")
    return row


def _no_revision(deployment: str, number: int) -> NotFound:
    return NotFound(f"{deployment} has no revision {number}", hint=f"`qd history {deployment}` lists them.")


def _revision_row(session: Session, deployment: str, number: int) -> RevisionRow:
    row = session.get(RevisionRow, (deployment, number))
    if row is None:
        raise _no_revision(deployment, number)
    return row


def _body_row(session: Session, deployment: str, body: str) -> BodyRow:
    row = session.get(BodyRow, (deployment, body))
    return BodyRow(deployment=deployment, body=body) if row is None else row


def _revisions_with_steps(deployment: str) -> Select[RevisionRow, str, int | None]:
    query = select(RevisionRow, OperationRow.steps, BodyRow.gpu_memory_peak)
    query = query.join(OperationRow, col(OperationRow.id) == RevisionRow.operation)
    query = query.join(BodyRow, _OF_BODY, isouter=True)
    return query.where(RevisionRow.deployment == deployment)


def _peaks(session: Session, deployment: str | None = None) -> tuple[Peaks, Peaks]:
    """The peaks of GPU memory that were measured, by (deployment, body) and by (deployment, version).

    Only of bodies that went through the gate: what ended or is still loading has not held what it needs.
    """
    query = select(BodyRow.deployment, BodyRow.body, RevisionRow.version, BodyRow.gpu_memory_peak)
    query = query.join(RevisionRow, _OF_BODY).where(col(BodyRow.gpu_memory_peak).is_not(None), col(BodyRow.passed))
    if deployment is not None:
        query = query.where(BodyRow.deployment == deployment)
    of_body: Peaks = {}
    of_version: Peaks = {}
    for name, body, version, peak in session.exec(query).all():
        of_body[name, body] = peak or 0
        of_version[name, version] = max(peak or 0, of_version.get((name, version), 0))
    return of_body, of_version


def _version_row(session: Session, reference: str) -> VersionRow:
    query = select(VersionRow)
    if DIGEST_PREFIX.fullmatch(reference):
        query = query.where(col(VersionRow.id).startswith(reference, autoescape=True))
    else:
        query = query.where(VersionRow.label == reference)
    found = session.exec(query).all()
    present = [row for row in found if row.removed_at is None]
    if len(present) > 1:
        labels = ", ".join(sorted(row.label for row in present)[:5])
        raise InvalidInput(
            f"{reference} is the beginning of {len(present)} ids ({labels})", field="version", hint="Write more digits."
        )
    if present:
        return present[0]
    if found:
        raise NotFound(
            f"version {found[0].label} was removed from this host on {found[0].removed_at}", hint="Push it again."
        )
    raise NotFound(
        f"there is no version {reference[:80]} on this host",
        hint="`qd versions` lists them; `qd push FOLDER` brings one.",
    )


def _refuse_removal_in_use(session: Session, version: VersionRow) -> None:
    query = select(RevisionRow, DeploymentRow).join(DeploymentRow, col(DeploymentRow.name) == RevisionRow.deployment)
    query = query.where(RevisionRow.version == version.id, col(DeploymentRow.removed).is_(False))
    for revision, row in session.exec(query).all():
        recent = revision.number > row.last_number - KEEP_VERSIONS_OF
        if revision.number in (row.target, row.live, row.previous) or recent:
            raise Conflict(
                f"{version.label} is used by revision {revision.number} of {row.name}",
                hint=f"It can go when {row.name} runs something else and {KEEP_VERSIONS_OF} newer revisions are there, "
                f"or after `qd rm {row.name}`.",
            )


def _read_wanted(session: Session, sequence: int) -> Wanted:
    deployments = session.exec(
        select(DeploymentRow).where(col(DeploymentRow.removed).is_(False)).order_by(DeploymentRow.name)
    ).all()
    needed = or_(*(col(RevisionRow.number) == pointer for pointer in _POINTERS))
    query = select(RevisionRow).join(DeploymentRow, col(DeploymentRow.name) == RevisionRow.deployment)
    query = query.where(col(DeploymentRow.removed).is_(False), needed)
    revisions = {(row.deployment, row.number): row for row in session.exec(query).all()}
    bodies = {(row.deployment, row.body): row for row in session.exec(select(BodyRow)).all()}
    of_body, of_version = _peaks(session)

    def revision(name: str, number: int | None) -> WantedRevision | None:
        if number is None:
            return None
        row = revisions[name, number]
        peak = of_body.get((name, row.body), of_version.get((name, row.version)))
        return rows.wanted_revision(row, bodies.get((name, row.body)), peak)

    return Wanted(tuple(_wanted_deployment(row, revision) for row in deployments), sequence)


_OF_BODY = and_(col(BodyRow.deployment) == RevisionRow.deployment, col(BodyRow.body) == RevisionRow.body)
_POINTERS = (col(DeploymentRow.target), col(DeploymentRow.live), col(DeploymentRow.previous))


def _wanted_deployment(
    row: DeploymentRow, revision: Callable[[str, int | None], WantedRevision | None]
) -> WantedDeployment:
    target = revision(row.name, row.target)
    if target is None:
        raise Corrupt(f"deployment {row.name} points to no revision", hint="Restore the newest backup of the store.")
    holding = rows.instant(row.holding_boot, row.holding_seconds)
    return WantedDeployment(
        name=row.name,
        generation=row.generation,
        target=target,
        live=revision(row.name, row.live),
        previous=revision(row.name, row.previous),
        replaced_at=rows.instant(row.replaced_boot, row.replaced_seconds),
        holding=holding is not None,
        holding_since=holding,
        removing=row.removing,
    )
