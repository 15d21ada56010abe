"""`qd rm`: remove a deployment."""

from __future__ import annotations

from typing import Any

import click

from quarterdeck_console.cli.call import Call, verb
from quarterdeck_console.cli.changing import carry_out, options, wish_of


@verb(
    short_help="Remove a deployment.",
    epilog="""
    qd rm digits
    qd rm digits --yes             # where there is no terminal to ask on
    """,
)
@click.argument("name")
@options
def command(call: Call, name: str, why: str, **chosen: Any) -> int:
    """Stop a deployment and take its endpoint away. Versions and history stay. Asks first; the default is No."""
    from quarterdeck_agent.protocol import ChangeRequest

    return carry_out(call, wish_of("remove", name, ChangeRequest(why=why), chosen, ask=f"Remove deployment {name}"))
