"""`qd status`: every deployment on every host, now or as it changes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from quarterdeck_console.cli.call import Call, run, verb

if TYPE_CHECKING:
    from quarterdeck_agent.protocol import HostStatus
    from quarterdeck_console.config import Host
    from quarterdeck_console.fleet import Answer


@verb(
    short_help="Every deployment on every host.",
    epilog="""
    qd status
    qd status digits --host 'gpu-*'
    qd status --json | jq '.items[] | select(.state != "serving")'
    qd status --watch --json       # one JSON object a line, for ever
    """,
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--watch", "-w", is_flag=True, help="Go on and print every change as it happens.")
def command(call: Call, names: tuple[str, ...], watch: bool) -> int:
    """Show every deployment on every host, or only those named.

    A host that does not answer is a row with its error, and the exit code is 6.
    """
    return run(_watch(call, names)) if watch else _once(call, names)


def _once(call: Call, names: tuple[str, ...]) -> int:
    import asyncio

    from quarterdeck_console import fleet
    from quarterdeck_console.cli.call import show
    from quarterdeck_console.errors import NotFound

    answers = asyncio.run(fleet.ask(call.hosts(), lambda client: client.status(), call.deadline))
    errors = [answer.error for answer in answers if answer.error is not None]
    answered = [answer for answer in answers if answer.value is not None]
    found = [
        (answer.host.name, each)
        for answer in answered
        if answer.value is not None
        for each in answer.value.deployments
        if not names or each.name in names
    ]
    absent = [name for name in names if name not in {each.name for _, each in found}]
    if absent and not errors:
        hint = "see qd status"
        errors = [NotFound(f"no host has a deployment named {name}", hint=hint) for name in absent]
        return show(
            call, "DeploymentList", found, errors, answered=len(found), human=lambda: _print(call, answers, names)
        )
    return show(
        call, "DeploymentList", found, errors, answered=len(answered), human=lambda: _print(call, answers, names)
    )


def _print(call: Call, answers: tuple[Answer[HostStatus], ...], names: tuple[str, ...]) -> None:
    from quarterdeck_console import state, views

    now = datetime.now(UTC)
    seen = state.FleetState.of(tuple(answer.host.name for answer in answers))
    for answer in answers:
        if answer.value is not None:
            seen = state.snapshot(seen, answer.host.name, views.only(answer.value, names), now)
        elif answer.error is not None:
            seen = state.lost(seen, answer.host.name, answer.error.detail, now, answer.error.code)
    call.out.table(views.deployments(seen, now), "nothing is deployed; see qd push --help and qd deploy --help")


async def _watch(call: Call, names: tuple[str, ...]) -> int:
    from quarterdeck_console.cli.watching import watch

    hosts: tuple[Host, ...] = call.hosts()
    await watch(call, hosts, "deployment", lambda deployment: not names or deployment.name in names)
    return 0
