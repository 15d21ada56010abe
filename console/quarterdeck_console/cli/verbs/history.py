"""`qd history`: a deployment's revisions."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from quarterdeck_console.cli.call import Call, collect, show, verb


@verb(
    short_help="A deployment's revisions.",
    epilog="""
    qd history digits
    qd history digits --json | jq '.items[] | [.number, .by, .outcome]'
    """,
)
@click.argument("name")
@click.option("--limit", "-n", type=click.IntRange(1), metavar="N", help="Only the newest N.")
def command(call: Call, name: str, limit: int | None) -> int:
    """Show who deployed what, when and why, and what became of it; newest first."""
    answers, errors = collect(call, call.hosts(), lambda client: client.revisions(name), absent_is_fine=True)
    found = [(host, each) for host, revisions in answers for each in revisions[:limit]]

    def human() -> None:
        from quarterdeck_console import views

        call.out.table(views.revisions(found, datetime.now(UTC)), f"{name} has no revisions")

    return show(call, "RevisionList", found, errors, answered=len(answers), human=human)
