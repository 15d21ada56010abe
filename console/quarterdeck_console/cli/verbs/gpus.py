"""`qd gpus`: every GPU of the fleet, whose its memory is, and how it was over time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from quarterdeck_console.cli.ago import since_of
from quarterdeck_console.cli.call import Call, collect, run, show, verb
from quarterdeck_console.errors import Usage

if TYPE_CHECKING:
    from quarterdeck_agent.protocol import HostStatus
    from quarterdeck_console.errors import ConsoleError
    from quarterdeck_console.gpus import Device

METRICS = (
    "utilisation", "memory", "temperature", "power", "utilisation_memory", "encoder", "decoder", "fan", "clock",
    "clock_memory", "pcie_sent", "pcie_received",
)  # fmt: skip
"""The names of `gpu_metrics.BY_NAME`, which is not imported to print a help."""


@verb(
    short_help="Every GPU, whose its memory is, and how it was.",
    epilog="""
    qd gpus
    qd gpus --host 'gpu-*' --watch
    qd gpus --since 24h
    qd gpus --since 7d --metric power --metric temperature
    qd gpus --json | jq '.items[] | select(.health != "ok") | [.host, .gpu, .why]'
    qd gpus --trust 0 --why 'reset and tested' --host gpu-1
    qd gpus --since 1h --json | jq '.items[] | [.host, .gpu, .name, (.samples | length)]'
    """,
)
@click.option("--watch", "-w", is_flag=True, help="Go on, and show every change as it happens.")
@click.option(
    "--since", callback=since_of, metavar="AGO|TIME",
    help="Draw how it was since then, up to 30 days: 15m, 24h, 7d, 2026-01-31T12:00:00Z.",
)  # fmt: skip
@click.option(
    "--metric", "-m", multiple=True, type=click.Choice(METRICS), metavar="NAME",
    help="With --since, what to draw; may be repeated. By default utilisation and memory. Also "
    + ", ".join(METRICS[2:]) + ".",
)  # fmt: skip
@click.option(
    "--points", type=click.IntRange(2, 50_000), metavar="N",
    help="With --since and --json, at most so many points of each gauge.",
)  # fmt: skip
@click.option(
    "--trust", metavar="GPU",
    help="After a reset or a repair: let this GPU of the host (its number, or uuid) take claims again.",
)  # fmt: skip
@click.option("--why", default="", metavar="TEXT", help="With --trust, why; kept in the history.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before trusting.")
def command(
    call: Call,
    watch: bool,
    since: datetime | None,
    metric: tuple[str, ...],
    points: int | None,
    trust: str | None,
    why: str,
    yes: bool,
) -> int:
    """Show every GPU and MIG instance with its load, memory, temperature, power and health.

    Under each stands whose its memory is: each replica of a deployment, processes that Quarterdeck does not manage
    with their user and command, and what no process explains. A host that does not answer is a row with its error, and
    the exit code is 6.
    """
    if trust is not None:
        if watch or since is not None:
            raise Usage("--trust makes a change, --watch and --since show", hint="give one of them")
        from quarterdeck_console.cli.gpu_trust import trust_gpu

        return trust_gpu(call, trust, why, yes)
    if since is None:
        if metric or points:
            raise Usage("--metric and --points are about the past", hint="say how far back: qd gpus --since 24h")
        return run(_watch(call)) if watch else _once(call)
    if watch:
        raise Usage("--watch is about what happens now, --since about the past", hint="give one of them")
    from quarterdeck_console.cli.gpu_history import show_history

    return show_history(call, since, metric or METRICS[:2], points)


def _once(call: Call) -> int:
    hosts = call.hosts()
    from quarterdeck_console.cli import envelope

    answers, errors = collect(call, hosts, lambda client: client.status())
    found = [(host, envelope.gpu(device)) for host, status in answers for device in _devices(status)]
    names = tuple(host.name for host in hosts)
    return show(
        call, "GpuList", found, errors, answered=len(answers), human=lambda: _print(call, names, answers, errors)
    )


def _devices(status: HostStatus) -> tuple[Device, ...]:
    from quarterdeck_console import gpus

    return gpus.devices(status)


def _print(
    call: Call, names: tuple[str, ...], answers: list[tuple[str, HostStatus]], errors: list[ConsoleError]
) -> None:
    from quarterdeck_console import state
    from quarterdeck_console.cli import gpu_table

    now = datetime.now(UTC)
    seen = state.FleetState.of(names)
    for name, status in answers:
        seen = state.snapshot(seen, name, status, now)
    for error in errors:
        seen = state.lost(seen, error.host or "", error.detail, now, error.code)
    call.out.table(gpu_table.table(seen, now), NONE)


NONE = "no host has a GPU that NVML can see; qd doctor says what is missing"


async def _watch(call: Call) -> int:
    from quarterdeck_console.cli.gpu_watching import watch

    await watch(call, call.hosts(), NONE)
    return 0
