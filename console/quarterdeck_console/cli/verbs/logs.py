"""`qd logs`: the replicas' output, of many hosts side by side, also of those long gone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from quarterdeck_console.cli.ago import since_of
from quarterdeck_console.cli.call import Call, run, verb

if TYPE_CHECKING:
    from quarterdeck_console.errors import ConsoleError
    from quarterdeck_console.operations import LogItem, LogQuery


@verb(
    short_help="The replicas' output, also of those long gone.",
    epilog="""
    qd logs digits -f
    qd logs digits --since 5m --grep ERROR
    qd logs digits --revision 3            # long after it was replaced
    qd logs digits --previous --tail 50    # the run before the present one
    """,
)
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Go on as lines come; connects again after a cut.")
@click.option(
    "--since", callback=since_of, metavar="AGO|TIME", help="Only lines since then: 5m, 1h30m, 2026-01-31T12:00:00Z."
)
@click.option("--tail", "-n", type=click.IntRange(0), metavar="N", help="Only the last N lines.")
@click.option("--grep", "-g", metavar="TEXT", help="Only lines with this in them; searched on the host.")
@click.option("--revision", "-r", type=click.IntRange(1), metavar="N", help="Only of this revision.")
@click.option("--replica", metavar="ID", help="Only of this replica.")
@click.option("--previous", "-p", is_flag=True, help="Of the run before the present one.")
@click.option("--timestamps", "-t", is_flag=True, help="Begin each line with its time in UTC.")
def command(call: Call, name: str, timestamps: bool, **chosen: Any) -> int:
    """Show a deployment's logs; of several hosts merged, each line with its host in front."""
    from quarterdeck_console.operations import LogQuery

    since = chosen.pop("since")
    query = LogQuery(since=since.isoformat().replace("+00:00", "Z") if since else None, **chosen)
    return run(_logs(call, name, query, timestamps))


async def _logs(call: Call, name: str, query: LogQuery, timestamps: bool) -> int:
    from quarterdeck_console.errors import NotFound, exit_code
    from quarterdeck_console.operations import logs

    hosts = call.hosts()
    failed: dict[str, ConsoleError] = {}
    async with contextlib.aclosing(logs(hosts, name, query)) as items:
        async for item in items:
            if item.error is not None:
                failed[item.host] = item.error
                if not isinstance(item.error, NotFound):
                    _tell(call, item)
            elif item.line is None:
                call.out.note(f"{item.host}: {item.note}")
            else:
                _print(call, item, len(hosts) > 1, timestamps)
    answered = len(hosts) - len(failed)
    absent = [error for error in failed.values() if isinstance(error, NotFound)]
    others = [error for error in failed.values() if not isinstance(error, NotFound)]
    if answered == 0 and absent and not others:
        return call.out.fail(absent[0])
    return exit_code(others, answered)


def _tell(call: Call, item: LogItem) -> None:
    assert item.error is not None
    if call.out.json:
        call.out.event("LogLine", "lost", {"host": item.host}, item.error)
    else:
        call.out.errors([item.error])


def _print(call: Call, item: LogItem, many: bool, timestamps: bool) -> None:
    from quarterdeck_console import views
    from quarterdeck_console.cli.envelope import plain

    assert item.line is not None
    if call.out.json:
        call.out.event("LogLine", "marker" if item.line.dropped else "line", plain(item.line, item.host))
        return
    call.out.line(views.log_line(item.line, host=item.host if many else None, replica=False, timestamps=timestamps))
    call.out.lines_now()
