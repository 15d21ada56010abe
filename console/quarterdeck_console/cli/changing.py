"""Making a change on one or many hosts and following it: shared by deploy, rollback, scale, restart, stop and rm.

Ctrl-C or a timeout ends the wait, never the change.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

import click

from quarterdeck_agent.protocol import AnyRequest, ChangeKind, Operation, Preview, StepRecord
from quarterdeck_console import fleet, operations, views
from quarterdeck_console.cli.call import Call, run, show
from quarterdeck_console.client import Client
from quarterdeck_console.config import Host
from quarterdeck_console.errors import ConsoleError, Interrupted, exit_code


def options(function: Callable[..., int]) -> Callable[..., int]:
    """The options that every change has."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


_OPTIONS = (
    click.option("--why", default="", metavar="TEXT", help="Why; kept in the history."),
    click.option("--plan", is_flag=True, help="Say what would happen and change nothing."),
    click.option(
        "--if-match",
        type=click.IntRange(0),
        metavar="GENERATION",
        help="Only if nobody changed it since (exit code 7).",
    ),
    click.option("--no-wait", is_flag=True, help="Return as soon as the host has taken it."),
    click.option(
        "--timeout",
        type=click.FloatRange(0.1),
        default=900.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for it (exit code 8); it goes on after that.",
    ),
    click.option("--yes", "-y", is_flag=True, help="Do not ask."),
)


@dataclass(frozen=True, slots=True)
class Wish:
    """A change as the command line has it."""

    kind: ChangeKind
    name: str
    request: AnyRequest
    plan: bool = False
    if_match: int | None = None
    no_wait: bool = False
    timeout: float = 900.0
    yes: bool = False
    ask: str = ""


@dataclass(slots=True)
class _Result:
    """How it went on each host so far."""

    operations: dict[str, Operation] = field(default_factory=dict)
    errors: dict[str, ConsoleError] = field(default_factory=dict)
    told: set[tuple[str, str, str]] = field(default_factory=set)


def carry_out(call: Call, wish: Wish) -> int:
    """Preview the change, or make it and follow it to its end."""
    hosts = call.targets()
    if wish.plan:
        return _preview(call, hosts, wish)
    _confirm(call, hosts, wish)
    result = _Result()
    try:
        return run(_follow(call, hosts, wish, result))
    except KeyboardInterrupt:
        raise _interrupted(wish, result) from None


def _confirm(call: Call, hosts: tuple[Host, ...], wish: Wish) -> None:
    guarded = ", ".join(host.name for host in hosts if host.protected)
    if wish.yes or not (wish.ask or guarded):
        return
    question = wish.ask or f"{wish.kind.capitalize()} {wish.name}"
    where = f" on {', '.join(host.name for host in hosts)}" + (f" (protected: {guarded})" if guarded else "")
    call.out.confirm(f"{question}{where}?")


def _interrupted(wish: Wish, result: _Result) -> Interrupted:
    going = {host: each for host, each in result.operations.items() if each.state not in operations.ENDED}
    if not going:
        return Interrupted("interrupted; see qd operations for what the host made of it")
    host, operation = next(iter(going.items()))
    return Interrupted(
        f"stopped waiting; the {wish.kind} of {wish.name} goes on on {', '.join(going)}",
        host=host,
        operation=operation.id,
        hint=f"see how it stands: qd operations {operation.id}",
    )


def _preview(call: Call, hosts: tuple[Host, ...], wish: Wish) -> int:
    import asyncio

    async def question(client: Client) -> Preview:
        return await client.preview(wish.kind, wish.name, wish.request, generation=wish.if_match)

    answers = asyncio.run(fleet.ask(hosts, question, call.deadline))
    found = [(answer.host.name, answer.value) for answer in answers if answer.value is not None]
    errors = [answer.error for answer in answers if answer.error is not None]

    def human() -> None:
        for host, preview in found:
            _print_preview(call, host, preview)

    return show(call, "PreviewList", found, errors, answered=len(found), human=human)


