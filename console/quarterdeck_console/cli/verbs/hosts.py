"""`qd hosts`: the hosts this console knows, how they are, and changing the list."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from quarterdeck_console.cli.call import Call, collect, verb
from quarterdeck_console.config import COLOURS, Host, add, fleet_path, remove

if TYPE_CHECKING:
    from quarterdeck_console.errors import ConsoleError


class Hosts(click.Group):
    """`qd hosts` alone is `qd hosts list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=Hosts, context_settings={"help_option_names": ["-h", "--help"]}, short_help="The hosts this console knows."
)
def command() -> None:
    """Show the hosts this console knows and how they are; add and remove hosts.

    Without a fleet file that is this machine's own agent. The file is fleet.toml in the XDG configuration folder, or
    the one QUARTERDECK_FLEET names.
    """


@verb(
    name="list",
    short_help="How each host is.",
    epilog="""
    qd hosts
    qd hosts list --host 'gpu-*' --json
    """,
)
def _list(call: Call) -> int:
    """Ask every host how it is. One that does not answer is a row with its error, and the exit code is 6."""
    hosts = call.hosts()
    answers, errors = collect(call, hosts, lambda client: client.status())
    known = dict(answers)
    failed = {error.host: error for error in errors}
    from quarterdeck_console.errors import exit_code

    code = exit_code(errors, len(answers))
    if call.out.json:
        call.out.items(
            "HostList", [_plain(host, known.get(host.name), failed.get(host.name)) for host in hosts], errors
        )
        return code
    from quarterdeck_console import state, views

    now = datetime.now(UTC)
    seen = state.FleetState.of(tuple(host.name for host in hosts))
    for name, status in answers:
        seen = state.snapshot(seen, name, status, now)
    for error in errors:
        seen = state.lost(seen, error.host or "", error.detail, now, error.code)
    call.out.table(views.hosts(seen, now), "no host is known")
    return code


def _plain(host: Host, status: Any, error: ConsoleError | None) -> dict[str, Any]:
    """A host with what it says of itself; what is not known is null."""
    from quarterdeck_console.cli.envelope import plain, problem

    return {
        "host": host.name,
        "url": host.url,
        "protected": host.protected,
        "colour": host.colour,
        "reachable": error is None,
        "error": problem(error) if error else None,
        "info": plain(status.info) if status else None,
        "gauges": plain(status.gauges) if status else None,
        "parts": plain(list(status.parts)) if status else [],
        "gpus": plain(list(status.gpus)) if status else [],
    }


@verb(
    name="add",
    hosts=False,
    short_help="Add a host to the fleet file.",
    epilog="""
    qd hosts add local unix:///run/quarterdeck/agent.sock
    qd hosts add prod unix:///srv/qd/agent.sock --protected --colour red
    """,
)
@click.argument("name")
@click.argument("url")
@click.option("--token-file", metavar="PATH", help="Where the token lies; by default beside the socket.")
@click.option("--protected", is_flag=True, help="Ask before any change on this host.")
@click.option("--colour", type=click.Choice(COLOURS), help="The colour this host is shown in.")
@click.option("--replace", is_flag=True, help="Change a host that is there already.")
def _add(
    call: Call, name: str, url: str, token_file: str | None, protected: bool, colour: str | None, replace: bool
) -> int:
    """Add a host to the fleet file. The agent is not asked; see how it is with qd hosts."""
    host = Host(name, url, token_file, protected, colour)
    path = fleet_path(os.environ)
    add(path, host, replace)
    return _changed(call, host, f"added {name} to {path}")


@verb(
    name="remove",
    hosts=False,
    short_help="Take a host out of the fleet file.",
    epilog="""
    qd hosts remove old-box
    """,
)
@click.argument("name")
def _remove(call: Call, name: str) -> int:
    """Take a host out of the fleet file. Nothing on the host changes."""
    path = fleet_path(os.environ)
    host = next((each for each in call.fleet().hosts if each.name == name), Host(name, ""))
    remove(path, name)
    return _changed(call, host, f"removed {name} from {path}")


def _changed(call: Call, host: Host, words: str) -> int:
    if call.out.json:
        call.out.item("Host", {"host": host.name, "url": host.url, "protected": host.protected, "colour": host.colour})
    else:
        call.out.line(words)
    return 0


for each in (_list, _add, _remove):
    command.add_command(each)
