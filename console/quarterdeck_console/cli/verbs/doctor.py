"""`qd doctor`: check hosts, one line for each thing, with the mend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quarterdeck_console.cli.call import Call, collect, show, verb

if TYPE_CHECKING:
    from quarterdeck_agent.protocol import Check
    from quarterdeck_console.config import Host


@verb(
    short_help="Check hosts and say how to mend what is not well.",
    epilog="""
    qd doctor
    qd doctor --host gpu-1 --json
    """,
)
def command(call: Call) -> int:
    """Check each host: agent, engine, gateway, store, disk, clock. Exit code 1 when a check failed."""
    from quarterdeck_agent.protocol import Check

    hosts = call.hosts()
    answers, errors = collect(call, hosts, lambda client: client.doctor())
    found = [(host.name, each) for host in hosts for each in _own(host)]
    found += [(host, each) for host, checks in answers for each in checks]
    found += [(error.host or "", Check("agent", "failed", error.detail, error.hint or "")) for error in errors]

    def human() -> None:
        from quarterdeck_console import views

        call.out.table(views.checks(found), "nothing to check")

    code = show(call, "CheckList", found, errors, answered=len(answers) or len(found), human=human)
    if errors and not answers:
        return errors[0].exit_code
    return code or int(any(each.result == "failed" for _, each in found))


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
