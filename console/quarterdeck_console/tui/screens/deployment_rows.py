"""Pure: a deployment's revisions and replicas as rows, revision beside revision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from quarterdeck_agent.protocol import (
    DeploymentState,
    DeploymentStatus,
    HostStatus,
    Operation,
    OperationState,
    Replica,
    ReplicaGauges,
    Revision,
    RevisionOutcome,
    StepRecord,
    Traffic,
)
from quarterdeck_console import gpus, views
from quarterdeck_console.clean import clean_line
from quarterdeck_console.gpus import Device
from quarterdeck_console.tui import marks
from quarterdeck_console.tui.screens.fleet_rows import failed, short_label
from quarterdeck_console.tui.widgets.table import Column, Line
from quarterdeck_console.views import NOTHING, Cell, Severity

REVISIONS = (
    Column("rev", "REV", 4, number=True), Column("version", "VERSION", 10), Column("when", "WHEN", 6, number=True),
    Column("by", "WHO", 7, drop=5), Column("outcome", "OUTCOME", 31, grow=True), Column("why", "WHY", 24, drop=10),
    Column("weight", "WEIGHT", 6, number=True, drop=9), Column("rate", "REQ/S", 7, number=True),
    Column("errors", "ERR", 6, number=True),
    Column("p50", "P50", 7, number=True, drop=7), Column("p95", "P95", 7, number=True),
    Column("p99", "P99", 7, number=True, drop=8), Column("memory", "MEMORY", 9, number=True, drop=9),
    Column("peak", "GPU MEM (peak)", 14, number=True, drop=6),
)  # fmt: skip
WITHOUT_GPU = tuple(column for column in REVISIONS if column.key != "peak")
REPLICAS = (
    Column("replica", "REPLICA", 18), Column("rev", "REV", 4, number=True), Column("state", "STATE", 11),
    Column("gpu", "GPU", 5), Column("gpu_memory", "GPU MEMORY", 12, number=True, drop=3),
    Column("cores", "CORES", 6, number=True, drop=4), Column("memory", "MEMORY", 9, number=True),
    Column("restarts", "RESTARTS", 8, number=True, drop=5), Column("age", "AGE", 6, number=True, drop=2),
    Column("handle", "HANDLE", 20, drop=9), Column("reason", "REASON", 10, grow=True),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of one deployment: its host's figures of this moment, its revisions of the last answer."""

    status: DeploymentStatus | None
    revisions: tuple[Revision, ...]
    host: HostStatus | None
    now: datetime
    lost: bool = False

    @property
    def name(self) -> str:
        """The deployment's."""
        return self.status.name if self.status is not None else self.revisions[0].deployment if self.revisions else ""

    def traffic(self, number: int) -> Traffic | None:
        """What the gateway counted for a revision."""
        known = self.host.traffic if self.host is not None else ()
        return next((each for each in known if (each.deployment, each.revision) == (self.name, number)), None)

    def gauges(self) -> Mapping[str, ReplicaGauges]:
        """What each replica uses."""
        known = self.host.replica_gauges if self.host is not None else ()
        return {each.replica: each for each in known if each.deployment == self.name}

    def gpus(self) -> Mapping[str, Device]:
        """The host's GPUs and MIG instances."""
        return {each.gpu.uuid: each for each in gpus.devices(self.host)}

    def operation(self, revision: Revision) -> Operation | None:
        """The change that made a revision, as it stands."""
        known = self.host.operations if self.host is not None else ()
        return next((each for each in known if each.id == revision.operation), None)

    def steps(self, revision: Revision) -> tuple[StepRecord, ...]:
        """How a revision was rolled out so far: the change's own steps are fresher than the record."""
        operation = self.operation(revision)
        return operation.steps if operation is not None and operation.steps else revision.steps

    def rolling(self) -> Operation | None:
        """The change that is under way."""
        known = self.host.operations if self.host is not None else ()
        return next((each for each in known if each.target == self.name and each.state == OperationState.RUNNING), None)


def wrote(seen: Seen, number: int) -> int:
    """The revision whose replicas a revision serves by: of one that was rolled back to, maybe the one it came from."""
    status = seen.status
    if status is None or number != status.live_revision:
        return number
    by_number = {each.number: each for each in seen.revisions}
    running, found = {each.revision for each in status.replicas}, number
    while found not in running:
        before = by_number.get(found)
        if before is None or before.rollback_of is None or before.rollback_of >= found:
            return number
        found = before.rollback_of
    return found


