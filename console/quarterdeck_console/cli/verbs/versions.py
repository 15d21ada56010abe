"""`qd versions`: what can be deployed, and removing what is not needed."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from quarterdeck_console.cli.call import Call, collect, show, verb


@verb(
    short_help="What can be deployed.",
    epilog="""
    qd versions
    qd versions digits
    qd versions --remove digits:1 --host gpu-1
    """,
)
@click.argument("name", required=False)
@click.option("--remove", metavar="VERSION", help="Remove this version from the host; refused while it is needed.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before removing.")
def command(call: Call, name: str | None, remove: str | None, yes: bool) -> int:
    """Show the versions on every host, or only those of one model."""
    if remove is not None:
        return _remove(call, remove, yes)
    answers, errors = collect(call, call.hosts(), lambda client: client.versions())
    found = [(host, each) for host, versions in answers for each in versions if name in (None, each.name)]

    def human() -> None:
        from quarterdeck_console import views

        call.out.table(views.versions(found, datetime.now(UTC)), "there are no versions; see qd push --help")

    return show(call, "VersionList", found, errors, answered=len(answers), human=human)


def _remove(call: Call, reference: str, yes: bool) -> int:
    hosts = call.targets()
    names = ", ".join(host.name for host in hosts)
    if not yes:
        call.out.confirm(f"Remove version {reference} from {names}?")

    async def remove(client: object) -> object:
        from quarterdeck_console.client import Client

        assert isinstance(client, Client)
        version = await client.version(reference)
        await client.remove_version(reference)
        return version

    found, errors = collect(call, hosts, remove)

    def human() -> None:
        for host, version in found:
            call.out.line(f"removed {version.label} from {host}")

    return show(call, "VersionList", found, errors, answered=len(found), human=human)
