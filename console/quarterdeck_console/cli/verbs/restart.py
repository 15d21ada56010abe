"""`qd restart`: start the replicas anew."""

from __future__ import annotations

from typing import Any

import click

from quarterdeck_console.cli.call import Call, verb
from quarterdeck_console.cli.changing import carry_out, options, wish_of


@verb(
    short_help="Start the replicas anew.",
    epilog="""
    qd restart digits --why "leaks memory"
    """,
)
@click.argument("name")
@options
def command(call: Call, name: str, why: str, **chosen: Any) -> int:
    """Replace a deployment's replicas by fresh ones of the same spec, as a deploy does: no request is lost."""
    from quarterdeck_agent.protocol import ChangeRequest

    return carry_out(call, wish_of("restart", name, ChangeRequest(why=why), chosen))