# --- revisions -------------------------------------------------------------------------------------------------------


def with_peaks(known: Sequence[Revision], told: Mapping[str, Revision]) -> tuple[Revision, ...]:
    """Revisions with the peaks of GPU memory that the host's events told since."""

    def peak(each: Revision) -> int | None:
        newer = told.get(f"{each.deployment}/{each.number}")
        return newer.gpu_memory_peak if newer is not None else each.gpu_memory_peak

    return tuple(replace(each, gpu_memory_peak=peak(each)) for each in known)


def columns(seen: Seen) -> tuple[Column, ...]:
    """The columns of the revisions: that of GPU memory only where any of them was seen to hold some."""
    return REVISIONS if any(each.gpu_memory_peak for each in seen.revisions) else WITHOUT_GPU


def revisions(seen: Seen) -> Iterator[Line]:
    """Newest first."""
    width = len(columns(seen))
    memory: dict[int, int] = {}
    live = seen.status.live_revision if seen.status is not None else None
    by = wrote(seen, live) if live is not None else None
    for gauges in seen.gauges().values():
        if gauges.memory is not None:
            number = live if live is not None and gauges.revision == by else gauges.revision
            memory[number] = memory.get(number, 0) + gauges.memory
    for each in seen.revisions:
        line = _revision(seen, each, seen.traffic(each.number), memory.get(each.number))
        yield replace(line, cells=line.cells[:width], sort=line.sort[:width])


def _revision(seen: Seen, each: Revision, traffic: Traffic | None, memory: int | None) -> Line:
    said = outcome(seen, each)
    share = error_share(traffic)
    weight, rate = (traffic.weight, traffic.rate) if traffic else (None, None)
    p50, p95, p99 = (traffic.p50, traffic.p95, traffic.p99) if traffic else (None, None, None)
    cells = (
        Cell(str(each.number), number=True),
        Cell(short_label(each.spec.label, each.deployment)),
        Cell(marks.since(each.created_at, seen.now), number=True),
        Cell(each.by),
        said,
        Cell(clean_line(each.why)),
        Cell(views.ratio(weight), number=True),
        Cell(NOTHING if rate is None else f"{rate:.1f}", number=True),
        Cell(NOTHING if share is None else f"{share * 100:.1f}%", Severity.WARNING if share else Severity.PLAIN, True),
        *(Cell(views.duration(value), number=True) for value in (p50, p95, p99)),
        Cell(views.size(memory), number=True),
        Cell(views.size(each.gpu_memory_peak), number=True),
    )
    sort = (
        each.number, each.spec.label, -each.created_at.timestamp(), each.by, said.text, each.why, weight, rate, share,
        p50, p95, p99, memory, each.gpu_memory_peak,
    )  # fmt: skip
    return Line((str(each.number),), cells, sort, faded=seen.lost)


def error_share(traffic: Traffic | None) -> float | None:
    """Of the requests that were answered, how many with an error."""
    if traffic is None or traffic.rate is None or traffic.errors is None:
        return None
    answered = traffic.rate + traffic.errors
    return traffic.errors / answered if answered else 0.0


def outcome(seen: Seen, each: Revision) -> Cell:
    """What became of a revision."""
    status = seen.status
    back = f", as {each.rollback_of} was" if each.rollback_of is not None else ""
    if each.outcome == RevisionOutcome.FAILED and each.failure is not None:
        return Cell(f"✖ {failed(each.failure)}", Severity.BAD)
    if each.outcome == RevisionOutcome.PENDING:
        return _pending(seen, each)
    if status is not None and status.warm_revision == each.number:
        return Cell(f"◌ warm{_left(status.warm_until, seen.now)}: rolls back at once", Severity.BUSY)
    if status is not None and status.live_revision == each.number:
        if each.failure is not None:
            return Cell(f"▲ {status.state}: {failed(each.failure)}", Severity.BAD)
        # While the next one is rolled out beside it, this one goes on serving.
        state = DeploymentState.SERVING if status.state == DeploymentState.DEPLOYING else status.state
        took = took_to_serve(each)
        return Cell(f"{marks.symbol(state)} {state}{back}{took}", views.severity(state))
    if each.outcome == RevisionOutcome.REPLACED:
        return Cell(f"○ replaced{_served_for(each)}{back}", Severity.MUTED)
    return Cell(f"{marks.symbol(each.outcome)} {each.outcome}{back}", views.severity(each.outcome))