def _print_preview(call: Call, host: str, preview: Preview) -> None:
    out = call.out
    pause = (
        "none" if not preview.expected_pause else f"about {views.duration(preview.expected_pause)}, requests are held"
    )
    out.line(f"{preview.deployment} on {host} (generation {preview.generation}); nothing has been changed")
    out.line(f"  handover     {preview.handover}: {preview.why}")
    out.line(f"  pause        {pause}")
    for change in preview.changes:
        out.line(f"  change       {views.change(change)}")
    if not preview.changes:
        out.line("  change       none")
    for number, step in enumerate(preview.steps, 1):
        out.line(f"  step {number:<7} {step}")
    for warning in preview.warnings:
        out.line(f"  warning      {warning}")
    out.line(f"  if it fails  {preview.if_it_fails}")
    out.line(f"  to do it     {preview.command}")


async def _follow(call: Call, hosts: tuple[Host, ...], wish: Wish, result: _Result) -> int:
    sources = [_one(host, wish, result) for host in hosts]
    async with contextlib.aclosing(fleet.merge(sources)) as events:
        async for progress in events:
            _tell(call, progress, result, len(hosts) > 1)
    return await _finish(call, hosts, wish, result)


async def _one(host: Host, wish: Wish, result: _Result) -> AsyncGenerator[operations.ChangeProgress, None]:
    """One host's part; what goes wrong there is kept as a value."""
    try:
        operation = await operations.change(host, wish.kind, wish.name, wish.request, generation=wish.if_match)
        result.operations[host.name] = operation
        if wish.no_wait:
            return
        async with contextlib.aclosing(operations.wait(host, operation, wish.timeout)) as states:
            async for progress in states:
                result.operations[host.name] = operation = progress.operation
                yield progress
        if (error := operations.failure(host, operation)) is not None:
            result.errors[host.name] = error
    except ConsoleError as error:
        error.host = error.host or host.name
        result.errors[host.name] = error


def _tell(call: Call, progress: operations.ChangeProgress, result: _Result, many: bool) -> None:
    prefix = f"{progress.host}: " if many else ""
    if progress.note:
        call.out.note(prefix + progress.note)
    running: StepRecord | None = None
    for step in progress.operation.steps:
        if step.state == "running":
            running = step
            continue
        key = (progress.host, step.name, step.started_at.isoformat())
        if key not in result.told:
            result.told.add(key)
            call.out.note(f"{prefix}{views.step(step)}")
    if running is not None:
        call.out.progress(f"{prefix}{views.step(running)}")


async def _finish(call: Call, hosts: tuple[Host, ...], wish: Wish, result: _Result) -> int:
    from quarterdeck_console.cli.envelope import plain

    errors = [result.errors[host.name] for host in hosts if host.name in result.errors]
    good = len(hosts) - len(errors)
    if call.out.json:
        found = [plain(result.operations[host.name], host.name) for host in hosts if host.name in result.operations]
        return call.out.items("OperationList", found, errors, good)
    for host in hosts:
        if host.name not in result.errors and host.name in result.operations:
            call.out.line(_outcome(host, wish, result.operations[host.name]))
    for host in hosts:
        operation = result.operations.get(host.name)
        if host.name in result.errors and operation is not None and operation.state == "failed":
            await _tell_failure(call, host, wish, operation)
    call.out.errors(errors)
    return exit_code(errors, good)


def _outcome(host: Host, wish: Wish, operation: Operation) -> str:
    what = operation.summary or f"{operation.kind} {operation.target}"
    if wish.no_wait and operation.state not in operations.ENDED:
        return f"{wish.name} on {host.name}: {what}: taken as operation {operation.id}"
    took = (operation.finished_at - operation.at).total_seconds() if operation.finished_at else None
    return f"{wish.name} on {host.name}: {what}: {operation.state.value}" + (
        f" after {views.duration(took)}" if took is not None else ""
    )


async def _tell_failure(call: Call, host: Host, wish: Wish, operation: Operation) -> None:
    """The last words of what failed; that they cannot be had changes nothing."""
    with contextlib.suppress(ConsoleError):
        async with Client(host) as client:
            detail = await client.deployment(wish.name)
        for revision in detail.revisions:
            if revision.number == operation.revision and revision.failure is not None:
                for line in revision.failure.last_lines[-20:]:
                    call.out.note(f"  | {line}")


def wish_of(kind: ChangeKind, name: str, request: AnyRequest, chosen: dict[str, Any], ask: str = "") -> Wish:
    """A wish from the shared options."""
    return Wish(
        kind, name, request, plan=chosen["plan"], if_match=chosen["if_match"], no_wait=chosen["no_wait"],
        timeout=chosen["timeout"], yes=chosen["yes"], ask=ask,
    )  # fmt: skip
