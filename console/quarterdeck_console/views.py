"""Pure functions from what was seen to rows: text and severity of every cell, shared by the terminal UI and the CLI.

No colour, no width and no terminal here: a severity says what a value means, its shower how that looks. Text of one
cell never holds a newline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from quarterdeck_agent.protocol import (
    Change,
    Check,
    DeploymentStatus,
    HostStatus,
    LogLine,
    Operation,
    Part,
    Replica,
    ReplicaGauges,
    Revision,
    Runtime,
    StepRecord,
    Traffic,
    Version,
)
from quarterdeck_console.clean import clean_line
from quarterdeck_console.config import Host
from quarterdeck_console.state import FleetState, HostState

NOTHING = "–"


class Severity(StrEnum):
    """What a value means to whoever watches."""

    PLAIN = "plain"
    MUTED = "muted"
    GOOD = "good"
    BUSY = "busy"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Cell:
    """One value as text. `number` cells are set to the right."""

    text: str
    severity: Severity = Severity.PLAIN
    number: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; `key` names the thing it shows, for ever the same for the same thing.

    `below` are lines of their own about it, under its cells.
    """

    key: tuple[str, ...]
    cells: tuple[Cell, ...]
    below: tuple[Cell, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows, ready to be shown by either face."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


_STATES = {
    "serving": Severity.GOOD, "ready": Severity.GOOD, "ok": Severity.GOOD, "succeeded": Severity.GOOD,
    "live": Severity.GOOD,
    "deploying": Severity.BUSY, "holding": Severity.BUSY, "starting": Severity.BUSY, "pending": Severity.BUSY,
    "running": Severity.BUSY, "stopping": Severity.BUSY, "removing": Severity.BUSY, "connecting": Severity.BUSY,
    "degraded": Severity.WARNING, "unready": Severity.WARNING, "warning": Severity.WARNING,
    "unresponsive": Severity.WARNING, "superseded": Severity.WARNING,
    "failed": Severity.BAD, "exited": Severity.BAD, "lost": Severity.BAD, "unreachable": Severity.BAD,
    "stopped": Severity.MUTED, "replaced": Severity.MUTED, "absent": Severity.MUTED, "done": Severity.GOOD,
}  # fmt: skip


def severity(state: str) -> Severity:
    """What a state means; a state that only a newer agent knows is plain."""
    return _STATES.get(str(state), Severity.PLAIN)


# --- words for figures -----------------------------------------------------------------------------------------


def size(count: int | None) -> str:
    """Bytes in binary units with three figures."""
    if count is None:
        return NOTHING
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1023.95:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says it: `85 ms`, `2.4 s`, `3m12s`, `4h05m`, `12d`."""
    if seconds is None:
        return NOTHING
    if seconds < 0:
        return "0 s"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 48 * 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d"


def span(seconds: float) -> str:
    """How far back something looks, in its one whole unit: `5m`, `1h`, `24h`, `7d`."""
    whole = round(seconds)
    for unit, length, least in (("d", 86400, 2), ("h", 3600, 1), ("m", 60, 1)):
        if whole % length == 0 and whole >= least * length:
            return f"{whole // length}{unit}"
    return duration(seconds)


def age(since: datetime | None, now: datetime) -> str:
    """How long ago, in whole units."""
    if since is None:
        return NOTHING
    seconds = max(0.0, (now - since).total_seconds())
    return f"{int(seconds)}s" if seconds < 60 else duration(float(int(seconds)))


def ratio(value: float | None) -> str:
    """0..1 as per cent."""
    return NOTHING if value is None else f"{value * 100:.0f}%"


def rate(value: float | None) -> str:
    """Per second."""
    if value is None:
        return NOTHING
    return f"{value:.1f}/s" if value < 100 else f"{value:.0f}/s"


def count(number: int, thing: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def instant(at: datetime | None) -> str:
    """A time for people, in the machine's own zone."""
    return NOTHING if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def used(part: int | None, whole: int | None) -> str:
    """Bytes used of bytes there are."""
    return NOTHING if part is None or whole is None else f"{size(part)} / {size(whole)}"


def _cell(text: object, meaning: Severity = Severity.PLAIN) -> Cell:
    return Cell(clean_line(str(text)) if text not in (None, "") else NOTHING, meaning)


def _number(text: str) -> Cell:
    return Cell(text, number=True)


def _state(state: str) -> Cell:
    return _cell(state, severity(state))


def short(version: str) -> str:
    """The part of an id that people read."""
    return version[:12]


def only(status: HostStatus, names: tuple[str, ...]) -> HostStatus:
    """A host with only these deployments; all of them where none is named."""
    if not names:
        return status
    return replace(status, deployments=tuple(each for each in status.deployments if each.name in names))


# --- tables ----------------------------------------------------------------------------------------------------


def deployments(fleet: FleetState, now: datetime) -> Table:
    """Every deployment of every host; a lost host's are shown as they were, and its own row says since when."""
    rows: list[Row] = []
    for host in fleet.hosts.values():
        if host.status is None:
            if host.connection == "lost":
                rows.append(_lost_row(host, now))
            continue
        traffic = {(each.deployment, each.revision): each for each in host.status.traffic}
        for each in host.status.deployments:
            rows.append(deployment_row(host, each, traffic.get((each.name, each.live_revision or 0)), now))
    return Table(
        ("HOST", "NAME", "STATE", "VERSION", "REV", "READY", "RATE", "ERRORS", "P95", "SINCE", "SUMMARY"), tuple(rows)
    )


def deployment_row(host: HostState, seen: DeploymentStatus, traffic: Traffic | None, now: datetime) -> Row:
    """One deployment."""
    lost = host.connection == "lost"
    ready = seen.replicas_ready >= seen.replicas_wanted
    counted = Cell(
        f"{seen.replicas_ready}/{seen.replicas_wanted}", Severity.PLAIN if ready else Severity.WARNING, number=True
    )
    summary = f"unreachable for {age(host.since, now)}; last seen: {seen.summary}" if lost else seen.summary
    revision = seen.live_revision if seen.live_revision is not None else seen.wanted_revision
    cells = (
        _cell(host.name),
        _cell(seen.name),
        _cell(seen.state, Severity.MUTED if lost else severity(seen.state)),
        _cell(seen.label),
        _number(str(revision)),
        counted,
        _number(rate(traffic.rate if traffic else None)),
        _errors(traffic.errors if traffic else None),
        _number(duration(traffic.p95) if traffic else NOTHING),
        _number(age(seen.since, now)),
        _cell(summary, Severity.BAD if lost else Severity.PLAIN),
    )
    return Row((host.name, seen.name), cells)


def _errors(per_second: float | None) -> Cell:
    return Cell(rate(per_second), Severity.WARNING if per_second else Severity.PLAIN, number=True)


def _lost_row(host: HostState, now: datetime) -> Row:
    blank = Cell(NOTHING)
    cells = (
        _cell(host.name), blank, _cell("unreachable", Severity.BAD), blank, blank, blank, blank, blank, blank,
        _number(age(host.since, now)), _cell(host.error, Severity.BAD),
    )  # fmt: skip
    return Row((host.name, ""), cells)


def hosts(fleet: FleetState, now: datetime) -> Table:
    """Every host at a glance."""
    rows = tuple(host_row(host, now) for host in fleet.hosts.values())
    return Table(
        ("HOST", "STATE", "ENGINE", "CPU", "MEMORY", "DISK", "GPUS", "SERVING", "AGENT", "SINCE", "DETAIL"), rows
    )


def host_row(host: HostState, now: datetime) -> Row:
    """One host; whatever is not known is a dash."""
    status = host.status
    gauges = status.gauges if status else None
    troubled = [part for part in (status.parts if status else ()) if str(part.state) not in ("ok", "absent")]
    sick = [gpu for gpu in (status.gpus if status else ()) if str(gpu.health) in ("sick", "lost")]
    state = "unreachable" if host.connection == "lost" else "connecting" if status is None else "ok"
    if (troubled or sick) and state == "ok":
        state = "degraded"
    told = [f"{part.name} {part.state}: {part.detail}" for part in troubled]
    detail = host.error or "; ".join(told + [f"GPU {gpu.index} {gpu.health}: {gpu.why}" for gpu in sick])
    serving = (
        f"{sum(str(each.state) == 'serving' for each in status.deployments)}/{len(status.deployments)}"
        if status
        else NOTHING
    )
    cells = (
        _cell(host.name),
        _state(state),
        _cell(status.info.engine if status else None),
        _number(ratio(gauges.cpu) if gauges else NOTHING),
        _number(used(gauges.memory_used, gauges.memory_total) if gauges else NOTHING),
        _number(used(gauges.disk_used, gauges.disk_total) if gauges else NOTHING),
        _number(str(sum(gpu.parent is None for gpu in status.gpus)) if status else NOTHING),
        _number(serving),
        _cell(status.info.agent_version if status else None),
        _number(age(status.info.started_at if status and state == "ok" else host.since, now)),
        _cell(detail, Severity.BAD if detail else Severity.PLAIN),
    )
    return Row((host.name,), cells)


def fleet_file(known: Iterable[Host]) -> Table:
    """The hosts as the fleet file has them."""
    rows = tuple(
        Row(
            (host.name,),
            (_cell(host.name), _cell(host.url), _cell("yes" if host.protected else "no"), _cell(host.colour)),
        )
        for host in known
    )
    return Table(("HOST", "URL", "PROTECTED", "COLOUR"), rows)


def revisions(found: Iterable[tuple[str, Revision]], now: datetime) -> Table:
    """A deployment's history; with the most GPU memory that a replica held, where any was seen to hold some."""
    known = tuple(found)
    on_gpu = any(each.gpu_memory_peak for _, each in known)
    rows = tuple(
        Row(
            (host, each.deployment, str(each.number)),
            (
                _cell(host),
                _number(str(each.number)),
                _state(each.outcome),
                _cell(each.spec.label),
                _number(str(each.spec.replicas)),
                _cell(each.handover),
                *((_number(size(each.gpu_memory_peak)),) if on_gpu else ()),
                _cell(each.by),
                _number(age(each.created_at, now)),
                _cell(_story(each)),
            ),
        )
        for host, each in known
    )
    peak = ("GPU PEAK",) if on_gpu else ()
    return Table(("HOST", "REV", "OUTCOME", "VERSION", "REPLICAS", "HANDOVER", *peak, "BY", "AGE", "NOTE"), rows)


def _story(revision: Revision) -> str:
    parts = [f"rollback of {revision.rollback_of}"] if revision.rollback_of is not None else []
    if revision.why:
        parts.append(revision.why)
    if revision.failure is not None:
        parts.append(f"{revision.failure.reason}: {revision.failure.message}")
    return "; ".join(parts)


def versions(found: Iterable[tuple[str, Version]], now: datetime) -> Table:
    """What can be deployed."""
    rows = tuple(
        Row(
            (host, each.id),
            (
                _cell(host),
                _cell(each.label),
                _cell(short(each.id), Severity.MUTED),
                _cell(each.runtime),
                _number(size(each.size)),
                _number(str(len(each.files))),
                _cell(", ".join(each.formats) + (" pickle allowed" if each.pickle_allowed else "")),
                _cell(each.by),
                _number(age(each.created_at, now)),
            ),
        )
        for host, each in found
    )
    return Table(("HOST", "VERSION", "ID", "RUNTIME", "SIZE", "FILES", "FORMATS", "BY", "AGE"), rows)


def operations(found: Iterable[tuple[str, Operation]], now: datetime) -> Table:
    """Who asked for what, newest first."""
    rows = tuple(
        Row(
            (host, each.id),
            (
                _cell(host),
                _cell(short(each.id), Severity.MUTED),
                _cell(each.kind),
                _cell(each.target),
                _state(each.state),
                _cell(each.by),
                _number(age(each.at, now)),
                _number(duration((each.finished_at - each.at).total_seconds() if each.finished_at else None)),
                _cell(each.detail or each.summary),
            ),
        )
        for host, each in found
    )
    return Table(("HOST", "ID", "KIND", "TARGET", "STATE", "BY", "AGE", "TOOK", "SUMMARY"), rows)


def runtimes(found: Iterable[tuple[str, Runtime]]) -> Table:
    """How versions can be served."""
    rows = tuple(
        Row(
            (host, each.name),
            (
                _cell(host),
                _cell(each.name),
                _cell(each.title),
                _cell(each.protocol),
                _cell(", ".join(each.engines)),
                _cell(", ".join(each.formats)),
                _cell(each.origin),
            ),
        )
        for host, each in found
    )
    return Table(("HOST", "RUNTIME", "TITLE", "PROTOCOL", "ENGINES", "FORMATS", "ORIGIN"), rows)


def replicas(found: Sequence[Replica], gauges: Sequence[ReplicaGauges], now: datetime) -> Table:
    """A deployment's replicas with what they use; with GPU memory where any of them has a GPU."""
    known = {each.replica: each for each in gauges}
    on_gpu = any(each.gpus for each in found)
    rows = []
    for each in found:
        use = known.get(each.id)
        cores = NOTHING if use is None or use.cpu is None else f"{use.cpu:.2f}"
        cells = (
            _cell(each.id),
            _number(str(each.revision)),
            _state(each.state),
            _cell(f"{each.engine} {each.handle[:20]}"),
            _number(cores),
            _number(size(use.memory) if use else NOTHING),
            *((_number(size(use.gpu_memory) if use else NOTHING),) if on_gpu else ()),
            _number(str(each.restarts)),
            _number(age(each.started_at, now)),
            _cell(each.reason),
        )
        rows.append(Row((each.id,), cells))
    memory = ("GPU MEMORY",) if on_gpu else ()
    columns = ("REPLICA", "REV", "STATE", "HANDLE", "CORES", "MEMORY", *memory, "RESTARTS", "AGE", "REASON")
    return Table(columns, tuple(rows))


def traffic(found: Sequence[Traffic]) -> Table:
    """What the gateway counted, revision beside revision."""
    rows = tuple(
        Row(
            (each.deployment, str(each.revision)),
            (
                _number(str(each.revision)),
                _number(ratio(each.weight)),
                _number(rate(each.rate)),
                _errors(each.errors),
                _number(duration(each.p50)),
                _number(duration(each.p95)),
                _number(duration(each.p99)),
                _number(NOTHING if each.active is None else str(each.active)),
                _number(NOTHING if each.held is None else str(each.held)),
            ),
        )
        for each in found
    )
    return Table(("REV", "WEIGHT", "RATE", "ERRORS", "P50", "P95", "P99", "ACTIVE", "HELD"), rows)


def parts(found: Sequence[Part], now: datetime) -> Table:
    """The parts of a host."""
    rows = tuple(
        Row(
            (each.name,),
            (
                _cell(each.name),
                _state(each.state),
                _cell(each.version),
                _number(age(each.since, now)),
                _cell(each.detail),
            ),
        )
        for each in found
    )
    return Table(("PART", "STATE", "VERSION", "SINCE", "DETAIL"), rows)


def checks(found: Iterable[tuple[str, Check]]) -> Table:
    """What `qd doctor` looked at."""
    rows = tuple(
        Row(
            (host, each.name),
            (
                _cell(host),
                _state(each.result),
                _cell(each.name),
                _cell(each.detail + (f" → {each.mend}" if each.mend and each.result != "ok" else "")),
            ),
        )
        for host, each in found
    )
    return Table(("HOST", "RESULT", "CHECK", "DETAIL"), rows)


# --- lines -----------------------------------------------------------------------------------------------------


def change(each: Change) -> str:
    """One line of a diff."""
    return clean_line(
        f"{each.field}: {NOTHING if each.old is None else each.old} → {NOTHING if each.new is None else each.new}"
    )


def step(each: StepRecord) -> str:
    """One step of a rollout."""
    mark = {"done": "✓", "failed": "✗"}.get(each.state, "…")
    text = f"{mark} {each.name} ({duration(each.elapsed)})"
    return clean_line(f"{text}: {each.detail}" if each.detail else text)


def log_line(line: LogLine, *, host: str | None, replica: bool, timestamps: bool) -> str:
    """A log line with its prefixes; tabs stay, so that tables in logs keep their form."""
    prefix = f"{host} " if host else ""
    if replica:
        prefix += f"{line.deployment}.{line.revision}/{line.replica} "
    if timestamps:
        prefix += line.at.isoformat().replace("+00:00", "Z") + " "
    text = f"[{line.dropped} lines dropped] {line.text}".rstrip() if line.dropped else line.text
    return clean_line(prefix) + text.replace("\n", "\\n")
