"""`qd operations`: who asked for what, and how it went."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from quarterdeck_console.cli.call import Call, collect, run, show, verb

if TYPE_CHECKING:
    from quarterdeck_agent.protocol import Operation


@verb(
    short_help="Who asked for what, and how it went.",
    epilog="""
    qd operations
    qd operations --target digits --limit 5
    qd operations 3f2a91c0b7d4     # one in full, with its steps
    qd operations --watch --json
    """,
)
@click.argument("id", required=False)
@click.option("--target", metavar="NAME", help="Only of this deployment or version.")
@click.option(
    "--limit", "-n", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Only the newest N."
)
@click.option("--watch", "-w", is_flag=True, help="Go on and print every change as it happens.")
def command(call: Call, id: str | None, target: str | None, limit: int, watch: bool) -> int:
    """Show operations, newest first; with an ID (or the start of one) that operation in full."""
    if watch:
        return run(_watch(call, target))
    if id is not None:
        return _one(call, id)
    answers, errors = collect(call, call.hosts(), lambda client: client.operations(limit, target))
    found = sorted(
        ((host, each) for host, operations in answers for each in operations), key=lambda pair: pair[1].at, reverse=True
    )[:limit]

    def human() -> None:
        from quarterdeck_console import views

        call.out.table(views.operations(found, datetime.now(UTC)), "nobody has asked for anything yet")

    return show(call, "OperationList", found, errors, answered=len(answers), human=human)


async def _watch(call: Call, target: str | None) -> int:
    from quarterdeck_console.cli.watching import watch

    await watch(call, call.hosts(), "operation", lambda operation: target in (None, operation.target))
    return 0


def _one(call: Call, id: str) -> int:
    async def find(client: Any) -> Operation:
        from quarterdeck_console.errors import NotFound

        try:
            found: Operation = await client.operation(id)
            return found
        except NotFound:
            for each in await client.operations(1000):
                if each.id.startswith(id):
                    whole: Operation = each
                    return whole
            raise

    found, errors = collect(call, call.hosts(), find, absent_is_fine=True)

    def human() -> None:
        for host, operation in found:
            _print(call, host, operation)

    return show(call, "OperationList", found, errors, answered=len(found), human=human)


def _print(call: Call, host: str, operation: Operation) -> None:
    from quarterdeck_console import views

    out = call.out
    out.line(f"{operation.kind} {operation.target} on {host}: {operation.state.value}")
    out.line(f"  id       {operation.id}")
    out.line(f"  by       {operation.by} at {views.instant(operation.at)}")
    for name, text in (("what", operation.summary), ("why", operation.why), ("outcome", operation.detail)):
        if text:
            out.line(f"  {name:<8} {text}")
    for change in operation.changes:
        out.line(f"  change   {views.change(change)}")
    for step in operation.steps:
        out.line(f"  step     {views.step(step)}")
