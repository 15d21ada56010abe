"""`qd doctor`: check hosts, one line for each thing, with the mend."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from quarterdeck_console.cli.call import Call, collect, show, verb

if TYPE_CHECKING:
    from quarterdeck_agent.protocol import Check
    from quarterdeck_console.client import Client
    from quarterdeck_console.config import Host
    from quarterdeck_console.errors import ConsoleError

GPU_DEADLINE = 600.0
"""Seconds that a host may take to try its GPUs: about ten for each of them and of their MIG instances."""


@verb(
    short_help="Check hosts and say how to mend what is not well.",
    epilog="""
    qd doctor
    qd doctor --host gpu-1 --json
    qd doctor --host gpu-1 --gpu           # and let torch work on each GPU, about ten seconds each
    """,
)
@click.option(
    "--gpu", is_flag=True, help="Have torch try each GPU as well: is its arithmetic right, and how fast is it."
)
def command(call: Call, gpu: bool) -> int:
    """Check each host: agent, engine, gateway, store, disk, clock, GPUs. Exit code 1 when a check failed."""
    from quarterdeck_agent.protocol import Check

    hosts = call.hosts()
    answers, errors = collect(call, hosts, lambda client: client.doctor())
    found = [(host.name, each) for host in hosts for each in _own(host)]
    found += [(host, each) for host, checks in answers for each in checks]
    if gpu:
        there = {host for host, _ in answers}
        tried, late = _tried(call, tuple(host for host in hosts if host.name in there))
        found += [(host, each) for host, checks in tried for each in checks]
        errors += late
    found += [(error.host or "", Check("agent", "failed", error.detail, error.hint or "")) for error in errors]

    def human() -> None:
        from quarterdeck_console import views

        call.out.table(views.checks(found), "nothing to check")

    code = show(call, "CheckList", found, errors, answered=len(answers) or len(found), human=human)
    if errors and not answers:
        return errors[0].exit_code
    return code or int(any(each.result == "failed" for _, each in found))


def _tried(call: Call, hosts: tuple[Host, ...]) -> tuple[list[tuple[str, tuple[Check, ...]]], list[ConsoleError]]:
    """What torch found on each GPU of these hosts; how long it takes is told meanwhile."""
    import asyncio
    import time

    from quarterdeck_console import views

    began = time.monotonic()

    async def tell() -> None:
        while True:
            seconds = time.monotonic() - began
            call.out.progress(f"torch tries each GPU of {views.count(len(hosts), 'host')} … {seconds:.0f} s")
            await asyncio.sleep(1)

    async def question(client: Client) -> tuple[Check, ...]:
        telling = asyncio.create_task(tell()) if client.host is hosts[0] else None
        try:
            return await _of_gpus(client)
        finally:
            if telling is not None:
                telling.cancel()

    return collect(replace(call, deadline=max(call.deadline, GPU_DEADLINE)), hosts, question)


async def _of_gpus(client: Client) -> tuple[Check, ...]:
    from quarterdeck_agent.protocol import Check
    from quarterdeck_console.errors import NotFound

    try:
        return await client.gpu_doctor()
    except NotFound:
        return (Check("torch", "warning", "this agent cannot try its GPUs", "give the host this console's release"),)


def _own(host: Host) -> list[Check]:
    """What this side of the socket can see."""
    import stat

    from quarterdeck_agent.protocol import Check

    try:
        mode = stat.S_IMODE(host.token_path.stat().st_mode)
    except OSError:
        return []
    if mode & 0o077:
        return [
            Check(
                "token",
                "failed",
                f"{host.token_path} has mode {mode:04o}: others can read it",
                f"chmod 600 {host.token_path}",
            )
        ]
    return [Check("token", "ok", f"{host.token_path} is readable by its owner only")]
