"""Pure: what happened, as lines to read: the steps of a change, the record of a failure, a revision in full."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from textual.content import Content

from quarterdeck_agent.protocol import Change, Failure, Gpu, Operation, Revision, StepRecord, Version
from quarterdeck_console import views
from quarterdeck_console.tui import marks, words
from quarterdeck_console.tui.screens import differences
from quarterdeck_console.tui.screens.deployment_rows import Seen, elapsed
from quarterdeck_console.tui.screens.version_text import change, heading, pair
from quarterdeck_console.views import NOTHING, Severity

LINES = 60
"""Last lines of a failure that are shown."""

_MARKS = {"done": ("✔", Severity.GOOD), "failed": ("✖", Severity.BAD), "running": ("◐", Severity.BUSY)}


def revision(seen: Seen, each: Revision) -> Content:
    """One revision: why it failed, its steps, what is different from the one before, and its spec."""
    known = {version.id: version for version in (seen.host.versions if seen.host is not None else ())}
    lines = [_title(seen, each), *_about(each)]
    if each.failure is not None:
        lines += failure(each.failure, str(each.number), seen.now)
    lines += [heading(f"STEPS of {each.number}"), *steps(seen.steps(each), seen.now)]
    before = previous(seen.revisions, each)
    if before is not None:
        lines += changes(f"DIFF {before.number} → {each.number}", differences.revisions(before, each, known))
    elif each.failure is not None and each.failure.changes:
        lines += changes("CHANGED since it last served", each.failure.changes)
    return words.lines([*lines, *_spec(each, known)])


def _title(seen: Seen, each: Revision) -> Content:
    when = f"{views.instant(each.created_at)}, {marks.since(each.created_at, seen.now)} ago"
    return words.joined((f"revision {each.number}  {each.spec.label}", "bold"), (f"  {when} by {each.by}", ""))


def _about(each: Revision) -> list[Content]:
    lines = []
    if each.why:
        lines.append(pair("why", each.why))
    if each.rollback_of is not None:
        lines.append(pair("rolls back", f"to what revision {each.rollback_of} was"))
    if each.handover:
        lines.append(pair("handover", f"{each.handover}: {each.handover_why}" if each.handover_why else each.handover))
    return lines


def steps(found: Sequence[StepRecord], now: datetime) -> list[Content]:
    """One line a step, with how long it took or takes."""
    if not found:
        return [words.line("none was recorded", Severity.MUTED)]
    width = min(28, max(len(step.name) for step in found))
    return [_step(step, width, now) for step in found]


def _step(step: StepRecord, width: int, now: datetime) -> Content:
    mark, meaning = _MARKS.get(step.state, ("·", Severity.PLAIN))
    told = views.duration(elapsed(step, now))
    return words.joined(
        (f"{mark} ", meaning),
        (f"{step.name:<{width}}", "" if step.state == "done" else meaning),
        (f" {told:>8}", "bold" if step.state == "running" else ""),
        (f"  {step.detail}" if step.detail else "", Severity.MUTED),
    )


def _what(found: Failure) -> str:
    """`exited with code 1`, which needs no "exited:" before it; `golden mismatch: request 2 of 5 differs`."""
    word = str(found.reason).replace("_", " ")
    return found.message if found.message.startswith(f"{word} ") else f"{word}: {found.message}"


def failure(found: Failure, which: str, now: datetime) -> list[Content]:
    """The record that is kept after the replica is gone."""
    lines = [
        heading(f"FAILURE of {which}"),
        words.line(f"✖ {_what(found)}", Severity.BAD),
        pair("step", f"{found.step}, {marks.since(found.at, now)} ago"),
    ]
    if found.exit_code is not None or found.signal is not None:
        code = NOTHING if found.exit_code is None else str(found.exit_code)
        lines.append(pair("exit code", code + ("" if found.signal is None else f", signal {found.signal}")))
    lines += [pair("GPU", _gpu(gpu)) for gpu in found.gpus]
    if found.last_lines:
        lines.append(heading(f"LAST LINES of {which}"))
        lines += [words.joined(("│ ", Severity.MUTED), (line, "")) for line in found.last_lines[-LINES:]]
    return lines


def _gpu(gpu: Gpu) -> str:
    memory = views.used(gpu.memory_used, gpu.memory_total)
    return f"{gpu.index} {gpu.name}: {memory}, {views.ratio(gpu.utilisation)} busy when it failed"


def changes(title: str, found: Iterable[Change]) -> list[Content]:
    """A section of a diff."""
    told = list(found)
    width = min(34, max((len(each.field) for each in told), default=0))
    lines = [change(each, width) for each in told] or [words.line("nothing differs", Severity.MUTED)]
    return [heading(title), *lines]


def previous(revisions: Sequence[Revision], each: Revision) -> Revision | None:
    """The revision that served before this one, else the one before it."""
    older = [one for one in revisions if one.number < each.number]
    served = [one for one in older if one.served_at is not None or one.outcome in ("serving", "replaced")]
    return max(served or older, key=lambda one: one.number, default=None)


def _spec(each: Revision, known: Mapping[str, Version]) -> list[Content]:
    spec = each.spec
    limits = spec.limits
    lines = [
        heading("SPEC"),
        pair("version", f"{spec.label}  {spec.version}" + ("" if spec.version in known else "  (not on the host now)")),
        pair("replicas", f"{spec.replicas}" + (", stopped" if spec.stopped else "")),
        pair("handover", f"{spec.handover}, kept warm {views.duration(spec.warm)}, dwell {views.duration(spec.dwell)}"),
        pair(
            "limits",
            f"{limits.in_flight} in flight, {limits.queue} waiting, timeout {views.duration(limits.timeout)}, "
            f"drain {views.duration(limits.drain)}, hold {views.duration(limits.hold)}, "
            f"release {views.duration(limits.release)}",
        ),
        pair("golden", "required" if spec.golden else "skipped"),
    ]
    lines += [pair("env" if index == 0 else "", f"{key}={spec.env[key]}") for index, key in enumerate(sorted(spec.env))]
    return [*lines, pair("image", each.image)] if each.image else lines


def operation(each: Operation, host: str, now: datetime, found: Failure | None = None) -> Content:
    """One change: who, what, how it went."""
    lines = [
        words.joined((f"{each.kind} {each.target} on {host}", "bold"), (f"  {each.summary}", "")),
        words.joined(
            pair("state", ""), (f"{marks.symbol(each.state)} {each.state}", views.severity(each.state)),
            (f": {each.detail}" if each.detail else "", views.severity(each.state)),
        ),
        pair("asked", f"{views.instant(each.at)}, {marks.since(each.at, now)} ago by {each.by}"),
    ]  # fmt: skip
    if each.why:
        lines.append(pair("why", each.why))
    if each.revision is not None:
        lines.append(pair("revision", str(each.revision)))
    lines.append(pair("id", each.id))
    if each.steps:
        lines += [heading("STEPS"), *steps(each.steps, now)]
    if each.changes:
        lines += changes("DIFF", each.changes)
    if found is not None:
        lines += failure(found, f"revision {each.revision}", now)
    return words.lines(lines)
