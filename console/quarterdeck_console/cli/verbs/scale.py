"""`qd scale`: run another number of replicas."""

from __future__ import annotations

from typing import Any

import click

from quarterdeck_console.cli.call import Call, verb
from quarterdeck_console.cli.changing import carry_out, options, wish_of


@verb(
    short_help="Run another number of replicas.",
    epilog="""
    qd scale digits 3
    """,
)
@click.argument("name")
@click.argument("replicas", type=click.IntRange(0))
@options
def command(call: Call, name: str, replicas: int, why: str, **chosen: Any) -> int:
    """Run this many replicas of a deployment. Those that run already go on."""
    from quarterdeck_agent.protocol import ScaleRequest

    return carry_out(call, wish_of("scale", name, ScaleRequest(replicas=replicas, why=why), chosen))
