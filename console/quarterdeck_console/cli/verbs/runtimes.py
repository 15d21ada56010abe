"""`qd runtimes`: how versions can be served."""

from __future__ import annotations

from quarterdeck_console.cli.call import Call, collect, show, verb


@verb(
    short_help="How versions can be served.",
    epilog="""
    qd runtimes
    qd runtimes --json | jq '.items[].name'
    """,
)
def command(call: Call) -> int:
    """Show the catalogue of runtimes on every host."""
    answers, errors = collect(call, call.hosts(), lambda client: client.runtimes())
    found = [(host, each) for host, runtimes in answers for each in runtimes]

    def human() -> None:
        from quarterdeck_console import views

        call.out.table(views.runtimes(found), "there are no runtimes")

    return show(call, "RuntimeList", found, errors, answered=len(answers), human=human)
