"""`qd stop`: stop serving, keep everything."""

from __future__ import annotations

from typing import Any

import click

from quarterdeck_console.cli.call import Call, verb
from quarterdeck_console.cli.changing import carry_out, options, wish_of


@verb(
    short_help="Stop serving, keep everything.",
    epilog="""
    qd stop digits
    qd restart digits              # serve again
    """,
)
@click.argument("name")
@options
def command(call: Call, name: str, why: str, **chosen: Any) -> int:
    """Stop a deployment's replicas; versions, history and logs stay. Its endpoint answers 503 until it is started."""
    from quarterdeck_agent.protocol import ChangeRequest

    return carry_out(call, wish_of("stop", name, ChangeRequest(why=why), chosen))
