"""`qd rollback`: serve an earlier revision again."""

from __future__ import annotations

from typing import Any

import click

from quarterdeck_console.cli.call import Call, verb
from quarterdeck_console.cli.changing import carry_out, options, wish_of


@verb(
    short_help="Serve an earlier revision again.",
    epilog="""
    qd rollback digits             # to what served before
    qd rollback digits --to 3 --why "4 mistakes sevens"
    qd rollback digits --plan
    """,
)
@click.argument("name")
@click.option("--to", type=click.IntRange(1), metavar="REVISION", help="To this revision; see qd history.")
@options
def command(call: Call, name: str, to: int | None, why: str, **chosen: Any) -> int:
    """Make a new revision of an earlier one's spec. At once where the earlier one is still kept warm."""
    from quarterdeck_agent.protocol import RollbackRequest

    return carry_out(call, wish_of("rollback", name, RollbackRequest(to=to, why=why), chosen))
