"""`qd status`: every deployment on every host, now or as it changes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from quarterdeck_console.cli.call import Call, run, verb

if TYPE_CHECKING:
    from quarterdeck_console.config import Host


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

    from quarterdeck_console import fleet, state, views
    from quarterdeck_console.cli.call import show
    from quarterdeck_console.errors import NotFound

    hosts, now = call.hosts(), datetime.now(UTC)
    answers = asyncio.run(fleet.ask(hosts, lambda client: client.status(), call.deadline))
    seen = state.FleetState.of(tuple(host.name for host in hosts))
    errors, found, answered = [], [], 0
    for answer in answers:
        if answer.value is None:
            assert answer.error is not None
            errors.append(answer.error)
            seen = state.lost(seen, answer.host.name, answer.error.detail, now, answer.error.code)
            continue
        answered += 1
        status = views.only(answer.value, names)
        seen = state.snapshot(seen, answer.host.name, status, now)
        found += [(answer.host.name, each) for each in status.deployments]
    absent = [name for name in names if name not in {each.name for _, each in found}]
    if absent and not errors:
        errors = [NotFound(f"no host has a deployment named {name}", hint="see qd status") for name in absent]
        answered = len(found)

    def human() -> None:
        call.out.table(views.deployments(seen, now), "nothing is deployed; see qd push --help and qd deploy --help")

    return show(call, "DeploymentList", found, errors, answered=answered, human=human)


async def _watch(call: Call, names: tuple[str, ...]) -> int:
    from quarterdeck_console.cli.watching import watch

    hosts: tuple[Host, ...] = call.hosts()
    await watch(call, hosts, "deployment", lambda deployment: not names or deployment.name in names)
    return 0