def _pending(seen: Seen, each: Revision) -> Cell:
    running = next((step for step in reversed(seen.steps(each)) if step.state == "running"), None)
    if running is None:
        return Cell("◐ pending", Severity.BUSY)
    return Cell(clean_line(f"◐ {running.name}  {views.duration(elapsed(running, seen.now))}"), Severity.BUSY)


def elapsed(step: StepRecord, now: datetime) -> float:
    """Seconds so far; a host's clock that is ahead of ours makes none negative."""
    if step.state != "running":
        return step.elapsed
    return max(step.elapsed, (now - step.started_at).total_seconds())


def _left(until: datetime | None, now: datetime) -> str:
    return "" if until is None else f" for {views.duration(max(0.0, (until - now).total_seconds()))}"


def took_to_serve(each: Revision) -> str:
    """How long a deploy took."""
    if each.served_at is None or each.served_at <= each.created_at:
        return ""
    return f", deployed in {views.duration((each.served_at - each.created_at).total_seconds())}"


def _served_for(each: Revision) -> str:
    if each.served_at is None or each.ended_at is None:
        return ""
    return f" after {views.duration((each.ended_at - each.served_at).total_seconds())}"


# --- replicas --------------------------------------------------------------------------------------------------------


def replicas(seen: Seen) -> Iterator[Line]:
    """Every replica with what it uses."""
    gauges, known = seen.gauges(), seen.gpus()
    for each in seen.status.replicas if seen.status is not None else ():
        yield _replica(each, gauges.get(each.id), [known[uuid] for uuid in each.gpus if uuid in known], seen)


def _replica(each: Replica, use: ReplicaGauges | None, given: Sequence[Device], seen: Seen) -> Line:
    meaning = views.severity(each.state)
    memory = use.memory if use else None
    full = memory is not None and use is not None and use.memory_limit and memory > 0.95 * use.memory_limit
    why = each.reason + ("" if each.exit_code is None else f" (exit code {each.exit_code})")
    why = " · ".join(part for part in (why.strip(), *_troubles(given)) if part)
    cells = (
        Cell(each.id),
        Cell(str(each.revision), number=True),
        Cell(f"{marks.symbol(each.state)} {each.state}", meaning),
        Cell(",".join(device.label for device in given) or NOTHING, _sick(given)),
        Cell(gpu_memory(use, given), number=True),
        Cell(NOTHING if use is None or use.cpu is None else f"{use.cpu:.2f}", number=True),
        Cell(views.size(memory), Severity.WARNING if full else Severity.PLAIN, number=True),
        Cell(str(each.restarts), Severity.WARNING if each.restarts else Severity.PLAIN, number=True),
        Cell(marks.since(each.started_at, seen.now), number=True),
        Cell(each.handle),
        Cell(clean_line(why), Severity.WARNING if meaning in (Severity.WARNING, Severity.BAD) else meaning),
    )
    return Line((each.id,), cells, faded=seen.lost)


def gpu_memory(use: ReplicaGauges | None, given: Sequence[Device]) -> str:
    """What a replica holds of all memory of its GPUs: `56/80 GiB`."""
    if use is None or use.gpu_memory is None:
        return NOTHING
    total = [device.gpu.memory_total for device in given if device.gpu.memory_total is not None]
    if not given or len(total) < len(given):
        return f"{gpus.gib(use.gpu_memory)} GiB"
    return f"{gpus.gib(use.gpu_memory)}/{gpus.gib(sum(total))} GiB"


def _sick(given: Sequence[Device]) -> Severity:
    found = [gpus.severity(device.gpu) for device in given]
    return next((each for each in (Severity.BAD, Severity.WARNING) if each in found), Severity.PLAIN)


def _troubles(given: Sequence[Device]) -> Iterator[str]:
    """What is wrong with a replica's GPUs."""
    for device in given:
        if words := gpus.health_words(device):
            yield f"⚠ {device.what} {words}"
