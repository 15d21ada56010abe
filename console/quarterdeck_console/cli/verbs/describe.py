"""`qd describe`: one deployment in full."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from quarterdeck_console.cli.call import Call, collect, show, verb

if TYPE_CHECKING:
    from quarterdeck_agent.protocol import DeploymentDetail


@verb(
    short_help="One deployment in full.",
    epilog="""
    qd describe digits
    qd describe digits --json | jq '.items[0].status.endpoint'
    """,
)
@click.argument("name")
def command(call: Call, name: str) -> int:
    """Show a deployment: what serves, its replicas, traffic, last failure and revisions; on every host that has it."""
    found, errors = collect(call, call.hosts(), lambda client: client.deployment(name), absent_is_fine=True)

    def human() -> None:
        for host, detail in found:
            _print(call, host, detail)

    return show(call, "DeploymentDetailList", found, errors, answered=len(found), human=human)


def _print(call: Call, host: str, detail: DeploymentDetail) -> None:
    from quarterdeck_console import views

    out, status, now = call.out, detail.status, datetime.now(UTC)
    out.line(f"{status.name} on {host}: {status.state.value}, {status.summary}")
    revision = status.live_revision
    pairs = {
        "endpoint": f"{status.endpoint.rstrip('/')}{status.predict_path}",
        "serving": f"revision {revision}, {status.label}" if revision is not None else "nothing",
        "version": status.version,
        "wanted": f"revision {status.wanted_revision}, {views.count(status.replicas_wanted, 'replica')}",
        "generation": str(status.generation),
        "since": f"{views.instant(status.since)} ({views.age(status.since, now)}), by {status.by}",
    }
    if status.warm_revision is not None:
        pairs["kept warm"] = f"revision {status.warm_revision} until {views.instant(status.warm_until)}"
    if detail.version is not None:
        version = detail.version
        pairs["runtime"] = f"{version.runtime}, {views.size(version.size)} in {views.count(len(version.files), 'file')}"
    for key, value in pairs.items():
        out.line(f"  {key:<10} {value}")
    if status.replicas:
        out.heading("Replicas")
        out.table(views.replicas(status.replicas, detail.replicas, now), "")
    if detail.traffic:
        out.heading("Traffic")
        out.table(views.traffic(detail.traffic), "")
    failure(call, detail)
    out.heading("Revisions")
    out.table(views.revisions([(host, each) for each in detail.revisions[:10]], now), "there is no revision yet")
    out.line()


def failure(call: Call, detail: DeploymentDetail) -> None:
    """The record of the newest failure, where there is one."""
    from quarterdeck_console import views

    newest = next((each for each in detail.revisions if each.failure is not None), None)
    record = detail.status.failure or (newest.failure if newest else None)
    if record is None:
        return
    which = f" of revision {newest.number}" if newest else ""
    call.out.heading(f"Last failure{which}")
    call.out.line(f"  {views.instant(record.at)}  step {record.step}: {record.reason.value}: {record.message}")
    if record.exit_code is not None or record.signal is not None:
        call.out.line(
            f"  exit code {record.exit_code if record.exit_code is not None else '–'}, signal {record.signal or '–'}"
        )
    for each in record.changes:
        call.out.line(f"  changed  {views.change(each)}")
    for line in record.last_lines[-20:]:
        call.out.line(f"  | {line}")
